"""One clock: CLOCK_MONOTONIC, and its offset to the epoch."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """offset_ns: epoch minus CLOCK_MONOTONIC; error_ns: half the width of the tightest bracket it was read in."""

    offset_ns: int
    error_ns: int

    @classmethod
    def measure(cls, trials: int = 32) -> Clock:
        """Reads the epoch between two monotonic stamps, and keeps the tightest of `trials`."""
        best: Clock | None = None
        for _ in range(trials):
            before = time.monotonic_ns()
            epoch = time.time_ns()
            after = time.monotonic_ns()
            error = (after - before) // 2
            if best is None or error < best.error_ns:
                best = cls(epoch - before - error, error)
        assert best is not None
        return best

    def epoch_ns(self, mono_ns: int) -> int:
        """Epoch time of a CLOCK_MONOTONIC stamp, ns."""
        return mono_ns + self.offset_ns
