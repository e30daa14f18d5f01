"""Who is late at collectives, what it costs, and why: runs in which one rank was made late in a known way."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from moescope.profiler.report.text import render_text
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource
from tests.ranks.worlds import rows_of, run, source_of

WORLD = tuple(range(4))
LATE_NS = 3_000_000


def _late(source: MemorySource) -> dict[str, Any]:
    """The entry of the costliest latecomer."""
    return summarise(source)["stragglers"][0]


def test_a_rank_that_computes_longer_is_late_for_that_and_costs_what_the_others_wait() -> None:
    world = run([WORLD], 10, slower={2: LATE_NS})
    found = _late(source_of(world, told=True, hosts=True))
    assert (found["rank"], found["last"], found["collectives"], found["cause"]) == (2, 10, 10, "compute")
    leads, waited = 0, 0
    for calls in world.meetings().values():
        ordered = sorted(call.arrival for call in calls.values())
        leads += ordered[-1] - ordered[-2]
        waited += sum(ordered[-1] - arrival for arrival in ordered)
    assert found["lead_us"] == pytest.approx(leads / 1000)
    assert found["others_waited_us"] == pytest.approx(waited / 1000)
    assert found["lead_by"]["compute_us"] > 0.9 * sum(found["lead_by"].values())


def test_a_rank_whose_device_idles_longer_is_launched_late() -> None:
    found = _late(source_of(run([WORLD], 10, idler={1: LATE_NS}), told=True))
    assert (found["rank"], found["last"], found["cause"]) == (1, 10, "launch")


def test_a_rank_held_up_by_a_copy_is_late_for_that() -> None:
    world = run([WORLD], 10, idler={1: LATE_NS})
    rows, meta = rows_of(world, told=True)
    copies = [
        {"rank": 1, "device": "cuda:0", "stream": "9", "name": "Memcpy HtoD (Pageable -> Device)",
         "evidence": "measured", "start_ns": world.shown(1, start + work), "dur_ns": LATE_NS}
        for start, work in world.work[1]
    ]  # fmt: skip
    source = MemorySource(meta=meta).add("kernels", [*rows["kernels"], *copies])
    assert _late(source.add("collectives", rows["collectives"]))["cause"] == "communication"


def test_more_tokens_and_a_slower_clock_are_named_where_the_data_carries_them() -> None:
    world = run([WORLD], 10, slower={3: LATE_NS})
    rows, meta = rows_of(world, told=True, hosts=True)

    def with_rows(table: str, more: list[dict[str, Any]]) -> dict[str, Any]:
        source = MemorySource(meta=meta).add("kernels", rows["kernels"]).add("collectives", rows["collectives"])
        return _late(source.add(table, more))

    tokens = [
        {"rank": 0, "t_ns": world.shown(0, 1000), "step": 0, "layer": 0, "expert": e, "tokens": 300 if e > 5 else 100}
        for e in range(8)
    ]
    found = with_rows("experts", tokens)
    assert (found["cause"], "2.00 times the mean tokens" in found["why"]) == ("tokens", True)
    even = [row | {"tokens": 100} for row in tokens]
    assert with_rows("experts", even)["cause"] == "compute"


def test_a_slower_device_clock_is_named() -> None:
    world = run([WORLD], 10, slower={3: LATE_NS})
    rows, _ = rows_of(world, told=True)
    meta = {"ranks": [{"rank": rank, "host": f"h{rank}"} for rank in WORLD]}
    source = MemorySource(meta=meta).add("kernels", rows["kernels"]).add("collectives", rows["collectives"])
    samples = [
        {"host": f"h{rank}", "device": "cuda:0", "t_ns": world.shown(rank, at),
         "clock_hz": 1_580_000_000 if rank == 3 else 1_980_000_000}
        for rank in WORLD
        for at in (1000, 2000)
    ]  # fmt: skip
    found = _late(source.add("device_samples", samples))
    assert (found["cause"], "1580 MHz against a median of 1980 MHz" in found["why"]) == ("clock", True)


def test_nobody_is_called_late_by_less_than_clocks_can_be_off() -> None:
    world = run([(0, 1)], 40, seed=2, offset_ns=1_000_000, jitter_ns=40_000, gap_ns=2_000)
    summary = summarise(source_of(world, told=True))
    unsure = 2 * summary["clock_alignment"]["residual_us"]
    leads = [abs(a.arrival - b.arrival) / 1000 for a, b in zip(*world.calls.values(), strict=True)]
    assert unsure > 10
    assert sum(lead > unsure / 3 for lead in leads) > 10
    # The clock itself is known to a few µs only.
    assert sum(late["last"] for late in summary["stragglers"]) <= sum(lead > unsure - 8 for lead in leads)
    assert all(late["lead_us"] >= late["last"] * unsure for late in summary["stragglers"])


def test_ranks_alike_are_not_blamed() -> None:
    found = summarise(source_of(run([WORLD], 30, seed=4), told=True, hosts=True))["stragglers"]
    assert len(found) > 1
    assert max(late["last"] for late in found) < 20
    assert sum(late["last"] for late in found) == 30


def test_a_group_on_a_slow_link_is_found_among_groups_alike() -> None:
    groups = [(0, 1), (2, 3), (4, 5), (6, 7)]
    world = run(groups, 8)
    for rank in (4, 5):
        for call in world.calls[rank]:
            call.end += 200_000  # the transfer alone: nothing follows it at once
    rows, meta = rows_of(world, told=True, hosts=True)
    for row in rows["collectives"]:
        row |= {"op": "all_to_all", "sent_bytes": 4096}
    source = MemorySource(meta=meta).add("kernels", rows["kernels"]).add("collectives", rows["collectives"])
    summary = summarise(source)
    (slow,) = summary["collectives"]["slow_groups"]
    assert (slow["ranks"], slow["groups"], slow["collectives"]) == ([4, 5], 4, 8)
    assert slow["transfer_us"] > slow["usual_us"] + 150
    assert "slow-group" in [finding["id"] for finding in summary["findings"]]


def test_findings_and_text_say_it_once_and_in_words() -> None:
    world = run([WORLD], 10, slower={2: LATE_NS}, offset_ns=10_000)
    summary = summarise(source_of(world, told=True))
    ids = [finding["id"] for finding in summary["findings"]]
    assert "late-rank" in ids
    assert "straggler" not in ids
    (finding,) = (finding for finding in summary["findings"] if finding["id"] == "late-rank")
    assert "Rank 2 arrives last in 10 of 10 collectives: it computes longer" in finding["what"]
    file = io.StringIO()
    render_text(summary, Console(file=file, width=120))
    text = file.getvalue()
    assert "Clocks: aligned on 10 collectives" in text
    assert "is waiting for the last rank" in text
    assert any(line.startswith("all_reduce") and "2: " in line for line in text.splitlines())
