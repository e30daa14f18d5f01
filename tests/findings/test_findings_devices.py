"""Findings that rest on what a device's analysis tells: each where the data carries it, else silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moescope.profiler.findings.aggregates import Aggregates
from moescope.profiler.findings.rules import findings
from moescope.profiler.ranks.across import Across, OpUse, across
from moescope.profiler.ranks.lateness import Late
from moescope.profiler.ranks.losses import findings_across
from moescope.profiler.ranks.part import Part
from moescope.profiler.snapshot import Finding, Shares
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import part_of, summarise
from tests.findings.test_findings import HEALTHY, MS, _kernel_row
from tests.live_recording import MemorySource, Row, kernel
from tests.ranks.worlds import run, source_of

DATA = Path(__file__).parents[1] / "data"

UNITS = {"kind": "sm", "total": 132, "comm_typical": 20, "evidence": "inferred"}
DECODE = {
    "step_us": 900, "tokens_per_expert": 4.0, "tokens_per_expert_evidence": "derived", "ridge_tokens": 295.0,
    "ridge_dtype": "fp8", "memory_bound_share": 0.7, "bandwidth_share": None, "batch": 32.0, "gaps": None,
}  # fmt: skip
GAPS = {"count": 100, "short_count": 90, "short_us": 90.0, "longest_us": 10.0}
CLOCK = {"samples": 9, "first_hz": 2e9, "last_hz": 2e9, "mean_hz": 2e9, "power_w": None, "held_share": None}
CASTS = {"us": 0.0, "before_products": 0, "before_products_us": 0.0}


def _device(**more: Any) -> dict[str, Any]:
    """A GPU of 1 ms without anything to say of it."""
    return {
        "rank": 0, "device": "cuda:0", "hardware": "H100 SXM", "span_us": 1000.0, "compute_us": 990.0, "idle_us": 10.0,
        "overlapped_us": 190.0, "units": UNITS, "sm_budget": {"wanted_more_share": 0.0}, "casts": CASTS, "gaps": GAPS,
        "decode": None, "clock": CLOCK, "operators": [],
    } | more  # fmt: skip


def _found(seen: Aggregates, **more: Any) -> dict[str, Finding]:
    return {one.id: one for one in findings(replace(seen, devices=(_device(**more),)))}


def test_a_healthy_device_has_no_findings() -> None:
    assert _found(HEALTHY) == {}


MANY = {"units": UNITS | {"comm_typical": 44}, "sm_budget": {"wanted_more_share": 0.3}, "overlapped_us": 300.0}


def test_communication_that_holds_many_sms_is_told_where_compute_wants_them() -> None:
    (found,) = _found(HEALTHY, **MANY).values()
    assert found.id == "comm-units-many"
    assert "44 of 132 SMs" in found.what
    assert found.bounds is not None
    assert found.bounds.high_share == pytest.approx(0.3 * 44 / 132)
    assert found.bounds.high_ns == pytest.approx(0.1 * 10 * MS)


@pytest.mark.parametrize(
    "more",
    [
        {"units": UNITS | {"comm_typical": 20}},
        {"sm_budget": {"wanted_more_share": 0.0}},
        {"sm_budget": None},
        {"overlapped_us": 20.0},
        {"units": UNITS | {"comm_typical": None}},
        {"units": {"kind": "core", "total": 2, "comm_typical": 1, "evidence": "measured"}},
    ],
)
def test_few_sms_or_none_wanted_or_cores_of_a_host_are_no_finding(more: dict[str, Any]) -> None:
    assert "comm-units-many" not in _found(HEALTHY, **(MANY | more))


def test_decoding_under_the_ridge_is_told_with_its_tokens() -> None:
    (found,) = _found(HEALTHY, decode=DECODE).values()
    assert (found.id, found.severity) == ("decode-memory-bound", "high")
    assert "4.0 tokens an expert, the ridge is 295" in found.what
    assert "up to 74 times the tokens" in found.gain
    assert found.bounds is None


@pytest.mark.parametrize(
    "more",
    [{"tokens_per_expert": 400.0}, {"tokens_per_expert": None}, {"ridge_tokens": None}, {"memory_bound_share": 0.1}],
)
def test_decoding_over_the_ridge_or_of_unknown_tokens_is_no_finding(more: dict[str, Any]) -> None:
    assert _found(HEALTHY, decode=DECODE | more) == {}


IDLE = replace(HEALTHY, shares=Shares(100 * MS, 60 * MS, 0, 0, 0, 40 * MS))


def test_short_gaps_are_launches_that_come_late_and_long_ones_are_not() -> None:
    (short,) = _found(IDLE, idle_us=400.0, gaps=GAPS | {"short_us": 360.0}).values()
    assert short.id == "launch-gaps"
    assert short.bounds is not None
    assert short.bounds.high_share == pytest.approx(0.4 * 0.9)
    both = _found(IDLE, idle_us=400.0, gaps=GAPS | {"short_us": 240.0})
    assert {name: round(one.lost or 0, 6) for name, one in both.items()} == {"launch-gaps": 0.24, "idle": 0.16}
    (long,) = _found(IDLE, idle_us=400.0, gaps=GAPS | {"short_us": 40.0}).values()
    assert long.id == "idle"
    assert "hold 10% of it" in long.evidence
    (host,) = _found(IDLE, idle_us=400.0, gaps=GAPS | {"short_us": 400.0}, device="cpu").values()
    assert host.id == "idle"


@pytest.mark.parametrize(
    ("clock", "told"),
    [
        ({"last_hz": 1.6e9, "mean_hz": 1.8e9}, True),
        ({"last_hz": 1.95e9, "mean_hz": 1.97e9}, False),
        ({"last_hz": 1.6e9, "mean_hz": 1.8e9, "samples": 3}, False),
        (None, False),
    ],
)
def test_a_clock_that_falls_is_told_from_enough_samples(clock: dict[str, Any] | None, told: bool) -> None:
    found = _found(HEALTHY, clock=clock and CLOCK | clock)
    assert set(found) == ({"clock-falls"} if told else set())
    if told:
        bounds = found["clock-falls"].bounds
        assert bounds is not None
        assert bounds.high_share == pytest.approx(0.1 * 0.99)


HELD = {"held_share": 0.4, "held_by": {"power cap": 0.4}, "held_hz": 1.5e9, "free_hz": 2e9}


@pytest.mark.parametrize(
    ("clock", "lost"),
    [({}, 0.99 * 0.4 * 0.25), ({"free_hz": None}, None), ({"held_share": 0.04}, -1), ({"samples": 5}, -1)],
)
def test_a_clock_that_is_held_back_is_told_with_what_holds_it(clock: dict[str, Any], lost: float | None) -> None:
    found = _found(HEALTHY, clock=CLOCK | HELD | clock)
    assert set(found) == (set() if lost == -1 else {"clock-held"})
    if lost != -1:
        assert "power cap in 40%" in found["clock-held"].evidence
        assert found["clock-held"].lost == (lost if lost is None else pytest.approx(lost))


def test_kernels_that_only_move_rows_are_told_from_a_twentieth_of_the_time_on() -> None:
    def seen(index: int, copies: int) -> Aggregates:
        rows = (
            _kernel_row("permute", "routing", "compute", index),
            _kernel_row("Memcpy DtoD", "memcpy", "memory", copies),
        )
        return replace(HEALTHY, kernels=rows)

    assert _found(seen(2 * MS, 2 * MS)) == {}
    (found,) = _found(seen(8 * MS, 4 * MS)).values()
    assert (found.id, found.severity, found.lost) == ("layout", "high", pytest.approx(0.12))
    assert "routing 8 ms, memcpy 4 ms" in found.evidence


def test_no_more_communication_can_be_hidden_than_there_is_compute_to_hide_it() -> None:
    seen = replace(HEALTHY, shares=Shares(100 * MS, 5 * MS, 0, 90 * MS, 0, 5 * MS))
    operators = [{"class": "all_to_all", "exposed_comm_us": 75.0}, {"class": "all_reduce", "exposed_comm_us": 25.0}]
    found = _found(seen, operators=[*operators, {"class": "gemm"}])["exposed-communication"]
    assert found.lost == pytest.approx(0.9)
    assert found.bounds is not None
    assert found.bounds.high_share == pytest.approx(0.05)
    assert "all_to_all 75%, all_reduce 25%" in found.evidence


# -- what rests on kernels

CAST, PRODUCT = "per_token_group_quant_8bit_kernel", "deep_gemm::sm90_fp8_gemm_1d2d_impl"
NORM = "rms_norm_kernel"


def _gpu(names: list[str], stream: str = "7", start: int = 0) -> list[Row]:
    """Kernels of 10 µs, one after the other; products take 80."""
    rows, at = [], start
    for name in names:
        lasts = 80_000 if name == PRODUCT else 10_000
        rows.append(kernel(at, lasts, stream=stream) | {"name": name, "device": "cuda:0"})
        at += lasts
    return rows


def _summary(rows: list[Row], samples: list[Row] | None = None) -> dict[str, Any]:
    source = MemorySource(state="trace").add("kernels", rows)
    return summarise(source.add("device_samples", samples) if samples else source)


def test_casts_that_stand_before_products_are_told() -> None:
    summary = _summary(_gpu([CAST, CAST, PRODUCT, NORM] * 5))
    (rank,) = summary["ranks"]
    assert (rank["casts"]["count"], rank["casts"]["before_products"]) == (10, 10)
    (found,) = (one for one in summary["findings"] if one["id"] == "casts-unfused")
    assert found["lost_share"] == pytest.approx(100 / 550)
    assert found["bounds"]["high_us"] == pytest.approx(100)
    assert CAST in found["evidence"]


@pytest.mark.parametrize("rows", [_gpu([CAST, NORM, PRODUCT] * 5), _gpu([CAST] * 5) + _gpu([PRODUCT] * 5, "8", 50_000)])
def test_casts_before_something_else_or_on_another_stream_are_not(rows: list[Row]) -> None:
    summary = _summary(rows)
    assert summary["ranks"][0]["casts"]["before_products"] == 0
    assert "casts-unfused" not in [one["id"] for one in summary["findings"]]


def test_gaps_and_clock_are_those_between_the_first_kernel_and_the_last() -> None:
    rows = [kernel(at, 10_000, stream="7") | {"device": "cuda:0"} for at in (0, 30_000, 140_000)]
    samples = [
        {"host": "h", "device": device, "t_ns": at, "clock_hz": clock, "power_w": None}
        for device, at, clock in (
            ("cuda:0", 0, 2000),
            ("cuda:0", 140_000, 1000),
            ("cuda:0", 150_000, 7),
            ("cuda:1", 0, 9),
        )
    ]
    (rank,) = _summary(rows, samples)["ranks"]
    told = {key: rank["gaps"][key] for key in ("count", "short_count", "short_us", "longest_us", "median_us")}
    assert told == {"count": 2, "short_count": 1, "short_us": 20, "longest_us": 100, "median_us": 20}
    assert (rank["clock"]["first_hz"], rank["clock"]["last_hz"], rank["clock"]["samples"]) == (2000, 1000, 2)
    assert _summary(rows)["ranks"][0]["clock"] is None
    assert rank["clock"]["held_share"] is None
    words = ["", "power cap, thermal (software)", "idle"]
    told = [samples[0] | {"t_ns": at, "throttle": word} for at, word in enumerate(words)]
    clock = _summary(rows, told)["ranks"][0]["clock"]
    assert clock["held_by"] == {"power cap": pytest.approx(1 / 3), "thermal (software)": pytest.approx(1 / 3)}
    assert (clock["held_share"], clock["held_hz"]) == (pytest.approx(1 / 3), 2000)


# -- what rests on a comparison of ranks


def _op(**more: Any) -> OpUse:
    """100 collectives of 64 MB that take 16 ms each: 4 GB/s."""
    told: dict[str, Any] = {
        "op": "all_to_all", "calls": 200, "called_ns": 3200 * MS, "collectives": 100, "groups": 1, "wait_ns": 10 * MS,
        "moving_ns": 3190 * MS, "transfer_ns": 1600 * MS, "median_transfer_ns": 16 * MS, "moved": 6_400_000_000,
        "moved_ns": 1600 * MS, "buffer": 0, "buffer_ns": 0, "told": 0, "told_ns": 0, "last": (),
    }  # fmt: skip
    return OpUse(**(told | more))


def _few(op: OpUse, exposed: int = 30 * MS, **more: Any) -> list[str]:
    seen = replace(HEALTHY, shares=Shares(100 * MS, 100 * MS - exposed, 0, exposed, 0, 0), devices=(_device(**more),))
    return [one.id for one in findings_across(replace(across(Part()), ops=(op,)), seen)]


def test_few_sms_are_told_where_they_move_far_less_than_the_slowest_link_can() -> None:
    few = {"units": UNITS | {"comm_typical": 8}}
    assert "comm-units-few" in _few(_op(), **few)
    assert "comm-units-few" not in _few(_op())
    assert "comm-units-few" not in _few(_op(moved_ns=100 * MS), **few)
    assert "comm-units-few" not in _few(_op(moved=6_400_000), **few)
    assert "comm-units-few" not in _few(_op(moved=0, moved_ns=0), **few)
    assert "comm-units-few" not in _few(_op(wait_ns=9000 * MS), **few)
    assert "comm-units-few" not in _few(_op(), exposed=2 * MS, **few)
    assert "comm-units-few" not in _few(_op(), hardware=None, **few)


def _compared() -> tuple[Across, Aggregates]:
    source = source_of(run([(0, 1)], 20), told=True, hosts=True)
    return across(part_of(source)), replace(HEALTHY, shares=Shares(100 * MS, 99 * MS, 0, 0, 0, 1 * MS))


def test_ranks_that_are_last_by_turns_are_not_blamed_one_by_one() -> None:
    found, seen = _compared()
    late = (Late(0, 11, 20, 3 * MS, 3 * MS), Late(1, 9, 20, 2_500_000, 2_500_000))
    ids = {one.id: one for one in findings_across(replace(found, late=late), seen)}
    assert "late-rank" not in ids
    assert "rank 0 in 11 of 20 collectives, rank 1 in 9" in ids["ranks-in-turn"].what
    clear = (late[0], replace(late[1], lead_ns=1 * MS))
    ids = {one.id: one for one in findings_across(replace(found, late=clear), seen)}
    assert "ranks-in-turn" not in ids
    assert ids["late-rank"].bounds is not None
    assert ids["late-rank"].bounds.high_ns == 3 * MS
    known = (replace(late[0], cause="tokens", detail="1.3 times the mean tokens"), late[1])
    (told,) = (one for one in findings_across(replace(found, late=known), seen) if one.id == "late-rank")
    assert "experts get more tokens" in told.what


def test_waiting_for_a_late_rank_is_told_beside_what_is_exposed() -> None:
    found, seen = _compared()
    seen = replace(seen, shares=Shares(100 * MS, 60 * MS, 0, 30 * MS, 0, 10 * MS))
    for wait, words in ((9000 * MS, True), (10 * MS, False)):
        rows = {one.id: one for one in findings_across(replace(found, ops=(_op(wait_ns=wait),), late=()), seen)}
        assert rows["exposed-communication"].advice.startswith("first see which rank arrives late") is words


@pytest.mark.parametrize(
    "folder", ["hta_ddp_nccl_meta_a100", "param_dlrm_8rank_v100", "tracelens_sglang_moe_decode_b300"]
)
def test_findings_of_real_traces_contradict_neither_these_nor_one_another(folder: str) -> None:
    summary = summarise(open_source([DATA / folder]))
    ids = [one["id"] for one in summary["findings"]]
    assert len(ids) == len(set(ids))
    if not summary["total"]["comm_us"]:
        about = (
            "exposed-communication",
            "late-rank",
            "ranks-in-turn",
            "slow-group",
            "comm-units-many",
            "comm-units-few",
        )
        assert not set(ids) & set(about)
    if all(rank["decode"] is None for rank in summary["ranks"]):
        assert "decode-memory-bound" not in ids
    for one in summary["findings"]:
        assert one["why"]
        assert one["evidence"]
        assert one["lost_share"] is None or 0 < one["lost_share"] <= 1
        if one["bounds"] is not None:
            assert 0 <= one["bounds"]["low_share"] <= one["bounds"]["high_share"] <= (one["lost_share"] or 1) + 1e-9
            assert one["bounds"]["low_us"] <= one["bounds"]["high_us"]
    lost = [one["lost_share"] for one in summary["findings"] if one["lost_share"] is not None]
    assert lost == sorted(lost, reverse=True)
