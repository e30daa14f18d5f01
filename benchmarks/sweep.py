"""The sweep behind every figure: intervals a second into unions and their overlap, next to plain Python.

python -m benchmarks.sweep
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from benchmarks.report import save
from moescope.profiler.intervals import Times, length
from moescope.profiler.overlap import NO_PHASE, DeviceKernels, Sweep, sweep

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
    kinds = np.repeat(np.array(["compute", "comm"]), [len(compute[0]), len(comm[0])])
    rows = draw.permutation(count)
    phases = np.full(count, NO_PHASE, np.int64)
    return DeviceKernels(0, "cpu", starts[rows], ends[rows], kinds[rows], kinds, phases, np.arange(count))


def _ordered(kernels: DeviceKernels) -> DeviceKernels:
    """In order of start, as `kernels_by_device` hands them to the sweep."""
    order = np.argsort(kernels.starts, kind="stable")
    return replace(kernels, starts=kernels.starts[order], ends=kernels.ends[order], kinds=kernels.kinds[order])


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
    save(
        "sweep",
        "python -m benchmarks.sweep",
        {
            "intervals": INTERVALS,
            "intervals_per_s": rate,
            "intervals_per_s_with_ordering": from_rows,
            "baseline": "edges sorted and walked in Python, the same figures",
            "baseline_intervals_per_s": baseline,
            "goal_intervals_per_s": GOAL,
            "ratio_to_goal": rate / GOAL,
            "ratio_to_baseline": rate / baseline,
        },
    )


if __name__ == "__main__":
    main()
