"""When a GPU's sample was, on the host's clock: from what must have come before and after it.

Samples bear the GPU's time. A sample that has been read ended before it was read, and one that was taken after sampling
began began after that: each reading bounds the distance between the two clocks from one side. Not yet run on a GPU.
"""

from __future__ import annotations

from collections import deque

KEPT_NS = 30_000_000_000
"""How long a reading bounds the distance: clocks drift apart by some microseconds a second."""


class GpuClock:
    """Turns times of a GPU into those of CLOCK_MONOTONIC, ns."""

    def __init__(self, began_ns: int) -> None:
        """began_ns: CLOCK_MONOTONIC just before sampling began"""
        self.began_ns = began_ns
        self._least: int | None = None
        self._most: deque[tuple[int, int]] = deque()

    def read(self, first_start: int, last_end: int, read_ns: int) -> None:
        """Samples from first_start to last_end (GPU's time) had been read at read_ns (CLOCK_MONOTONIC)."""
        if self._least is None:
            self._least = self.began_ns - first_start
        bound = read_ns - last_end
        while self._most and self._most[-1][1] >= bound:
            self._most.pop()
        self._most.append((read_ns, bound))
        while self._most[0][0] < read_ns - KEPT_NS:
            self._most.popleft()

    @property
    def offset_ns(self) -> int:
        """What is added to the GPU's time; 0 before the first reading. The nearest reading after a sample has it."""
        return self._most[0][1] if self._most else 0

    @property
    def error_ns(self) -> int | None:
        """How much too late times may be told; None before the first reading. Drift since the first one is in it."""
        if self._least is None or not self._most:
            return None
        return max(self._most[0][1] - self._least, 0)
