"""The sweep behind every figure: intervals a second into unions and their overlap, next to plain Python.

python -m benchmarks.sweep
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pyarrow as pa

from benchmarks.report import save
from moescope.collectors.schema import arrow_schema
from moescope.profiler.classify.classifier import classify
from moescope.profiler.overlap.intervals import Times, in_order, length
from moescope.profiler.overlap.sweep import NO_PHASE, DeviceKernels, Sweep, kernels_by_device, sweep

NAMES = ("nvjet_hsh_128x256_64x4_2x1_v_bz_coopB_TNN", "ncclDevKernel_AllReduce_Sum_bf16_RING_LL")
CLASSES = tuple(classify(name) for name in NAMES)
INTERVALS = 5_000_000
BASELINE_INTERVALS = 200_000
GOAL = 5_000_000
REPEATS = 3


def _intervals(count: int) -> DeviceKernels:
    """A device's kernels, computing and communicating, in an order of rows that is not that of time."""
    draw = np.random.default_rng(0)

    def stream(number: int, gap: int, dur: int) -> tuple[Times, Times]:
        starts = np.cumsum(draw.integers(1, gap, number))
        return starts, starts + draw.integers(1, dur, number)

    compute = stream(count * 4 // 5, 10_000, 12_000)
    comm = stream(count - len(compute[0]), 40_000, 50_000)
    starts, ends = np.concatenate((compute[0], comm[0])), np.concatenate((compute[1], comm[1]))
    codes = np.repeat(np.array([0, 1], np.int32), [len(compute[0]), len(comm[0])])
    rows = draw.permutation(count)
    phases = np.full(count, NO_PHASE, np.int64)
    words = np.array([one.kind for one in CLASSES], object)[codes[rows]]
    return DeviceKernels(
        0, "cuda:0", starts[rows], ends[rows], words, words, phases, np.arange(count), codes[rows], CLASSES
    )


def _ordered(kernels: DeviceKernels) -> DeviceKernels:
    """In order of start, as `kernels_by_device` hands them to the sweep."""
    order = in_order(kernels.starts)
    return replace(
        kernels,
        starts=kernels.starts[order],
        ends=kernels.ends[order],
        kinds=kernels.kinds[order],
        codes=kernels.codes[order],
    )


def _table(kernels: DeviceKernels) -> pa.Table:
    """The same rows as a recording's `kernels`."""
    count = len(kernels.starts)
    known = {
        "rank": pa.repeat(pa.scalar(0, pa.int32()), count),
        "device": pa.repeat("cuda:0", count),
        "name": pa.array(NAMES).take(pa.array(kernels.codes)),
        "start_ns": pa.array(kernels.starts),
        "dur_ns": pa.array(kernels.ends - kernels.starts),
    }
    schema = arrow_schema("kernels")
    return pa.Table.from_arrays([known.get(one.name, pa.nulls(count, one.type)) for one in schema], schema=schema)


def _figures(swept: Sweep) -> tuple[int, int, int, int]:
    """busy, compute, overlapped, exposed: ns"""
    return length(swept.busy), length(swept.compute), length(swept.overlapped), length(swept.exposed)


def _plain(intervals: list[tuple[int, int, bool]]) -> tuple[int, int, int, int]:
    """The same by walking over every edge in order, with nothing but lists and integers.

    intervals: start, end, whether it computes
    """
    edges = [(start, 1, 0) if compute else (start, 0, 1) for start, _, compute in intervals]
    edges += [(end, -1, 0) if compute else (end, 0, -1) for _, end, compute in intervals]
    edges.sort()
    computing = talking = busy = compute_ns = both = exposed = last = 0
    for t, first, second in edges:
        if computing:
            compute_ns += t - last
            if talking:
                both += t - last
        elif talking:
            exposed += t - last
        if computing or talking:
            busy += t - last
        computing += first
        talking += second
        last = t
    return busy, compute_ns, both, exposed


def _seconds(action: Callable[[], object]) -> float:
    """Median processor time."""
    found = []
    for _ in range(REPEATS):
        start = time.process_time()
        action()
        found.append(time.process_time() - start)
    return sorted(found)[REPEATS // 2]


def main() -> None:
    """Prints and keeps the result; stops where the two do not agree."""
    small = _intervals(BASELINE_INTERVALS)
    ordered = _ordered(small)
    triples = list(
        zip(ordered.starts.tolist(), ordered.ends.tolist(), (ordered.kinds == "compute").tolist(), strict=True)
    )
    expected = _plain(triples)
    baseline = BASELINE_INTERVALS / _seconds(lambda: _plain(triples))
    if _figures(sweep(ordered)) != expected:
        raise SystemExit(f"the sweep gives {_figures(sweep(ordered))}, plain Python {expected}")
    mixed = _intervals(INTERVALS)
    ordered = _ordered(mixed)
    rate = INTERVALS / _seconds(lambda: _figures(sweep(ordered)))
    from_rows = INTERVALS / _seconds(lambda: _figures(sweep(_ordered(mixed))))
    print(f"sweep {rate / 1e6:.1f} M intervals/s in order of start, on one core; plain Python {baseline / 1e6:.2f} M/s")
    print(f"      {from_rows / 1e6:.1f} M intervals/s with ordering rows that lie in random order")
    table = _table(mixed)
    (found,) = kernels_by_device(table)
    if _figures(sweep(found)) != _figures(sweep(ordered)):
        raise SystemExit("the sweep of the table is not that of its rows")
    from_table = INTERVALS / _seconds(lambda: _figures(sweep(kernels_by_device(table)[0])))
    print(f"      {from_table / 1e6:.1f} M rows/s from a table in random order, with classifying every row")
    save(
        "sweep",
        "python -m benchmarks.sweep",
        {
            "intervals": INTERVALS,
            "intervals_per_s": rate,
            "intervals_per_s_with_ordering": from_rows,
            "rows_per_s_from_a_table_in_random_order": from_table,
            "baseline": "edges sorted and walked in Python, the same figures",
            "baseline_intervals_per_s": baseline,
            "goal_intervals_per_s": GOAL,
            "ratio_to_goal": rate / GOAL,
            "ratio_to_baseline": rate / baseline,
        },
    )


if __name__ == "__main__":
    main()
