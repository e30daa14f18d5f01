"""Who communicates with whom where no process group is told: ranks whose calls end together are taken for a group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.calls import Calls, Group
from moescope.profiler.ranks.matched import BY_NAME, BY_STREAM, FEW, Matched, Unmatched, World, ops_of

CLOSE_NS: Final = 50_000
_CLOSE_SHARE: Final = 0.02


def untold_groups(world: World) -> tuple[list[Matched], list[Unmatched]]:
    """Calls whose group is not told: by stream where all ranks have the same ones, else by kernel name."""
    rows = {rank: np.flatnonzero(_is_untold(calls)) for rank, calls in world.items()}
    rows = {rank: at for rank, at in rows.items() if len(at)}
    if not rows:
        return [], []
    nobody = Group("", "", told=False)
    if len(world) < 2:
        return [], [Unmatched(nobody, sum(map(len, rows.values())), "the source holds one rank alone")]
    several = [rank for rank in rows if len(world[rank].devices) > 1]
    if several:
        reason = f"rank {several[0]} communicates on {len(world[several[0]].devices)} devices and no group is told"
        return [], [Unmatched(nobody, sum(map(len, rows.values())), reason)]
    by_stream = {
        rank: _split(at, world[rank].group[at], [g.name for g in world[rank].groups]) for rank, at in rows.items()
    }
    how = BY_STREAM
    if not _same_sequences(world, by_stream):
        by_stream = {rank: _split(at, world[rank].label[at], world[rank].labels) for rank, at in rows.items()}
        how = BY_NAME
    found: list[Matched] = []
    left: list[Unmatched] = []
    for key in sorted({key for held in by_stream.values() for key in held}):
        lines = {rank: held[key] for rank, held in by_stream.items() if key in held}
        matched, lost = _clustered(world, Group(key, "", told=False), lines, how)
        found += matched
        left += lost
    return found, left


def _is_untold(calls: Calls) -> NDArray[np.bool_]:
    told = np.array([group.told for group in calls.groups], np.bool_)
    return ~told[calls.group] if len(calls) else np.empty(0, np.bool_)


def _split(at: Times, codes: NDArray[np.int32], names: Sequence[str]) -> dict[str, Times]:
    return {names[code]: at[codes == code] for code in np.unique(codes).tolist()}


def _same_sequences(world: World, lines: dict[int, dict[str, Times]]) -> bool:
    """Whether all ranks launch the same kernels in the same order on streams of the same names."""
    first = next(iter(lines))
    wanted = {key: _labels(world[first], at) for key, at in lines[first].items()}
    return all(
        held.keys() == wanted.keys() and all(_labels(world[rank], at) == wanted[key] for key, at in held.items())
        for rank, held in lines.items()
    )


def _labels(calls: Calls, at: Times) -> list[str]:
    return [calls.labels[code] for code in calls.label[at].tolist()]


def _clustered(world: World, group: Group, lines: dict[int, Times], how: str) -> tuple[list[Matched], list[Unmatched]]:
    """Split ranks with equally many calls into those whose calls end together."""
    left: list[Unmatched] = []
    counts = [len(at) for at in lines.values()]
    usual = max(set(counts), key=lambda count: (counts.count(count), count))
    odd = sum(count for count in counts if count != usual)
    if odd:
        left.append(Unmatched(group, odd, "ranks have different numbers of these calls, and no group is told"))
    ranks = [rank for rank, at in lines.items() if len(at) == usual]
    if len(ranks) < 2 or usual < FEW:
        few = f"fewer than {FEW} calls a rank, and no group is told" if usual < FEW else "only one rank makes them"
        return [], [*left, Unmatched(group, usual * len(ranks), few)]
    ends = np.stack([world[rank].ends[lines[rank]] for rank in ranks])
    found: list[Matched] = []
    waiting = np.arange(len(ranks))
    alone = 0
    while len(waiting):
        close = _close(ends[waiting[0]], ends[waiting])
        members = waiting[close]
        waiting = waiting[~close]
        if len(members) < 2:
            alone += usual
            continue
        chosen = tuple(ranks[place] for place in members)
        rows = np.stack([lines[rank] for rank in chosen])
        ops = ops_of(world[chosen[0]], rows[0])
        named = Group(group.name, ",".join(map(str, chosen)), told=False)
        found.append(Matched(named, chosen, rows, ops, (), how, inferred=True))
    if alone:
        left.append(Unmatched(group, alone, "no other rank's calls end together with these, and no group is told"))
    return found, left


def _close(first: Times, ends: NDArray[np.int64]) -> NDArray[np.bool_]:
    """[ranks] whether calls end together with the first rank's, whatever the clocks' offset.

    Together: nine in ten lie within 50 µs of the usual difference, or within 2 % of the usual time between calls.
    """
    apart = (ends - first).astype(np.float64)
    line = apart - drift(first, apart)
    deviation = np.quantile(np.abs(line - np.median(line, axis=1, keepdims=True)), 0.9, axis=1)
    between = float(np.median(np.abs(np.diff(first))))
    close: NDArray[np.bool_] = deviation <= max(CLOSE_NS, _CLOSE_SHARE * between)
    return close


def drift(times: Times, apart: NDArray[np.float64]) -> NDArray[np.float64]:
    """[ranks, collectives] the part of the differences that grows with time: a line from the first to the last third.

    times: [collectives] ns; apart: [ranks, collectives] differences to one rank's ends, ns
    """
    third = len(times) // 3
    if third < FEW:
        return np.zeros_like(apart)
    first, last = slice(0, third), slice(len(times) - third, None)
    span = float(np.median(times[last]) - np.median(times[first]))
    if span <= 0:
        return np.zeros_like(apart)
    slope = (np.median(apart[:, last], axis=1) - np.median(apart[:, first], axis=1)) / span
    grown: NDArray[np.float64] = slope[:, None] * (times - times[0]).astype(np.float64)
    return grown
