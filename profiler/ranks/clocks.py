"""Clocks of many ranks on one: all ranks leave a synchronising collective together, so what lies between their ends
is what lies between their clocks.

A clock's offset is the median, over collectives, of its end minus the common end; the common end of a collective is the
median of its ranks' ends, each on the common clock. The two are found in turn. Over long spans the offset is a line
(Theil-Sen), kept only where it brings ends closer together than a constant does. Ranks of one host read one clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.matched import FEW, Matched, Matching, World, ends_of

Floats = NDArray[np.float64]

SYNCHRONISING: Final = frozenset(
    {"all_reduce", "all_gather", "reduce_scatter", "all_to_all", "barrier", "dispatch", "combine", "p2p"}
)
"""Operations that no rank can leave before all have entered; a broadcast's root can: it serves where they lack."""

_ROUNDS: Final = 6
_LONG_NS: Final = 5_000_000_000
_LINE_CALLS: Final = 16
_LINE_POINTS: Final = 64
_LINE_GAIN: Final = 0.8


@dataclass(frozen=True, slots=True)
class RankClock:
    """One rank's clock against the reference's.

    offset_ns: what its clock shows more than the reference's at `Clocks.origin_ns`, None with a reason where it is not
    known; drift: by how much that grows in each ns; collectives: that it rests on; residual_ns: how far 95 % of the
    rank's ends lie at most from the common ends
    """

    offset_ns: float | None
    drift: float = 0.0
    collectives: int = 0
    residual_ns: float | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Clocks:
    """All clocks.

    reference: the rank whose clock is kept; clock_of: by rank, the number of the clock that it reads; residual_ns,
    worst_ns: 95th percentile and largest distance of an end from its collective's common end, after alignment, None
    with the reason where no collective was matched
    """

    reference: int | None
    origin_ns: int
    by_rank: Mapping[int, RankClock]
    clock_of: Mapping[int, int]
    collectives: int
    residual_ns: float | None
    worst_ns: float | None
    reason: str = ""

    def uncertain_ns(self, ranks: Sequence[int]) -> float:
        """By how much times of these ranks may be off one another, ns: nothing where they read one clock."""
        return 2 * (self.residual_ns or 0.0) if len({self.clock_of[rank] for rank in ranks}) > 1 else 0.0

    def aligned(self, rank: int, times: Times) -> Times:
        """Times of a rank on the reference's clock, ns; as they are where the rank's clock is not known."""
        clock = self.by_rank.get(rank)
        if clock is None or clock.offset_ns is None:
            return times
        since = (times - self.origin_ns).astype(np.float64)
        return times - np.rint(clock.offset_ns + clock.drift * since).astype(np.int64)


@dataclass(frozen=True, slots=True)
class _Meeting:
    """One group's synchronising collectives: clocks: [ranks] number of each rank's clock; ends: [ranks, collectives]
    ns from the origin, NaN where not known"""

    clocks: NDArray[np.int64]
    ranks: tuple[int, ...]
    ends: Floats


def align(world: World, matching: Matching, hosts: Mapping[int, str]) -> Clocks:
    """Align the clocks of all ranks.

    hosts: by rank, the host whose clock it reads; ranks that it does not name have clocks of their own
    """
    ranks = sorted(world)
    names = [hosts.get(rank) or f"rank {rank}" for rank in ranks]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    clock_of = {rank: numbers[name] for rank, name in zip(ranks, names, strict=True)}
    origin = min((int(calls.starts.min()) for calls in world.values() if len(calls)), default=0)
    meetings = [met for one in matching.groups if (met := _meeting(world, one, clock_of, origin)) is not None]
    lines = _solve(meetings, len(numbers))
    apart = _apart(meetings, lines)
    pooled = np.abs(np.concatenate([np.empty(0), *(one[~np.isnan(one)] for one in apart)]))
    counts, residuals = _by_rank(meetings, apart)
    by_rank = {}
    for rank in ranks:
        offset, drift = lines[clock_of[rank]]
        by_rank[rank] = (
            RankClock(None, reason=f"fewer than {FEW} matched collectives tie it to the reference")
            if np.isnan(offset)
            else RankClock(float(offset), float(drift), counts.get(rank, 0), residuals.get(rank))
        )
    return Clocks(
        reference=min((rank for rank in ranks if by_rank[rank].offset_ns is not None), default=None),
        origin_ns=origin,
        by_rank=by_rank,
        clock_of=clock_of,
        collectives=sum(met.ends.shape[1] for met in meetings),
        residual_ns=float(np.quantile(pooled, 0.95)) if len(pooled) else None,
        worst_ns=float(pooled.max()) if len(pooled) else None,
        reason="" if len(pooled) else f"fewer than {FEW} collectives of one group could be matched across ranks",
    )


def _meeting(world: World, one: Matched, clock_of: Mapping[int, int], origin: int) -> _Meeting | None:
    pick = np.isin(one.ops, list(SYNCHRONISING))
    ends, known = ends_of(world, one)
    if int(((known.sum(axis=0) > 1) & pick).sum()) >= FEW:
        ends, known = ends[:, pick], known[:, pick]
    shared = known.sum(axis=0) > 1
    if int(shared.sum()) < FEW:
        return None
    held = np.where(known, (ends - origin).astype(np.float64), np.nan)[:, shared]
    return _Meeting(np.array([clock_of[rank] for rank in one.ranks], np.int64), one.ranks, held)


def _solve(meetings: list[_Meeting], count: int) -> Floats:
    """[clocks, 2] offset and drift of each clock against that of the lowest number that meets others; NaN for clocks
    that do not."""
    lines = np.full((count, 2), np.nan)
    if not count:
        return lines
    lines[min((int(met.clocks.min()) for met in meetings), default=0)] = 0
    changed = True
    while changed:
        changed = False
        for met in meetings:
            known = ~np.isnan(lines[met.clocks, 0])
            if not known.any() or known.all():
                continue
            common = _median(met.ends[known] - _shown(met, lines)[known], 0)
            for clock in np.unique(met.clocks[~known]).tolist():
                offset = _median((met.ends - common)[met.clocks == clock].ravel())
                if not np.isnan(offset):
                    lines[clock] = offset, 0
                    changed = True
    _refine(meetings, lines)
    return lines


def _refine(meetings: list[_Meeting], lines: Floats) -> None:
    """Common ends from all clocks and each clock from common ends, in turn; the reference's clock stays."""
    known = np.flatnonzero(~np.isnan(lines[:, 0]))
    reference = int(known[0])
    seats: dict[int, list[tuple[int, int]]] = {}
    for place, met in enumerate(meetings):
        for row, clock in enumerate(met.clocks.tolist()):
            seats.setdefault(clock, []).append((place, row))
    for turn in range(_ROUNDS):
        apart = _apart(meetings, lines)
        for clock, held in seats.items():
            if np.isnan(lines[clock, 0]):
                continue
            times = np.concatenate([meetings[place].ends[row] for place, row in held])
            gaps = np.concatenate([apart[place][row] for place, row in held])
            there = ~np.isnan(gaps)
            lines[clock] += _line(times[there], gaps[there], straight=turn >= _ROUNDS // 2)
        lines -= lines[reference]


def _line(times: Floats, gaps: Floats, *, straight: bool) -> tuple[float, float]:
    """Offset and drift that explain the gaps best: a constant, or a line where that is worth it."""
    if not len(gaps):
        return 0.0, 0.0
    level = float(np.median(gaps))
    if not straight or len(gaps) < _LINE_CALLS or times.max() - times.min() < _LONG_NS:
        return level, 0.0
    order = np.argsort(times, kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, min(len(order), _LINE_POINTS)).astype(np.int64)]
    t, g = times[chosen], gaps[chosen]
    low, high = np.triu_indices(len(t), 1)
    there = t[high] > t[low]
    slope = float(np.median((g[high] - g[low])[there] / (t[high] - t[low])[there]))
    offset = float(np.median(gaps - slope * times))
    before, after = np.median(np.abs(gaps - level)), np.median(np.abs(gaps - slope * times - offset))
    return (offset, slope) if after < _LINE_GAIN * before else (level, 0.0)


def _shown(met: _Meeting, lines: Floats) -> Floats:
    """[ranks, collectives] by how much each rank's clock is ahead of the reference's at each end."""
    offset, drift = lines[met.clocks, 0], lines[met.clocks, 1]
    ahead: Floats = offset[:, None] + drift[:, None] * met.ends
    return ahead


def _apart(meetings: list[_Meeting], lines: Floats) -> list[Floats]:
    """[ranks, collectives] of each group: how far each end lies behind the common one, on the common clock."""
    found = []
    for met in meetings:
        common = met.ends - _shown(met, lines)
        found.append(common - _median(common, 0))
    return found


def _by_rank(meetings: list[_Meeting], apart: list[Floats]) -> tuple[dict[int, int], dict[int, float]]:
    """Collectives of each rank, and the 95th percentile of how far its ends lie from the common ones, ns."""
    gaps: dict[int, list[Floats]] = {}
    for met, gap in zip(meetings, apart, strict=True):
        for place, rank in enumerate(met.ranks):
            gaps.setdefault(rank, []).append(gap[place][~np.isnan(gap[place])])
    joined = {rank: np.abs(np.concatenate(parts)) for rank, parts in gaps.items()}
    return (
        {rank: len(values) for rank, values in joined.items()},
        {rank: float(np.quantile(values, 0.95)) for rank, values in joined.items() if len(values)},
    )


def _median(values: Floats, axis: int | None = None) -> Floats:
    """Median of what is known along an axis, NaN where nothing is."""
    if axis is None:
        known = values[~np.isnan(values)]
        return np.float64(np.median(known)) if len(known) else np.float64(np.nan)  # type: ignore[return-value]
    ordered = np.sort(values, axis=axis)  # NaN last
    count = (~np.isnan(values)).sum(axis=axis)
    low, high = np.maximum((count - 1) // 2, 0), np.minimum(count // 2, values.shape[axis] - 1)
    columns = np.arange(values.shape[1])
    found: Floats = (ordered[low, columns] + ordered[high, columns]) / 2
    found[count == 0] = np.nan
    return found
