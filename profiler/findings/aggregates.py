"""What findings are drawn from: the figures of a run over one window, few however long it was."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

from moescope.profiler.snapshot import CollectiveRow, ExpertRow, KernelRow, PhaseRow, QuantisationRow, Shares
from moescope.profiler.steps.durations import Steps

STRAGGLER_SHARE: Final = 0.02
WHOLE: Final = 0.9
"""Share of a rank's time that is recorded, from which on it is taken for all of it rather than for windows."""


@dataclass(frozen=True, slots=True)
class KernelTime:
    """All kernels of one name: what is left of a `KernelRow` when ranks are merged."""

    name: str
    operator: str
    kind: str
    calls: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class CallCount:
    """All calls of one collective on one group: what is left of a `CollectiveRow` when ranks are merged."""

    op: str
    group: str
    calls: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class Aggregates:
    """What the findings are drawn from, all over one window.

    shares: summed over devices, unscaled; step_ns: mean step, None where no step is known or they are not alike;
    rank_compute: how long each rank computes, over the mean time that ranks were looked at; worst_exposed_ns: start of
    the longest exposed stretch; stage: what advice is for, empty where it has no name;
    recorded_ns, extent_ns: what `coverage` is the quotient of; devices: entries of the answer's `ranks`, over the whole
    recording, none while it is live; waiting: share of the time in collectives that ranks wait for the last one, None
    where it is not told from transfer
    """

    shares: Shares
    step_ns: float | None
    phases: tuple[PhaseRow, ...]
    kernels: tuple[KernelRow | KernelTime, ...]
    collectives: tuple[CollectiveRow | CallCount, ...]
    experts: tuple[ExpertRow, ...]
    rank_tokens: tuple[int, ...]
    quantisation: tuple[QuantisationRow, ...]
    rank_compute: dict[int, float]
    coverage: float
    dropped: int
    finished: bool
    short_kernels: int
    worst_exposed_ns: int | None
    stage: str = ""
    steps: Steps = field(default=Steps())
    recorded_ns: int = 0
    extent_ns: int = 0
    devices: tuple[dict[str, Any], ...] = ()
    waiting: float | None = None


ENOUGH_STEPS: Final = 10
ENOUGH_NS: Final = 1_000_000_000
"""Recorded time, in steps or where there are none in ns, from which on samples of ranks compare."""


def compute_by_rank(seen: dict[int, tuple[int, int, int]], step_ns: float | None) -> dict[int, float]:
    """How long each rank computes, over the mean time that ranks were looked at.

    A rank that was seen for less time than another, as a trace that begins late, does not compute longer for that.
    Where operators were recorded in windows, what they hold stands for the rest, and the shares alone compare: when a
    rank's first and last window happened to be says nothing, and a few windows may hold other parts of a step on
    each.

    seen: of each rank its compute, its recorded time and the time from the first of it to the last, ns; step_ns: how
    long steps last, None where that is not known
    """
    seen = {rank: times for rank, times in seen.items() if times[1] > 0}
    if any(recorded < WHOLE * extent for _, recorded, extent in seen.values()):
        enough = ENOUGH_STEPS * step_ns if step_ns else ENOUGH_NS
        seen = {rank: times for rank, times in seen.items() if times[1] >= enough}
        return {rank: compute / recorded for rank, (compute, recorded, _) in seen.items()}
    mean = sum(extent for _, _, extent in seen.values()) / len(seen) if seen else 0
    return {rank: compute / mean for rank, (compute, _, _) in seen.items() if mean}


def straggler(rank_compute: dict[int, float]) -> tuple[int, float] | None:
    """The rank that computes longest and by how much more than the median rank, as a share of the recorded time.

    None for one rank alone or when the ranks differ by less than 2 % of it.
    """
    if len(rank_compute) < 2:
        return None
    ordered = sorted(rank_compute.values())
    median = ordered[(len(ordered) - 1) // 2]
    rank = max(rank_compute, key=lambda number: rank_compute[number])
    excess = rank_compute[rank] - median
    return (rank, excess) if excess >= STRAGGLER_SHARE else None
