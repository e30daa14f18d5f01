"""How far the share of an amount in what was recorded may be from its share of all steps: a ratio over steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.profiler.overlap.intervals import Times

FEWEST: Final = 4
"""Steps from which on their scatter is told."""


@dataclass(frozen=True, slots=True)
class Sums:
    """One rank's steps with recorded time r and an amount x in it, ns. seen: their number; the others: sums over them

    recorded: of r; squared: of r*r; amount: of x; amount_squared: of x*x; product: of x*r
    """

    seen: int
    recorded: int
    squared: float
    amount: int
    amount_squared: float
    product: float


def sums_of(amounts: Times, recorded: Times) -> Sums:
    """Of steps: [steps] each, ns."""
    x, r = amounts.astype(np.float64), recorded.astype(np.float64)
    seen = int((recorded > 0).sum())
    return Sums(seen, int(recorded.sum()), float(r @ r), int(amounts.sum()), float(x @ x), float(x @ r))


def share(ranks: Sequence[Sums]) -> tuple[float, float | None]:
    """Share R = sum x / sum r of the recorded time, which is above 0, and its standard error as a ratio over steps.

    sqrt(n/(n-1) sum (x - R r)^2) / sum r, the ratio estimator's (Cochran, Sampling Techniques, 6.3), by how each rank's
    steps scatter: what one rank has more of than another in every step is no scatter. What ranks do in a step goes
    together: n counts steps, not steps times ranks. None for fewer than FEWEST steps.
    """
    recorded = sum(one.recorded for one in ranks)
    found = sum(one.amount for one in ranks) / recorded
    count = max(one.seen for one in ranks)
    if count < FEWEST:
        return found, None
    squares = 0.0
    for one in ranks:
        squares += one.amount_squared - 2 * found * one.product + found * found * one.squared
        if one.seen:
            squares -= (one.amount - found * one.recorded) ** 2 / one.seen
    return found, math.sqrt(max(squares, 0.0) * len(ranks) * count / (count - 1)) / recorded


def width(steps: int, coverage: float) -> float:
    """Times the standard error, half the width of an interval that holds the share of all steps 95 % of the time.

    Student's t, less the part that was recorded (Cochran, Sampling Techniques, 2.6). steps: with recorded time
    """
    return _student(steps - 1) * math.sqrt(max(1 - coverage, 0.0))


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t, within 4 % from 3 degrees of freedom on.

    The first terms of its expansion (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5).
    """
    z = 1.959964
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    return z + first / freedom + second / freedom**2
