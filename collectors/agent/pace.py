"""How often windows may be open: what they cost against the budget, and the rhythm of the program's steps."""

from __future__ import annotations

from collections import deque
from statistics import median

GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1: in step with no period of the program's, spread evenly wherever one stops,
and the same in all ranks. Of two shares the larger picks all that the smaller picks."""

FIRST_SHARE = 0.05
"""Of the time, before anything is known of what windows cost."""
FIRST_S = 0.25
"""Length of windows that this guess weighs as much as, at first."""
KEPT = 1 - 1 / 32
"""What one more window leaves of the weight of those before it. The share must not follow what the program is doing at
the moment: windows that are longer where it does little would tell that it does little."""
JUMP = 4.0
"""A window that cost this many times as much as those before it is heeded at once."""

STEPS = 8
"""The last steps, from which their usual length is told."""
ENOUGH_STEPS = 3
LEAST_NS = 10_000_000
"""To open a window and to close it has its price."""
STALLED = 3.0
"""Times the usual length, from which on a step is no longer one of many."""


class Pace:
    """Share of the time in which windows may be open."""

    def __init__(self) -> None:
        self._cost_ns = 0.0
        self._lasted_ns = 0.0
        self._guess_ns = FIRST_S * 1e9
        self._last = 0.0

    def window(self, cost_ns: int, lasted_ns: int) -> None:
        """A window has closed; cost_ns: what it is reckoned to have cost the program."""
        self._cost_ns = KEPT * self._cost_ns + cost_ns
        self._lasted_ns = KEPT * self._lasted_ns + lasted_ns
        self._guess_ns *= KEPT
        self._last = cost_ns / max(lasted_ns, 1)

    def share(self, available: float) -> float:
        """Of the time, so that windows cost `available` of it, which is above 0."""
        mean = (self._cost_ns + self._guess_ns * available / FIRST_SHARE) / (self._lasted_ns + self._guess_ns)
        return min(1.0, available / max(mean, self._last / JUMP, 1e-9))


class Steps:
    """When steps of the program began; times ns on any one clock."""

    def __init__(self) -> None:
        self._began = 0
        self._count = 0
        self._lasted: deque[int] = deque(maxlen=STEPS)

    def begin(self, now_ns: int) -> None:
        """A step begins, and the one before it has ended."""
        if self._count:
            self._lasted.append(now_ns - self._began)
        self._began = now_ns
        self._count += 1

    def chosen(self, share: float) -> int:
        """How many steps are to be recorded from the one that begins on, where a share of all is; 0 for none.

        As many as last as long as a window has to, at least.
        """
        least, usual_ns = 1, self.usual_ns() or LEAST_NS
        while least * usual_ns < LEAST_NS:
            least *= 2
        chosen = not self._count % least and self._count // least * GOLDEN % 1.0 < share
        return least if chosen else 0

    def usual_ns(self) -> float | None:
        """How long steps last, None where there are too few to tell."""
        return median(self._lasted) if len(self._lasted) >= ENOUGH_STEPS else None

    def flow(self, now_ns: int) -> bool:
        """Whether steps follow one another as they usually do."""
        usual_ns = self.usual_ns()
        return usual_ns is not None and now_ns - self._began < STALLED * usual_ns
