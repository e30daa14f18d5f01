"""Ranges of one thread that lie in one another: who encloses whom, what is innermost at a time, which are leaves."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

import numpy as np

Range = tuple[int, int, str]
"""start, end, name."""


def _in_order(ranges: Sequence[Range]) -> list[Range]:
    return sorted(ranges, key=lambda one: (one[0], -one[1]))


def _parents(ordered: Sequence[Range]) -> list[int]:
    """Index of the innermost range around each, -1 at the top; ordered by start, the longer first."""
    parents, open_ranges = [], list[int]()
    for at, (start, end, _) in enumerate(ordered):
        while open_ranges and (ordered[open_ranges[-1]][1] <= start or ordered[open_ranges[-1]][1] < end):
            open_ranges.pop()
        parents.append(open_ranges[-1] if open_ranges else -1)
        open_ranges.append(at)
    return parents


class Nest:
    """Ranges of one thread, in order of start.

    ids, starts, ends: [ranges] int64
    """

    def __init__(self, ranges: Sequence[Range], *, first_id: int) -> None:
        ordered = _in_order(ranges)
        self.names = [name for _, _, name in ordered]
        self.starts = np.array([start for start, _, _ in ordered], np.int64)
        self.ends = np.array([end for _, end, _ in ordered], np.int64)
        self.ids = np.arange(first_id, first_id + len(ordered), dtype=np.int64)
        self._first_id = first_id
        self._parents = _parents(ordered)
        self._starts = self.starts.tolist()
        self._ends = self.ends.tolist()

    def parent_ids(self) -> list[int | None]:
        """`id` of the range around each; None at the top."""
        return [None if parent < 0 else self._first_id + parent for parent in self._parents]

    def innermost(self, time: int) -> int | None:
        """`id` of the innermost range that holds `time`, None outside all."""
        at = bisect_right(self._starts, time) - 1
        while at >= 0 and self._ends[at] <= time:
            at = self._parents[at]
        return None if at < 0 else self._first_id + at


def leaves(ranges: Sequence[Range]) -> list[Range]:
    """Ranges that do the work themselves: those below cover less than half of it, and are absorbed."""
    ordered = _in_order(ranges)
    parents = _parents(ordered)
    below = [0] * len(ordered)
    for at, parent in enumerate(parents):
        if parent >= 0:
            below[parent] += ordered[at][1] - ordered[at][0]
    absorbed = [False] * len(ordered)
    found = []
    for at, (start, end, _) in enumerate(ordered):
        parent = parents[at]
        if parent >= 0 and absorbed[parent]:
            absorbed[at] = True
        elif 2 * below[at] < end - start or (end == start and not below[at]):
            absorbed[at] = True
            found.append(ordered[at])
    return found
