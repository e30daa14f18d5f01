"""When a GPU's sample was, on the host's clock: from what must have come before and after it.

Samples bear the GPU's time. A sample that has been read ended before it was read, and one that was taken after sampling
began began after that: each reading bounds the distance between the two clocks from one side. They part slowly, so an
old bound counts for less and less. Not yet run on a GPU.
"""

from __future__ import annotations

from collections import deque
from typing import Final

DRIFT: Final = 50e-6
"""How fast the clocks may part, s/s: crystals of servers keep to that."""
KEPT_NS: Final = 10_000_000_000
"""How long a reading bounds the distance, and after how long what was known at the beginning is of no use."""


class GpuClock:
    """Turns a GPU's times into those of CLOCK_MONOTONIC, ns: never too early where clocks part no faster than DRIFT."""

    def __init__(self, began_ns: int) -> None:
        """began_ns: CLOCK_MONOTONIC just before sampling began"""
        self.began_ns = began_ns
        self.offset_ns = 0
        """What is added to the GPU's time, since the last reading; 0 before the first."""
        self.error_ns: int | None = None
        """How much too late times were told at most, in the first KEPT_NS; None before the first reading."""
        self._least = 0
        self._most: deque[tuple[int, int]] = deque()

    def read(self, first_start: int, last_end: int, read_ns: int) -> None:
        """Samples from first_start to last_end (GPU's time), the newest, had been read at read_ns (CLOCK_MONOTONIC)."""
        if not self._most:
            self._least = self.began_ns - first_start
        self._most.append((read_ns, read_ns - last_end))
        while self._most[0][0] < read_ns - KEPT_NS:
            self._most.popleft()
        self.offset_ns = min(bound + round(DRIFT * (read_ns - when)) for when, bound in self._most)
        passed = read_ns - self.began_ns
        if passed <= KEPT_NS or self.error_ns is None:
            late = self.offset_ns - self._least + round(DRIFT * passed)
            self.error_ns = max(late, self.error_ns or 0)
