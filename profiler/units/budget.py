"""The budget of execution units: what communication and compute take of them together, and how that goes over time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.sweep import Sweep
from moescope.profiler.units.over_time import UnitSteps, binned_units, weighted_median

SERIES_BINS: Final = 50
_SPLITS: Final = 4


@dataclass(frozen=True, slots=True)
class Split:
    """Communication holds `comm` units while compute holds `compute`; share: of the counted time, 0..1."""

    comm: int
    compute: int
    taken: int
    share: float


@dataclass(frozen=True, slots=True)
class UnitBudget:
    """Shares are of the counted time, 0..1.

    both_share: communication and compute hold units at once; full_share: every unit is held; wanted_more_share: what
    runs at once would take more units than there are; held_share: unit time held by either, over units x time;
    taken_typical: time-weighted median of what both take together while both hold some, None where they never do;
    splits: the most frequent divisions between the two; bin_ns, comm, compute: mean units by bin, NaN where not counted
    """

    total: int
    both_share: float
    full_share: float
    wanted_more_share: float
    held_share: float
    taken_typical: int | None
    splits: tuple[Split, ...]
    bin_ns: int
    comm: NDArray[np.float64]
    compute: NDArray[np.float64]


def unit_budget(steps: UnitSteps, swept: Sweep, total: int, bins: int = SERIES_BINS) -> UnitBudget | None:
    """Budget of one device; None where no time is counted. total: units; bins: of the series over the window"""
    span = swept.span_ns
    if span <= 0 or total <= 0:
        return None
    counted = steps.counted
    both = (steps.comm > 0) & (steps.compute > 0)
    low, high = swept.window
    width = max(-(-(high - low) // bins), 1)
    edges = np.minimum(low + width * np.arange(-(-(high - low) // width) + 1, dtype=np.int64), high)
    return UnitBudget(
        total=total,
        both_share=int(counted[both].sum()) / span,
        full_share=int(counted[steps.held >= total].sum()) / span,
        wanted_more_share=int(counted[steps.wanted > total].sum()) / span,
        held_share=float((steps.held * counted).sum()) / (total * span),
        taken_typical=weighted_median(steps.held, counted * both),
        splits=_splits(steps, both, span),
        bin_ns=width,
        comm=binned_units(steps, steps.comm, swept.recorded, edges),
        compute=binned_units(steps, steps.compute, swept.recorded, edges),
    )


def _splits(steps: UnitSteps, both: NDArray[np.bool_], span: int) -> tuple[Split, ...]:
    lasting: dict[tuple[int, int, int], int] = {}
    pick = both & (steps.counted > 0)
    columns = (steps.comm[pick], steps.compute[pick], steps.held[pick], steps.counted[pick])
    for comm, compute, taken, ns in zip(*(column.tolist() for column in columns), strict=True):
        lasting[comm, compute, taken] = lasting.get((comm, compute, taken), 0) + ns
    longest = sorted(lasting.items(), key=lambda item: (-item[1], item[0]))[:_SPLITS]
    return tuple(Split(*key, ns / span) for key, ns in longest)


def budget_json(budget: UnitBudget, evidence: str) -> dict[str, Any]:
    """The budget as a value of `summary --json`; times µs."""
    typical: dict[str, Any] = {"taken_typical": budget.taken_typical}
    if budget.taken_typical is None:
        typical["taken_typical_reason"] = "communication and compute never hold units at once"
    return {
        "total": budget.total,
        "both_share": budget.both_share,
        "full_share": budget.full_share,
        "wanted_more_share": budget.wanted_more_share,
        "held_share": budget.held_share,
        **typical,
        "together": [
            {"comm": one.comm, "compute": one.compute, "taken": one.taken, "share": one.share} for one in budget.splits
        ],
        "series": {"bin_us": budget.bin_ns / 1000, "comm": _plain(budget.comm), "compute": _plain(budget.compute)},
        "evidence": evidence,
    }


def _plain(values: NDArray[np.float64]) -> list[float | None]:
    return [None if np.isnan(value) else round(value, 1) for value in values.tolist()]
