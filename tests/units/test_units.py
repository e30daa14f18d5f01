"""Units held over time, against a count of every nanosecond and every unit."""

import statistics

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.hardware.residency import resident_ctas
from moescope.profiler.hardware.table import UnitLimits, hardware_named, hardware_of
from moescope.profiler.overlap.intervals import union
from moescope.profiler.overlap.sweep import kernels_by_device, sweep
from moescope.profiler.units.budget import budget_json, unit_budget
from moescope.profiler.units.held import launch_columns, unit_answer, units_by_launch, with_launch_text
from tests.live_recording import MemorySource, kernel

H100 = hardware_named("NVIDIA H100 80GB HBM3").unit_limits
A100 = hardware_named("NVIDIA A100-SXM4-80GB").unit_limits


@pytest.mark.parametrize(
    ("limits", "threads", "registers", "shared", "expected"),
    [
        (H100, 512, 110, 332, 1),  # 110 registers: 16 warps of 3584 fill 57344 of 65536
        (H100, 384, 168, 215504, 1),  # shared memory: 227 KiB hold one
        (H100, 128, 32, 0, 16),  # threads: 2048 / 128
        (H100, 64, 16, 0, 32),  # blocks: no more than 32
        (H100, 1024, 64, 0, 1),  # 32 warps of 2048 registers fill the file
        (H100, 256, 255, 16384, 1),  # 8 warps of 8192 registers fill it
        (A100, 544, 96, 87568, 1),  # NCCL's ring all-reduce
        (A100, 256, 32, 40 * 1024, 4),  # four of 41 KiB in 164 KiB
        (A100, 128, 40, 0, 12),  # 1280 registers a warp: 51 warps, 48 in whole quarters, 12 blocks of 4
        (H100, 1024, 255, 0, 1),  # cannot be, but ran
    ],
)
def test_resident_blocks_are_those_of_the_occupancy_calculator(limits, threads, registers, shared, expected):
    assert resident_ctas(limits, threads, registers, shared) == expected


def test_unknown_limits_bound_nothing():
    assert resident_ctas(None, 128, 32, 0) is None
    assert resident_ctas(H100, None, 32, 0) is None
    assert resident_ctas(UnitLimits(2048, None, None, None, 0), 1024, None, None) == 2


def slow(rows, window, total, units_of):
    """Units of each role at each nanosecond, and both together."""
    comm, compute, held = [], [], []
    for now in range(*window):
        open_now = [
            (row["kind"], units_of(row)) for row in rows if row["start_ns"] <= now < row["start_ns"] + row["dur_ns"]
        ]
        alone = {kind: sum(units for role, units in open_now if role == kind) for kind in ("comm", "compute", "fused")}
        comm.append(min(alone["comm"] + alone["fused"], total))
        compute.append(min(alone["compute"] + alone["fused"], total))
        held.append(min(sum(alone.values()), total))
    return comm, compute, held


def lower_median(values):
    known = [value for value in values if value > 0]
    return statistics.median_low(known) if known else None


launch = st.fixed_dictionaries(
    {
        "start": st.integers(0, 60),
        "dur": st.integers(0, 30),
        "kind": st.sampled_from(["comm", "compute", "fused", "memory"]),
        "grid": st.sampled_from(["1,1,1", "4,2,1", "20,1,1", "7,1,1", "300,1,1", None]),
        "block": st.sampled_from(["128,1,1", "32,4,1", "512,1,1", "1024,1,1", None]),
        "registers": st.sampled_from([16, 64, 128, None]),
        "shared_bytes": st.sampled_from([0, 50_000, 200_000, None]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(launch, min_size=1, max_size=7), st.lists(st.tuples(st.integers(0, 80), st.integers(1, 40)), max_size=3)
)
def test_inferred_units_equal_a_count_of_every_nanosecond(launches, cuts):
    total = 24
    rows = [
        kernel(
            one["start"],
            one["dur"],
            stream=str(at),
            **{key: one[key] for key in one if key not in ("start", "dur", "kind")},
        )
        | {"device": "cuda:0", "kind": one["kind"]}
        for at, one in enumerate(launches)
    ]
    source = MemorySource(meta={"hardware": {"sms": total, "gpu": "NVIDIA H100 80GB HBM3"}}).add("kernels", rows)
    (device,) = kernels_by_device(source.table("kernels"))
    recorded = union(np.array([low for low, _ in cuts], np.int64), np.array([low + n for low, n in cuts], np.int64))
    swept = sweep(device, recorded if cuts else None, (0, 90))
    hardware = hardware_of(source.meta, 0, "cuda:0")
    answer = unit_answer(device, swept, source.table("kernels"), source.table("unit_intervals"), hardware)

    def packed(row):
        if row["grid"] is None:
            return 0
        ctas = int(np.prod([int(part) for part in row["grid"].split(",")]))
        threads = int(np.prod([int(part) for part in row["block"].split(",")])) if row["block"] else None
        resident = resident_ctas(H100, threads, row["registers"], row["shared_bytes"]) or 1
        return min(total, -(-ctas // resident))

    inside = [any(low <= now < low + n for low, n in cuts) or not cuts for now in range(90)]
    comm, compute, held = (
        [value for value, counts in zip(values, inside, strict=True) if counts]
        for values in slow(rows, (0, 90), total, packed)
    )
    use = answer.use
    if not any(row["grid"] for row in rows):
        assert use.comm_typical is None
        assert use.reason
        return
    assert use.evidence == "inferred"
    shown = {"comm": (use.comm_typical, use.comm_peak), "compute": (use.compute_typical, use.compute_peak)}
    unknown = set()
    for role, held_by_role in (("comm", comm), ("compute", compute)):
        own = [row for row in rows if row["kind"] in (role, "fused")]
        if own and not any(row["grid"] for row in own):
            unknown.add(role)
            assert shown[role] == (None, None)
        else:
            typical = lower_median(held_by_role) if own else 0
            assert shown[role] == (typical, max(held_by_role, default=0))
    assert (answer.steps is None) == bool(unknown)
    if unknown:
        return
    budget = unit_budget(answer.steps, swept, total, bins=9)
    if not any(inside):
        assert budget is None
        return
    counted = sum(inside)
    assert use.comm_time_share == pytest.approx(sum(comm) / (total * counted))
    both = [taken for one, other, taken in zip(comm, compute, held, strict=True) if one and other]
    assert budget.both_share == pytest.approx(len(both) / counted)
    assert budget.taken_typical == (statistics.median_low(both) if both else None)
    assert budget.held_share == pytest.approx(sum(held) / (total * counted))
    assert budget.full_share == pytest.approx(sum(taken == total for taken in held) / counted)
    assert sum(split.share for split in budget.splits) <= budget.both_share + 1e-9
    for split in budget.splits:
        pairs = list(zip(comm, compute, held, strict=True))
        assert split.share == pytest.approx(pairs.count((split.comm, split.compute, split.taken)) / counted)
    whole = slow(rows, (0, 90), total, packed)[0]
    for at, mean in enumerate(budget.comm.tolist()):
        part = [whole[now] for now in range(10 * at, 10 * at + 10) if inside[now]]
        assert mean == pytest.approx(sum(part) / len(part)) if part else np.isnan(mean)


def test_twenty_and_a_hundred_and_twelve_of_a_hundred_and_thirty_two_are_told_together():
    deep = {"grid": "20,1,1", "block": "512,1,1", "registers": 110, "shared_bytes": 332}
    persistent = {"grid": "112,1,1", "block": "384,1,1", "registers": 168, "shared_bytes": 220_000}
    rows = [
        kernel(0, 60, "comm", stream="20", **deep) | {"device": "cuda:0"},
        kernel(20, 80, stream="7", **persistent) | {"device": "cuda:0"},
    ]
    source = MemorySource(meta={"hardware": {"gpu": "NVIDIA H800"}}).add("kernels", rows)
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    hardware = hardware_of(source.meta, 0, "cuda:0")
    answer = unit_answer(device, swept, source.table("kernels"), source.table("unit_intervals"), hardware)
    told = budget_json(unit_budget(answer.steps, swept, 132), answer.use.evidence)
    assert told["together"] == [{"comm": 20, "compute": 112, "taken": 132, "share": pytest.approx(0.4)}]
    assert (told["both_share"], told["full_share"], told["taken_typical"]) == (
        pytest.approx(0.4),
        pytest.approx(0.4),
        132,
    )
    assert (answer.use.comm_typical, answer.use.comm_at_most, answer.use.compute_typical) == (20, 20, 112)


def test_light_blocks_hold_at_least_what_packs_them_and_at_most_a_unit_each():
    table = pa.table({"grid": ["64,1,1"], "block": ["128,1,1"], "registers": [32], "shared_bytes": [0]})
    needed, spread = units_by_launch(table, np.array([0]), 132, H100)
    assert (needed.tolist(), spread.tolist()) == ([4], [64])


interval = st.tuples(
    st.sampled_from(["comm", "compute", "other"]), st.integers(0, 3), st.integers(0, 40), st.integers(0, 20)
)


@settings(max_examples=60, deadline=None)
@given(st.lists(interval, min_size=1, max_size=10).filter(lambda held: any(one[0] != "other" for one in held)))
def test_recorded_units_equal_a_count_of_every_nanosecond(intervals):
    source = MemorySource(meta={"hardware": {"sms": 4}})
    source.add("kernels", [kernel(0, 60, "memory") | {"device": "cuda:0"}])
    source.add(
        "unit_intervals",
        [
            {"rank": 0, "device": "cuda:0", "launch": 1, "unit": unit, "role": role}
            | {"start_ns": start, "end_ns": start + dur}
            for role, unit, start, dur in intervals
        ]
        + [{"rank": 0, "launch": 7, "unit": 3, "role": "comm", "start_ns": 0, "end_ns": 60}],  # a core of the host
    )
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    hardware = hardware_of(source.meta, 0, "cuda:0")
    answer = unit_answer(device, swept, source.table("kernels"), source.table("unit_intervals"), hardware)
    counts = {"comm": [], "compute": [], "either": []}
    for now in range(60):
        held = [(role, unit) for role, unit, start, dur in intervals if start <= now < start + dur]
        for role in ("comm", "compute"):
            counts[role].append(len({unit for other, unit in held if other == role}))
        counts["either"].append(len({unit for role, unit in held if role != "other"}))
    assert answer.use.evidence == "measured"
    assert answer.use.comm_typical == (lower_median(counts["comm"]) or 0)
    assert answer.use.comm_time_share == pytest.approx(sum(counts["comm"]) / 240)
    budget = unit_budget(answer.steps, swept, 4, bins=6)
    assert budget.held_share == pytest.approx(sum(counts["either"]) / 240)
    both = sum(bool(one and other) for one, other in zip(counts["comm"], counts["compute"], strict=True))
    assert budget.both_share == pytest.approx(both / 60)
    assert budget.compute.tolist() == pytest.approx(
        [sum(counts["compute"][at : at + 10]) / 10 for at in range(0, 60, 10)]
    )


def test_launch_shapes_survive_their_way_through_one_text():
    rows = [
        {"grid": "20,1,1", "block": "512,1,1", "registers": 110, "shared_bytes": 332},
        {"grid": "7,1,1", "block": None, "registers": None, "shared_bytes": None},
    ]
    table = pa.Table.from_pylist(rows)
    texts = with_launch_text(table).column("launch").to_pylist()
    assert launch_columns(texts).to_pylist() == rows
    assert with_launch_text(pa.table({**{name: pa.nulls(1) for name in rows[0]}})).column("launch").to_pylist() == [
        None
    ]


def test_kernels_that_record_themselves_are_measured_beside_those_that_do_not():
    rows = [
        kernel(0, 50, "comm", stream="20", grid="4,1,1") | {"device": "cuda:0"},
        kernel(0, 100, stream="7", grid="6,1,1") | {"device": "cuda:0"},
    ]
    source = MemorySource(meta={"hardware": {"sms": 8}}).add("kernels", rows)
    source.add(
        "unit_intervals",
        [
            {"rank": 0, "device": "cuda:0", "launch": 1, "unit": unit, "role": "comm", "start_ns": 0, "end_ns": 40}
            for unit in (1, 2, 2)
        ],
    )
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    hardware = hardware_of(source.meta, 0, "cuda:0")
    answer = unit_answer(device, swept, source.table("kernels"), source.table("unit_intervals"), hardware)
    assert (answer.use.comm_typical, answer.use.compute_typical, answer.use.evidence) == (2, 6, "inferred")
    assert unit_budget(answer.steps, swept, 8).full_share == pytest.approx(0.4)
