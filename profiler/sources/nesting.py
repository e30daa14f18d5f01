"""Ranges that lie in one another: who encloses whom, what is innermost at a time, which ranges are leaves.

Ranges that nest without exception, as a thread's do, are worked on whole levels at a time; all others one by one.
"""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.sources.columns import Ints

NOBODY: Final = -1
_DEEPEST: Final = 256
"""Levels beyond which working by level does not pay."""


def outer_first(starts: Ints, ends: Ints) -> Ints:
    """[ranges] indices in order of start, the longer first."""
    return np.lexsort((-ends, starts))


def _levels(depth: Ints) -> list[Ints]:
    """Indices of each depth, rising."""
    order = np.argsort(depth, kind="stable")
    return np.split(order, np.cumsum(np.bincount(depth))[:-1]) if len(depth) else []


def _nested(starts: Ints, ends: Ints) -> tuple[Ints, list[Ints]] | None:
    """Parents of ranges of some length, and the ranges of each depth; None where any two overlap without nesting.

    starts, ends: [ranges] ns, ordered by `outer_first`, none empty
    """
    # Of the ranges before one, those that have not ended are around it: by their number it lies that deep.
    depth = np.arange(len(starts)) - np.searchsorted(np.sort(ends), starts, side="right")
    if len(depth) and depth.max() > _DEEPEST:
        return None
    levels = _levels(depth)
    found = np.full(len(starts), NOBODY, np.int64)
    for upper, lower in pairwise(levels):
        at = np.searchsorted(upper, lower) - 1
        if (at < 0).any():
            return None
        found[lower] = upper[at]
    inner = found != NOBODY
    above = found[inner]
    if (ends[above] < ends[inner]).any() or (ends[above] <= starts[inner]).any():
        return None
    return found, levels


def parents(starts: Ints, ends: Ints) -> Ints:
    """[ranges] index of the innermost range that encloses each, NOBODY at the top.

    starts, ends: [ranges] ns, ordered by `outer_first`
    """
    if (ends > starts).all():
        nested = _nested(starts, ends)
        if nested is not None:
            return nested[0]
    found: list[int] = []
    opened: list[int] = []
    until = ends.tolist()
    for at, start in enumerate(starts.tolist()):
        end = until[at]
        while opened and (until[opened[-1]] <= start or until[opened[-1]] < end):
            opened.pop()
        found.append(opened[-1] if opened else NOBODY)
        opened.append(at)
    return np.array(found, np.int64)


class Innermost:
    """Which range is innermost at a time: of those that hold it, the one that began last, of these the shortest.

    starts, ends: [ranges] ns, in any order; ranges may overlap without nesting, as those of several threads do
    """

    def __init__(self, starts: Ints, ends: Ints) -> None:
        order = outer_first(starts, ends)
        self._order = order[ends[order] > starts[order]]
        self._starts, self._ends = starts[self._order], ends[self._order]
        nested = _nested(self._starts, self._ends)
        self._parents = nested[0] if nested is not None else None
        if nested is None:
            self._edges, self._owners = _owners(self._starts, self._ends)

    def at(self, times: Ints) -> Ints:
        """[times] index of the innermost range at each, NOBODY outside all."""
        if self._parents is None:
            found = self._owners[np.searchsorted(self._edges, times, side="right")]
        else:
            found = np.searchsorted(self._starts, times, side="right") - 1
            waiting = np.flatnonzero(found != NOBODY)
            while len(waiting):
                waiting = waiting[self._ends[found[waiting]] <= times[waiting]]
                found[waiting] = self._parents[found[waiting]]
                waiting = waiting[found[waiting] != NOBODY]
        return np.where(found == NOBODY, NOBODY, self._order[found]) if len(self._order) else found


def _owners(starts: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """The innermost range between every two edges: edges [n]; owners [n + 1], the first before all edges.

    starts, ends: [ranges] ns, ordered by `outer_first`, none empty
    """
    edges = np.unique(np.concatenate((starts, ends)))
    owners = np.full(len(edges) + 1, NOBODY, np.int64)
    begin, until = starts.tolist(), ends.tolist()
    candidates: list[int] = []
    upcoming = 0
    for slot, edge in enumerate(edges.tolist(), 1):
        while upcoming < len(begin) and begin[upcoming] <= edge:
            heappush(candidates, -upcoming)
            upcoming += 1
        while candidates and until[-candidates[0]] <= edge:
            heappop(candidates)
        if candidates:
            owners[slot] = -candidates[0]
    return edges, owners


def leaves(starts: Ints, ends: Ints) -> Ints:
    """Indices of the ranges that do the work themselves: those below cover less than half of it, and are absorbed.

    starts, ends: [ranges] ns of one thread, ordered by `outer_first`
    """
    nested = _nested(starts, ends) if (ends > starts).all() else None
    above = parents(starts, ends) if nested is None else nested[0]
    lengths = ends - starts
    inner = above != NOBODY
    below = np.zeros(len(starts), np.int64)
    np.add.at(below, above[inner], lengths[inner])
    works: NDArray[np.bool_] = (2 * below < lengths) | ((lengths == 0) & (below == 0))
    absorbed = works.copy()
    inside = np.zeros(len(starts), np.bool_)
    if nested is None:
        for at, parent in enumerate(above.tolist()):
            if parent != NOBODY and absorbed[parent]:
                inside[at] = absorbed[at] = True
    else:
        for level in nested[1][1:]:
            inside[level] = absorbed[above[level]]
            absorbed[level] |= inside[level]
    return np.flatnonzero(works & ~inside)
