"""Which recorded stretches hold whole steps: in the others nothing can move past the stretch's own ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Intervals, Times
from moescope.profiler.steps.durations import quantile_step

if TYPE_CHECKING:
    from moescope.profiler.source import Source

FEWEST: Final = 4
"""Stretches with whole steps from which on the others are left out."""
ALIKE: Final = 2.0
"""How many times as long as the median step, or as short, a step may be to stand for the others."""
SLACK: Final = 20
"""A step may reach out of what was recorded by this part of its length: before the first operator, and behind the last,
lies time of the host alone."""


def steps_of(source: Source) -> list[dict[str, Any]]:
    """Rows of the steps of the stage that takes most of the time."""
    rows = [row for row in source.table("steps").to_pylist() if row["dur_ns"] is not None and row["dur_ns"] > 0]
    total: dict[str, int] = {}
    for row in rows:
        total[row["stage"] or ""] = total.get(row["stage"] or "", 0) + row["dur_ns"]
    main = max(total, key=lambda stage: total[stage], default="")
    return [row for row in rows if (row["stage"] or "") == main]


def with_whole_steps(
    stretches: Intervals, source: Source, ranks: Iterable[int], aligned: Callable[[int, Times], Times]
) -> Intervals | None:
    """Those in which each of the ranks has a whole step; None where there are too few of them.

    stretches: what all ranks recorded, on the common clock; aligned: a rank's times on it
    """
    rows = steps_of(source)
    median = quantile_step([row["dur_ns"] for row in rows]) or 0
    # A slice holds whole steps where these are short: that they fit is what they have in common.
    rows = [row for row in rows if median / ALIKE <= row["dur_ns"] <= median * ALIKE]
    whole = np.ones(len(stretches[0]), np.bool_)
    for rank in ranks:
        own = [row for row in rows if row["rank"] == rank]
        starts = np.array([row["start_ns"] for row in own], np.int64)
        lasts = np.array([row["dur_ns"] for row in own], np.int64)
        slack = lasts // SLACK
        whole &= _holds(stretches, aligned(rank, starts + slack), aligned(rank, starts + lasts - slack))
    if whole.sum() < FEWEST:
        return None
    return stretches[0][whole], stretches[1][whole]


def _holds(stretches: Intervals, starts: Times, ends: Times) -> NDArray[np.bool_]:
    """[stretches] whether any of the ranges lies in each."""
    held = np.zeros(len(stretches[0]), np.bool_)
    if len(held) and len(starts):
        at = np.searchsorted(stretches[0], starts, side="right") - 1
        held[at[(at >= 0) & (ends <= stretches[1][np.maximum(at, 0)])]] = True
    return held
