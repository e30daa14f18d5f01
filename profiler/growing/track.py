"""A growing set of disjoint intervals that says at once how much of any range it covers."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Times: TypeAlias = NDArray[np.int64]
Intervals: TypeAlias = tuple[Times, Times]

EVER = int(np.iinfo(np.int64).min // 4)
"""Before any time of a recording."""


class Track:
    """Sorted disjoint intervals, ns, that are rewritten from some time on and otherwise only read.

    A sweep over a live recording touches the newest stretch alone; every question about an older window is two
    binary searches.
    """

    __slots__ = ("_before", "_ends", "_size", "_starts")

    def __init__(self) -> None:
        self._starts: Times = np.empty(16, np.int64)
        self._ends: Times = np.empty(16, np.int64)
        self._before: Times = np.zeros(17, np.int64)
        self._size = 0

    def __len__(self) -> int:
        return self._size

    @property
    def starts(self) -> Times:
        """starts: [intervals], ns."""
        return self._starts[: self._size]

    @property
    def ends(self) -> Times:
        """ends: [intervals], ns."""
        return self._ends[: self._size]

    def replace_from(self, time_ns: int, starts: Times, ends: Times) -> None:
        """Forget everything from `time_ns` on and put these intervals there.

        starts, ends: [intervals], ns, sorted, disjoint, none before time_ns
        """
        kept = int(np.searchsorted(self.ends, time_ns, side="right"))
        if kept < self._size and self._starts[kept] < time_ns:
            self._ends[kept] = time_ns
            self._before[kept + 1] = self._before[kept] + time_ns - self._starts[kept]
            kept += 1
        if kept and len(starts) and self._ends[kept - 1] == starts[0]:
            kept -= 1
            starts = np.concatenate((self._starts[kept : kept + 1], starts[1:]))
        size = kept + len(starts)
        self._reserve(size, kept)
        self._starts[kept:size] = starts
        self._ends[kept:size] = ends
        np.cumsum(ends - starts, out=self._before[kept + 1 : size + 1])
        self._before[kept + 1 : size + 1] += self._before[kept]
        self._size = size

    def covered(self, times: Times) -> Times:
        """Time covered before each of `times`, ns; its differences are what ranges hold.

        times: any shape, ns
        """
        if not self._size:
            return np.zeros(np.shape(times), np.int64)
        index = np.searchsorted(self.starts, times, side="right")
        over = self._ends[np.maximum(index, 1) - 1] - times
        return self._before[index] - np.where(index > 0, np.maximum(over, 0), 0)

    def within(self, starts: Times, ends: Times) -> Times:
        """Time covered inside each range, ns.

        starts, ends: [ranges], ns
        """
        return self.covered(ends) - self.covered(starts)

    def holds(self, times: Times) -> NDArray[np.bool_]:
        """Whether each of `times` lies in an interval."""
        if not self._size:
            return np.zeros(np.shape(times), np.bool_)
        index = np.searchsorted(self.starts, times, side="right")
        held: NDArray[np.bool_] = (index > 0) & (times < self._ends[np.maximum(index, 1) - 1])
        return held

    def length(self, start_ns: int, end_ns: int) -> int:
        """Time covered inside one range, ns."""
        below, above = self.covered(np.array([start_ns, end_ns], np.int64))
        return int(above - below)

    def between(self, start_ns: int, end_ns: int) -> Intervals:
        """The intervals inside one range, cut to it."""
        low = int(np.searchsorted(self.ends, start_ns, side="right"))
        high = int(np.searchsorted(self.starts, end_ns, side="left")) if start_ns < end_ns else low
        high = max(low, high)
        starts, ends = self._starts[low:high], self._ends[low:high]
        return np.maximum(starts, start_ns), np.minimum(ends, end_ns)

    def _reserve(self, size: int, kept: int) -> None:
        if size <= len(self._starts):
            return
        capacity = max(size, 2 * len(self._starts))
        starts, ends = np.empty(capacity, np.int64), np.empty(capacity, np.int64)
        before = np.zeros(capacity + 1, np.int64)
        starts[:kept], ends[:kept] = self._starts[:kept], self._ends[:kept]
        before[: kept + 1] = self._before[: kept + 1]
        self._starts, self._ends, self._before = starts, ends, before
