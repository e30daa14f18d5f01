"""Collectives across ranks: matched, put on one clock and taken apart, against runs whose truth was chosen."""

from __future__ import annotations

import gzip
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.ranks.across import Across, across
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import part_of, summarise
from tests.live_recording import MemorySource
from tests.ranks.worlds import World, rows_of, run, source_of

DATA = Path(__file__).parents[1] / "data"
WORLD = tuple(range(4))
PAIRS = [(0, 1), (2, 3), WORLD]


def _across(source: MemorySource) -> Across:
    return across(part_of(source))


def _brute_force(world: World, group: tuple[int, ...]) -> dict[str, Any]:
    """Wait, transfer and the last rank of every collective of a group, one nanosecond figure after the other."""
    wait, transfer, last = 0, [], []
    for (members, _), calls in sorted(world.meetings().items()):
        if members != group:
            continue
        latest = max(call.arrival for call in calls.values())
        for call in calls.values():
            wait += min(latest, call.end) - call.arrival
        transfer.append(max(call.end for call in calls.values()) - latest)
        last.append(next(rank for rank in sorted(calls) if calls[rank].arrival == latest))
    return {"wait": wait, "transfer": sum(transfer), "last": last}


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(0, 30_000))
def test_on_one_clock_wait_and_transfer_equal_a_count_by_hand(seed: int, rounds: int, jitter: int) -> None:
    world = run(PAIRS, rounds, seed=seed, jitter_ns=jitter)
    found = _across(source_of(world, told=True, hosts=True))
    assert found.matching.matched == found.matching.calls == sum(map(len, world.calls.values()))
    assert {one.of.group.members for one in found.taken} == {"0,1", "2,3", "0,1,2,3"}
    for one in found.taken:
        truth = _brute_force(world, one.of.ranks)
        assert int(one.wait.sum()) == truth["wait"]
        assert int(one.transfer.sum()) == truth["transfer"]
        assert [one.of.ranks[row] for row in one.last] == truth["last"]
        spent = sum(
            call.end - call.arrival for calls in world.calls.values() for call in calls if call.group == one.of.ranks
        )
        assert int(one.wait.sum() + one.moving.sum()) == spent


@settings(max_examples=6, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0, 2_000]), st.booleans())
def test_clocks_are_found_within_the_jitter_of_ends(seed: int, jitter: int, told: bool) -> None:
    world = run(PAIRS, 12, seed=seed, offset_ns=40_000_000, jitter_ns=jitter)
    clocks = _across(source_of(world, told=told)).clocks
    assert clocks.reference == 0
    for rank, clock in clocks.by_rank.items():
        assert clock.offset_ns == pytest.approx(world.offsets[rank] - world.offsets[0], abs=jitter + 1)
    assert clocks.worst_ns is not None
    assert clocks.worst_ns <= 2 * jitter + 1


def test_drift_is_found_over_a_long_span() -> None:
    world = run([WORLD], 60, seed=3, offset_ns=1_000_000, drift=2e-5, jitter_ns=1_000, gap_ns=400_000_000)
    clocks = _across(source_of(world, told=True)).clocks
    assert clocks.worst_ns is not None
    assert clocks.worst_ns < 20_000  # a constant offset would leave 20 ppm of 20 s
    for rank in WORLD:
        assert clocks.by_rank[rank].drift == pytest.approx(world.drifts[rank] - world.drifts[0], abs=1e-6)


def test_waits_are_right_although_clocks_are_far_apart() -> None:
    world = run([WORLD], 20, seed=5, offset_ns=900_000_000)
    found = _across(source_of(world, told=True))
    truth = _brute_force(world, WORLD)
    (one,) = found.taken
    assert int(one.wait.sum()) == pytest.approx(truth["wait"], rel=1e-6)
    assert [one.of.ranks[row] for row in one.last] == truth["last"]


def test_ranks_that_meet_nobody_have_no_offset_and_no_waits() -> None:
    world = run([(0, 1), (2, 3)], 6, offset_ns=5_000_000)
    summary = summarise(source_of(world, told=True))
    offsets = {rank["rank"]: rank["offset_us"] for rank in summary["clock_alignment"]["ranks"]}
    assert offsets[0] == 0
    assert offsets[1] is not None
    assert offsets[2] is None
    assert summary["clock_alignment"]["ranks"][2]["offset_us_reason"]
    assert summary["collectives"]["ops"][0]["collectives"] > 0
    assert [one["ranks"] for one in summary["collectives"]["unmatched"]] == ["2,3"]


def test_without_told_groups_ranks_whose_calls_end_together_are_one() -> None:
    world = run(PAIRS, 10, offset_ns=3_000_000, jitter_ns=2_000)
    found = _across(source_of(world, told=False))
    assert found.matching.matched == found.matching.calls
    assert sorted(one.of.ranks for one in found.taken) == sorted(PAIRS)
    for one in found.taken:
        truth = _brute_force(world, one.of.ranks)
        # What ends' jitter leaves of the clocks' offsets, for each of the calls.
        assert int(one.wait.sum()) == pytest.approx(truth["wait"], abs=4_000 * int(one.present.sum()))
    assert summarise(source_of(world, told=False))["collectives"]["evidence"] == "inferred"


def test_calls_that_do_not_end_together_are_no_group() -> None:
    world = run([(0, 1), (2, 3)], 10)
    world.calls = {0: world.calls[0], 2: world.calls[2]}
    summary = summarise(source_of(world, told=False))
    assert summary["collectives"]["matched"] == 0
    assert "end together" in summary["collectives"]["wait_us_reason"]


def test_a_trace_that_begins_later_is_matched_at_the_right_call() -> None:
    world = run([WORLD], 24, seed=1, offset_ns=2_000_000, jitter_ns=1_000)
    world.calls[2] = world.calls[2][5:]
    world.calls[3] = world.calls[3][:-4]
    found = _across(source_of(world, told=True))
    (one,) = found.taken
    truth = {key[1]: calls for key, calls in world.meetings().items()}
    for row, rank in enumerate(one.of.ranks):
        for column, place in zip(one.at.tolist(), one.of.rows[row, one.at].tolist(), strict=True):
            if place >= 0:
                assert world.calls[rank][place] is truth[column][rank]
    assert found.matching.matched == found.matching.calls


def test_equal_counts_at_different_times_are_shifted_too() -> None:
    world = run([WORLD], 24, seed=8, jitter_ns=1_000)
    for rank in WORLD:
        world.calls[rank] = world.calls[rank][2:] if rank % 2 else world.calls[rank][:-2]
    for calls in world.calls.values():
        for call in calls:
            call.op = "all_reduce"
    found = _across(source_of(world, told=True))
    (one,) = found.taken
    pairs = zip(one.of.rows[0].tolist(), one.of.rows[1].tolist(), strict=True)
    assert all(world.calls[0][a].number == world.calls[1][b].number for a, b in pairs if a >= 0 and b >= 0)
    assert found.clocks.worst_ns is not None
    assert found.clocks.worst_ns <= 2_001


def test_ranks_that_call_other_operations_are_left_out_with_the_reason() -> None:
    world = run([WORLD], 9)
    for call in world.calls[3][::2]:
        call.op = "broadcast"
    world.calls[3] = [call for call in world.calls[3] if call.op != "broadcast"]
    for call in world.calls[3]:
        call.op = "all_gather"
    for rank in (0, 1, 2):
        for call in world.calls[rank]:
            call.op = "all_reduce"
    summary = summarise(source_of(world, told=True))
    (left,) = summary["collectives"]["unmatched"]
    assert "rank 3 makes other calls" in left["reason"]
    assert left["calls"] == 4
    assert summary["collectives"]["matched_share"] == pytest.approx(27 / 31)
    assert summary["collectives"]["ops"][0]["collectives"] == 9


def test_a_group_with_ranks_outside_the_source_is_called_partial() -> None:
    world = run([WORLD], 6)
    del world.calls[3]
    summary = summarise(source_of(world, told=True))
    assert summary["collectives"]["groups_lacking_ranks"] == 1
    assert summary["collectives"]["matched_share"] == 1.0


def test_one_rank_alone_is_null_with_a_reason() -> None:
    world = run([WORLD], 6)
    for rank in (1, 2, 3):
        del world.calls[rank]
    summary = summarise(source_of(world, told=True))
    assert summary["clock_alignment"] is None
    assert summary["stragglers"] is None
    assert summary["collectives"]["wait_us"] is None
    for key in ("clock_alignment_reason", "stragglers_reason"):
        assert summary[key] == "the source holds one rank alone"


def test_calls_that_never_ended_keep_their_place_in_the_order() -> None:
    world = run([WORLD], 8)
    source = source_of(world, told=True, hosts=True)
    rows = source.table("collectives").to_pylist()
    for row in rows:
        if row["rank"] == 1 and row["call"] == 3:
            row["dur_ns"] = None
    source.forget("collectives", 0)
    source.add("collectives", rows)
    (one,) = _across(source).taken
    assert one.at.tolist() == list(range(8))
    assert one.present[:, 3].tolist() == [True, False, True, True]
    assert one.present.sum() == 31


@pytest.fixture(scope="module")
def dlrm() -> dict[str, Any]:
    return summarise(open_source([DATA / "param_dlrm_8rank_v100"]))


def test_the_known_trace_of_eight_ranks_aligns_within_seven_microseconds(dlrm: dict[str, Any]) -> None:
    summary = dlrm
    clocks, found = summary["clock_alignment"], summary["collectives"]
    assert clocks["worst_us"] <= 7
    assert len(clocks["ranks"]) == 8
    assert found["matched_share"] == 1.0
    assert found["wait_share"] == pytest.approx(0.965, abs=0.002)
    assert summary["stragglers"][0]["rank"] == 7
    assert summary["stragglers"][0]["last"] == 5


def test_the_known_trace_equals_what_its_json_says_by_hand(dlrm: dict[str, Any]) -> None:
    ranks: list[list[tuple[int, int]]] = []
    for path in sorted((DATA / "param_dlrm_8rank_v100").glob("*.json.gz")):
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
        nccl = [e for e in events if e.get("cat") in ("kernel", "Kernel") and str(e.get("name")).startswith("nccl")]
        ranks.append(sorted((e["ts"], e["ts"] + e["dur"]) for e in nccl))
    starts = [[call[0] for call in calls] for calls in ranks]
    ends = [[call[1] for call in calls] for calls in ranks]
    latest = [max(column) for column in zip(*starts, strict=True)]
    assert [column.index(max(column)) for column in zip(*starts, strict=True)][:5] == [7] * 5
    wait = sum(min(late, end) - start for s, e in zip(starts, ends, strict=True)
               for late, start, end in zip(latest, s, e, strict=True))  # fmt: skip
    transfer = sum(max(column) - late for column, late in zip(zip(*ends, strict=True), latest, strict=True))
    found = dlrm["collectives"]
    # The trace's clocks are at most 7 µs apart, and there are 8 calls on each of 8 ranks.
    assert found["wait_us"] == pytest.approx(wait, abs=64 * 7)
    assert found["transfer_us"] == pytest.approx(transfer, abs=8 * 7)
    assert found["wait_us"] + sum(op["moving_us"] for op in found["ops"]) == pytest.approx(
        sum(e - s for calls in ranks for s, e in calls), abs=0.01
    )


@pytest.mark.parametrize(
    ("op", "elements", "n", "moved", "buffer"),
    [
        ("allreduce", 1000, 4, 6000, 4000),
        ("_allgather_base", 1000, 4, 12000, 16000),
        ("reduce_scatter", 1000, 4, 3000, 4000),
        ("all_to_allv", 1000, 4, 3000, 4000),
        ("broadcast", 1000, 4, 4000, 4000),
    ],
)
def test_bandwidth_follows_nccl_tests(op: str, elements: int, n: int, moved: int, buffer: int) -> None:
    """busbw = algbw * 2 (n - 1) / n for all-reduce, (n - 1) / n for the scattering ones, 1 for broadcast."""
    source = MemorySource()
    members = ",".join(map(str, range(n)))
    for rank in range(n):
        late = 50_000 if rank == 1 else 0
        times = [(at * 1_000_000 + late, 100_000 - late) for at in range(5)]
        kernel = {"device": "cuda:0", "stream": "20", "name": "ncclDevKernel_Generic", "evidence": "measured"}
        source.add(
            "kernels",
            [
                kernel | {"rank": rank, "start_ns": at, "dur_ns": dur, "bytes": elements * 4, "dtype": "f32"}
                for at, dur in times
            ],
        )
        source.add(
            "collectives",
            [
                {"rank": rank, "call": number, "op": op.lstrip("_"), "group": "0", "group_ranks": members,
                 "issue_ns": at, "start_ns": at, "dur_ns": dur, "evidence": "measured"}
                for number, (at, dur) in enumerate(times)
            ],
        )  # fmt: skip
    (found,) = summarise(source)["collectives"]["ops"]
    assert found["transfer_us"] == 5 * 50
    assert found["bus_bytes_per_s"] == pytest.approx(moved / 50e-6)
    assert found["algorithm_bytes_per_s"] == pytest.approx(buffer / 50e-6)
    assert found["bus_bytes_per_s_at_least"] == pytest.approx(moved * 4 / ((3 * 100 + 50) * 1e-6))


def test_bytes_of_a_single_rank_bound_its_bandwidth_from_below() -> None:
    (found, _) = summarise(open_source([DATA / "hta_ddp_nccl_meta_a100"]))["collectives"]["ops"]
    events = json.loads(gzip.decompress((DATA / "hta_ddp_nccl_meta_a100" / "nccl_data.json.gz").read_bytes()))
    kernels = [event for event in events["traceEvents"] if event.get("cat") == "kernel"]
    calls = [event for event in kernels if event["args"].get("Collective name") == "allreduce"]
    moved = sum(e["args"]["In msg nelems"] * 4 for e in calls)  # two ranks: 2 (n - 1) / n is 1
    assert found["op"] == "all_reduce"
    assert found["bus_bytes_per_s"] is None
    assert found["bus_bytes_per_s_at_least"] == pytest.approx(moved / sum(e["dur"] for e in calls) * 1e6)


def test_the_builder_of_worlds_lets_all_ranks_leave_together() -> None:
    world = run([WORLD], 3)
    for calls in world.meetings().values():
        assert len({call.end for call in calls.values()}) == 1
        assert min(call.arrival for call in calls.values()) < max(call.arrival for call in calls.values())
    for calls in world.calls.values():
        assert all(a.end <= b.arrival for a, b in pairwise(calls))


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([0.3, 0.7, 1.0]))
def test_calls_that_tell_their_place_are_matched_across_gaps(seed: int, share: float) -> None:
    world = run(PAIRS, 8, seed=seed)
    rows, meta = rows_of(world, told=True, hosts=True)
    draw = random.Random(seed)
    each = [(rank, call) for rank, calls in world.calls.items() for call in calls]
    kept = [(one, row) for one, row in zip(each, rows["collectives"], strict=True) if draw.random() < share]
    source = MemorySource(meta=meta)
    source.add("collectives", [row | {"sequence": call.number} for (_, call), row in kept])
    source.add("kernels", [row for row in rows["kernels"] if not row["name"].startswith("nccl")])
    meetings: dict[Any, list[Any]] = {}
    for (_, call), _ in kept:
        meetings.setdefault((call.group, call.number), []).append(call)
    met = [calls for calls in meetings.values() if len(calls) > 1]
    found = _across(source)
    assert found.matching.matched == sum(map(len, met))
    waited = 0
    for calls in met:
        latest = max(call.arrival for call in calls)
        waited += sum(min(latest, call.end) - call.arrival for call in calls)
    assert sum(int(one.wait.sum()) for one in found.taken) == waited
    assert sum(one.calls for one in found.left) == len(kept) - sum(map(len, met))


def test_a_rank_that_counts_its_calls_from_the_start_again_is_told() -> None:
    rows, meta = rows_of(run([(0, 1)], 6), told=True, hosts=True)
    again = [row | {"sequence": row["call"] % 4 if row["rank"] else row["call"]} for row in rows["collectives"]]
    found = _across(MemorySource(meta=meta).add("collectives", again).add("kernels", rows["kernels"]))
    assert not found.taken
    assert "rank 1 counts its calls from the start again" in [one.reason for one in found.left]
