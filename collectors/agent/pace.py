"""How often windows may be open: what they cost against the budget, and the rhythm of the program's steps."""

from __future__ import annotations

import time
from collections import deque
from statistics import median

GOLDEN = 0.6180339887498949
"""Multiples of the golden ratio, modulo 1, are spread evenly wherever one stops, in step with few periods, and the same
in all ranks. Of two shares the larger picks all that the smaller picks."""

FIRST_SHARE = 0.05
"""Of the time, before anything is known of what windows cost."""
FIRST_NS = 250_000_000
"""Length of windows that this guess weighs as much as, at first."""
GUESS_KEPT = 1 - 1 / 6
"""What one more window leaves of that."""
KEPT = 1 - 1 / 32
"""What one more window leaves of the weight of those before it. The share must not follow what the program is doing at
the moment: windows that are longer where it does little would tell that it does little."""
HEAVIEST_NS = 50_000_000
"""Weight of a window of this length and longer: those of a program that loads must not outlast what it does then."""
JUMP = 2.0
"""A window that cost this many times as much as those before it is heeded at once."""

STEPS = 8
"""The last steps, from which their usual length is told."""
ENOUGH_STEPS = 3
LEAST_NS = 10_000_000
"""Length of a window of steps, at least: to open one and to close it has its price."""
STALLED = 3.0
"""Times the usual length, from which on a step is no longer one of many."""
RESTS_NS = 2_000_000_000
"""The same for steps of which too few are known."""

PERIOD_S = 0.5
"""One slice in each, counted on CLOCK_MONOTONIC, in all ranks of a host together: ranks wait for one another, so a
window that only one of them has open would slow down all, once for each."""
MIN_WINDOW_S = 0.004
WHOLE_STEPS_S = 0.5
"""Windows are whole steps alone where as many are affordable as one in this time, on average; at most twice this, which
is what a process that is killed may leave unrecorded, lies between two."""
SOME_STEPS_S = 30.0
"""Where one in this time is, steps have their part of the windows beside slices: only a whole step shows what waits for
what from its start to its end."""
STEPS_PART = 2 / 3
DENSE = 0.5
"""Share of the time from which on slices begin with their periods."""
STARVED_S = 5.0
"""Without a window for so long, and for two steps, the next slice may open as late as the main thread answers."""
EAGER_S = 0.1
"""Between two slices before the first with operators in it: a run of a second has to show something, too. An empty one
costs next to nothing."""
EAGER_WINDOWS = 100
"""So many at most: a process may have none of its own."""
FIRST_WINDOWS = 4
"""With operators in them, before which any may be late: a short run has to show something."""

SAFETY = 0.3
"""Share of the budget that is spent on what is reckoned: switching, and what ranks wait for one another, cost as much
again and more (paired measurements on two ranks)."""
LEAST_LEFT = 0.1
"""Share of it that windows have at least, whatever else costs: who runs for long has many of them in any case."""
EARLY_LEFT = 0.2
"""The same until there are `EARLY_WINDOWS`. Two ranks on two cores took 2.9 % longer with twice as much, 2.3 and
2.5 % with this, 2.6 % with half of it (16 to 20 pairs each, half a minute, 2 % of budget; their intervals overlap)."""
EARLY_WINDOWS = 30
"""With operators in them."""


class Pace:
    """Share of the time in which windows may be open."""

    def __init__(self) -> None:
        self._cost = 0.0
        self._weight = 0.0
        self._guess = float(FIRST_NS)
        self._last = 0.0

    def window(self, cost_ns: int, lasted_ns: int) -> None:
        """A window has closed; cost_ns: what it is reckoned to have cost the program."""
        self._last = cost_ns / max(lasted_ns, 1)
        weight = min(lasted_ns, HEAVIEST_NS)
        self._cost = KEPT * self._cost + self._last * weight
        self._weight = KEPT * self._weight + weight
        self._guess *= GUESS_KEPT

    def share(self, available: float) -> float:
        """Of the time, so that windows cost `available` of it, which is above 0."""
        mean = (self._cost + self._guess * available / FIRST_SHARE) / (self._weight + self._guess)
        return min(1.0, available / max(mean, self._last / JUMP, 1e-9))


class Steps:
    """When steps of the program began; times ns on any one clock. One thread tells, another may ask."""

    def __init__(self) -> None:
        self._began = 0
        self._number = -1
        self._place = -1
        self._lasted: deque[int] = deque(maxlen=STEPS)
        self._picked = 0.0

    def begin(self, now_ns: int, number: int) -> None:
        """A step begins, and the one before it has ended; number: as the program counts, if it does."""
        if self._place >= 0:
            self._lasted.append(now_ns - self._began)
        # Where the program counts, ranks that began to be recorded at different steps choose the same ones.
        self._place = number if number == self._number + 1 else self._place + 1
        self._began, self._number = now_ns, number

    def pick(self, share: float) -> None:
        """From now on windows of steps are to be open for a share of the time."""
        usual_ns = self.usual_ns() or LEAST_NS
        self._picked = share * min(1.0, usual_ns / (LEAST_NS + usual_ns / 2))

    def chosen(self) -> bool:
        """Whether a window is to begin with the step that begins."""
        return self._place * GOLDEN % 1.0 < self._picked

    def usual_ns(self) -> float | None:
        """How long steps last, None where there are too few to tell."""
        lasted = tuple(self._lasted)
        return median(lasted) if len(lasted) >= ENOUGH_STEPS else None

    def flow(self, now_ns: int) -> bool:
        """Whether steps follow one another as they usually do."""
        usual_ns = self.usual_ns()
        return usual_ns is not None and now_ns - self._began < STALLED * usual_ns

    def rest(self, now_ns: int) -> bool:
        """Whether none has begun for long, or none at all."""
        if self.usual_ns() is None:
            return not self._began or now_ns - self._began >= RESTS_NS
        return not self.flow(now_ns)


def left_of(budget: float, spent: float, windows: int) -> float:
    """What windows may cost, as a share of the time, where all else costs `spent` of it and there were so many."""
    least = EARLY_LEFT if windows < EARLY_WINDOWS else LEAST_LEFT
    return max(least * budget, SAFETY * budget - spent)


def steps_share(share: float, step_s: float) -> float:
    """Share of the time for windows of whole steps, of what windows have; the rest of it is for slices."""
    window_s = max(step_s, LEAST_NS / 1e9)
    if window_s <= WHOLE_STEPS_S * share:
        return share
    part = STEPS_PART * share
    return part if window_s <= SOME_STEPS_S * part else 0.0


def until_next(share: float) -> float:
    """How long it is to the next slice, s, where slices have this share of the time.

    Each lies at a place of its own in its period. Where they are longer than what may lie between two of them they
    begin with the period, and where they are shorter than a window can be there is one in every second.
    """
    now = time.monotonic()
    period = int(now / PERIOD_S)
    if share > DENSE:
        late_s = now - period * PERIOD_S
        return 0.0 if late_s < (1 - share) * PERIOD_S or share >= 1.0 else PERIOD_S - late_s
    every = 2 if share * PERIOD_S < MIN_WINDOW_S else 1
    while True:
        start = (period + period * GOLDEN % 1.0) * PERIOD_S
        if start > now and period % every == 0:
            return start - now
        period += 1
