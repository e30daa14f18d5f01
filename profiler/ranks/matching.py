"""Which call of one rank is which of another, by process group.

Ranks of a process group make its calls in one order, so the n-th of each is the same collective. That is checked by
the operations. Calls that tell their place in that order may have gaps between them. Where a rank's trace begins
earlier or ends later than another's, the shift is looked for at which operations agree and ends lie closest together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.calls import Group
from moescope.profiler.ranks.grouping import CLOSE_NS, untold_groups
from moescope.profiler.ranks.matched import BY_GROUP, BY_PAIR, FEW, Matched, Matching, Unmatched, World, ops_of

_MISSING: Final = -1
_MOST_SHIFTS: Final = 512
_OUTSIDE: Final = "made before or after what other ranks recorded"
_ALONE: Final = "recorded by one rank alone: no other had a window open"


def match(world: World) -> Matching:
    """Match the calls of all ranks. world: calls by rank"""
    groups: list[Matched] = []
    left: list[Unmatched] = []
    by_group = _by_group(world)
    for group, rows in sorted(by_group.items(), key=lambda one: (one[0].name, one[0].members)):
        if group.peer is not None:
            continue
        found, lost = _told(world, group, rows) if group.told else ([], [])
        groups += found
        left += lost
    found, lost = _paired(world, by_group)
    groups += found
    left += lost
    found, lost = untold_groups(world)
    groups += found
    left += lost
    matched = sum(int((one.rows >= 0).sum()) for one in groups)
    return Matching(tuple(groups), tuple(left), sum(len(calls) for calls in world.values()), matched)


def _by_group(world: World) -> dict[Group, dict[int, Times]]:
    """Places of each group's calls by rank."""
    found: dict[Group, dict[int, Times]] = {}
    for rank in sorted(world):
        calls = world[rank]
        order = np.argsort(calls.group, kind="stable")
        edges = np.searchsorted(calls.group[order], np.arange(len(calls.groups) + 1))
        for code, group in enumerate(calls.groups):
            found.setdefault(group, {})[rank] = order[edges[code] : edges[code + 1]]
    return found


def _told(world: World, group: Group, rows: dict[int, Times]) -> tuple[list[Matched], list[Unmatched]]:
    """A group that the source names."""
    members = group.ranks
    missing = None if members is None else tuple(rank for rank in members if rank not in world)
    total = sum(len(at) for at in rows.values())
    if members is not None and len(members) == 1:
        return [], [Unmatched(group, total, "a group of one rank")]
    if len(rows) < 2:
        held = "no other rank of its group is in the source" if len(world) > 1 else "the source holds one rank alone"
        return [], [Unmatched(group, total, held)]
    found, lost = (_counted if group.counted else _aligned)(world, rows)
    left = [Unmatched(group, count, reason) for reason, count in lost.items()]
    if found is None:
        return [], left
    ranks, places, ops = found
    return [Matched(group, ranks, places, ops, missing, BY_GROUP, inferred=False)], left


def _paired(world: World, by_group: dict[Group, dict[int, Times]]) -> tuple[list[Matched], list[Unmatched]]:
    """Sends and the receives that they meet: the n-th from one rank to another in a group is the n-th that it gets."""
    sides: dict[tuple[str, int, int], dict[int, Times]] = {}
    for group, rows in by_group.items():
        for rank, at in rows.items() if group.peer is not None else ():
            if len(at) and group.peer is not None and group.peer != rank:
                pair = (rank, group.peer) if group.sends else (group.peer, rank)
                held = sides.setdefault((group.name, *pair), {})
                held[rank] = np.sort(np.concatenate((held[rank], at))) if rank in held else at
    groups: list[Matched] = []
    left: list[Unmatched] = []
    for (name, source, target), rows in sorted(sides.items()):
        between = Group(name, f"{source},{target}", told=True)
        if len(rows) < 2:
            left.append(Unmatched(between, sum(map(len, rows.values())), "the other side of it is not in the source"))
            continue
        found, lost = _aligned(world, rows)
        left += [Unmatched(between, count, reason) for reason, count in lost.items()]
        if found is not None:
            groups.append(Matched(between, *found, (), BY_PAIR, inferred=False))
    return groups, left


Aligned: TypeAlias = tuple[tuple[int, ...], NDArray[np.int64], NDArray[np.object_]]


def _aligned(world: World, rows: dict[int, Times]) -> tuple[Aligned | None, dict[str, int]]:
    """Calls of ranks that made them in one order, by the rank that made most of them; what is left over, by reason."""
    names = {rank: ops_of(world[rank], at) for rank, at in rows.items()}
    first = max(rows, key=lambda rank: (len(rows[rank]), -rank))
    lost: dict[str, int] = {}
    placed: dict[int, NDArray[np.int64]] = {}
    for rank, at in rows.items():
        shift = 0 if rank == first else _shift(world, (first, rows[first], names[first]), (rank, at, names[rank]))
        if shift is None:
            reason = f"rank {rank} makes other calls than rank {first}, or in another order"
            lost[reason] = lost.get(reason, 0) + len(at)
            continue
        line = np.full(len(rows[first]), _MISSING, np.int64)
        low, high = max(shift, 0), min(shift + len(at), len(line))
        line[low:high] = at[low - shift : high - shift]
        outside = len(at) - max(high - low, 0)
        if outside:
            lost[_OUTSIDE] = lost.get(_OUTSIDE, 0) + outside
        placed[rank] = line
    ranks = tuple(sorted(placed))
    if len(ranks) < 2:
        lost["ranks make other calls, or in another order"] = sum(len(rows[rank]) for rank in ranks)
        return None, lost
    places = np.stack([placed[rank] for rank in ranks])
    common = (places >= 0).sum(axis=0) > 1
    alone = int((places[:, ~common] >= 0).sum())
    if alone:
        lost[_OUTSIDE] = lost.get(_OUTSIDE, 0) + alone
    if not common.any():
        return None, lost
    return (ranks, places[:, common], names[first][common]), lost


def _counted(world: World, rows: dict[int, Times]) -> tuple[Aligned | None, dict[str, int]]:
    """Calls that tell their place in the group's order, as `_aligned` has them: those of one place are one."""
    numbers = {rank: world[rank].sequence[at] for rank, at in rows.items()}
    again = [rank for rank, own in numbers.items() if len(np.unique(own)) < len(own)]
    if again:
        reason = f"rank {again[0]} counts its calls from the start again"
        return None, {reason: sum(map(len, rows.values()))}
    ranks, places = tuple(sorted(rows)), np.unique(np.concatenate(list(numbers.values())))
    found = np.full((len(ranks), len(places)), _MISSING, np.int64)
    ops = np.full((len(ranks), len(places)), "", object)
    for row, rank in enumerate(ranks):
        at = np.searchsorted(places, numbers[rank])
        found[row, at], ops[row, at] = rows[rank], ops_of(world[rank], rows[rank])
    here = found != _MISSING
    first = here.argmax(axis=0)
    op = ops[first, np.arange(len(places))]
    odd = (here & (ops != op)).any(axis=0)
    common = (here.sum(axis=0) > 1) & ~odd
    lost = {
        _ALONE: int(here[:, ~common & ~odd].sum()),
        "ranks make other calls, or in another order": int(here[:, odd].sum()),
    }
    lost = {reason: count for reason, count in lost.items() if count}
    return ((ranks, found[:, common], op[common]) if common.any() else None), lost


Line: TypeAlias = tuple[int, Times, NDArray[np.object_]]


def _shift(world: World, first: Line, other: Line) -> int | None:
    """How many calls of the first rank precede the other's first one; None where no shift makes them agree.

    Without a shift where counts and operations agree and ends lie together; else that at which ends lie closest.
    """
    (rank_a, at_a, ops_a), (rank_b, at_b, ops_b) = first, other
    ends_a, ends_b = world[rank_a].ends[at_a], world[rank_b].ends[at_b]
    same = len(at_a) == len(at_b) and bool((ops_a == ops_b).all())
    if same and (len(at_a) < FEW or _spread(ends_a, ends_b) <= CLOSE_NS):
        return 0
    best: list[tuple[float, float, int]] = []
    for shift in _shifts(len(at_a), len(at_b)):
        low, high = max(shift, 0), min(shift + len(at_b), len(at_a))
        if high - low < min(FEW, len(at_b)) or 2 * (high - low) < len(at_b):
            continue
        if not bool((ops_a[low:high] == ops_b[low - shift : high - shift]).all()):
            continue
        a, b = ends_a[low:high], ends_b[low - shift : high - shift]
        known = (a >= 0) & (b >= 0)
        distance = abs(float(np.median((b - a)[known]))) if known.any() else 0.0
        best.append((_spread(a, b), distance, shift))
    if not best:
        return None
    closest = min(spread for spread, _, _ in best)
    # Where calls come at even intervals several shifts look alike: clocks are then trusted to tell which it is.
    alike = [one for one in best if one[0] <= max(3 * closest, CLOSE_NS)]
    chosen = min(alike, key=lambda one: (one[1], abs(one[2])))[2]
    unshifted = next((spread for spread, _, shift in best if shift == 0), None)
    return 0 if same and unshifted is not None and unshifted <= 10 * closest else chosen


def _shifts(count_a: int, count_b: int) -> Sequence[int]:
    """Shifts worth trying, the nearest to a common start or a common end first."""
    ends = count_a - count_b
    near = {base + step for base in (0, ends) for step in range(-_MOST_SHIFTS // 2, _MOST_SHIFTS // 2 + 1)}
    return sorted((shift for shift in near if -count_b < shift < count_a), key=lambda shift: (abs(shift), shift))


def _spread(ends_a: Times, ends_b: Times) -> float:
    """Median distance of the differences between ends from their median, ns: small where calls end together."""
    known = (ends_a >= 0) & (ends_b >= 0)
    if not known.any():
        return float("inf")
    apart = (ends_b - ends_a)[known]
    return float(np.median(np.abs(apart - np.median(apart))))
