"""How many execution units each role holds over time, as one step function over common edges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Intervals, Times, covered_before, covered_within, union

ROLES = ("comm", "compute", "fused")
"""Fused kernels communicate and compute on the same units: they count once in what both hold together."""


_FEW_VALUES = 1 << 17
_EXACT = 1 << 53
"""Sums of whole numbers are exact in float64 below this."""

Held: TypeAlias = tuple[Times, Times, Times]
"""Starts and ends (ns) of what holds units, and which unit or how many: [n] each."""


@dataclass(frozen=True, slots=True)
class UnitSteps:
    """From edges[i] until edges[i + 1] communication holds comm[i] units, compute compute[i], both together held[i].

    edges: [steps + 1] ns; comm, compute, held, wanted: [steps] units, none above the device's number but wanted, what
    all launches would take; counted: [steps] ns of each step inside the counted time
    """

    edges: Times
    comm: Times
    compute: Times
    held: Times
    wanted: Times
    counted: Times


def unit_steps(kernels: Mapping[str, Held], recorded: Intervals, total: int) -> UnitSteps:
    """Steps of one device from what its kernels hold.

    kernels: by role of ROLES, starts and ends (ns) and units of each kernel; recorded: the counted time; total: units
    """
    none = np.empty(0, np.int64)
    parts = {role: kernels.get(role, (none, none, none)) for role in ROLES}
    edges = _edges([times for starts, ends, _ in parts.values() for times in (starts, ends)])
    if len(edges) < 2:
        return UnitSteps(edges[:0], none, none, none, none, none)
    sums = {role: _summed(edges, *part) for role, part in parts.items()}
    wanted = sums["comm"] + sums["compute"] + sums["fused"]
    return UnitSteps(
        edges=edges,
        comm=np.minimum(sums["comm"] + sums["fused"], total),
        compute=np.minimum(sums["compute"] + sums["fused"], total),
        held=np.minimum(wanted, total),
        wanted=wanted,
        counted=covered_within(recorded, edges[:-1], edges[1:]),
    )


def recorded_unit_steps(roles: Mapping[str, Held], recorded: Intervals) -> UnitSteps:
    """Steps from recorded intervals; a unit that several launches or threads hold at once counts once.

    roles: `comm` and `compute`, starts and ends (ns) and unit of each interval
    """
    none = np.empty(0, np.int64)
    merged: dict[str, tuple[Times, Times]] = {}
    for name, chosen in (("comm", ("comm",)), ("compute", ("compute",)), ("held", ("comm", "compute"))):
        parts = [roles[role] for role in chosen if role in roles]
        starts, ends, units = (np.concatenate([part[at] for part in parts]) if parts else none for at in range(3))
        merged[name] = _of_each_unit(starts, ends, units)
    edges = _edges([times for pair in merged.values() for times in pair])
    if len(edges) < 2:
        return UnitSteps(edges[:0], none, none, none, none, none)
    sums = {name: _summed(edges, *pair, np.ones(len(pair[0]), np.int64)) for name, pair in merged.items()}
    return UnitSteps(
        edges,
        sums["comm"],
        sums["compute"],
        sums["held"],
        sums["held"],
        covered_within(recorded, edges[:-1], edges[1:]),
    )


def held_by_units(starts: Times, ends: Times, units: Times) -> Held:
    """Intervals of single units as `unit_steps` takes them: one unit each, no unit twice at a time."""
    starts, ends = _of_each_unit(starts, ends, units)
    return starts, ends, np.ones(len(starts), np.int64)


def _edges(times: Sequence[Times]) -> Times:
    """All times once, rising: a sort, for numpy's own `unique` hashes, which takes eight times as long here."""
    ordered = np.sort(np.concatenate(times))
    first = np.ones(len(ordered), np.bool_)
    first[1:] = ordered[1:] != ordered[:-1]
    return ordered[first]


def _of_each_unit(starts: Times, ends: Times, units: Times) -> tuple[Times, Times]:
    found = [union(starts[units == one], ends[units == one]) for one in np.unique(units)]
    if not found:
        return starts[:0], ends[:0]
    return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])


def _summed(edges: Times, starts: Times, ends: Times, weights: Times) -> Times:
    """Sum of the weights of what is open in each step: [edges - 1]."""
    change = np.zeros(len(edges), np.int64)
    np.add.at(change, np.searchsorted(edges, starts), weights)
    np.add.at(change, np.searchsorted(edges, ends), -weights)
    return np.cumsum(change)[:-1]


def binned_units(steps: UnitSteps, values: Times, recorded: Intervals, edges: Times) -> NDArray[np.float64]:
    """Mean of `values` over the counted time of each bin, NaN where nothing of a bin is counted: [bins].

    values: [steps], one of `comm`, `compute`, `held`; edges: [bins + 1] ns, rising
    """
    counted = np.diff(covered_before(recorded, edges))
    if not len(values):
        return np.where(counted > 0, 0.0, np.nan)
    # Unit time before any moment is piecewise linear between the edges of the counted steps.
    cuts = _edges([steps.edges, edges, *recorded])
    at = np.searchsorted(steps.edges, cuts[:-1], side="right") - 1
    inside = (at >= 0) & (at < len(values))
    rate = np.where(inside, values[np.clip(at, 0, len(values) - 1)], 0)
    before = np.concatenate(([0], np.cumsum(rate * covered_within(recorded, cuts[:-1], cuts[1:]))))
    total = np.diff(before[np.searchsorted(cuts, edges)])
    means: NDArray[np.float64] = np.divide(total, counted, out=np.full(len(counted), np.nan), where=counted > 0)
    return means


def weighted_median(values: Times, weights: Times) -> int | None:
    """The smallest value that at least half of the weight does not exceed; None without weight.

    values, weights: [n]
    """
    total = int(weights.sum())
    if total <= 0:
        return None
    if values.min(initial=0) >= 0 and values.max(initial=0) < _FEW_VALUES and total < _EXACT:
        reached = np.cumsum(np.bincount(values, weights))
        return int(np.searchsorted(reached, (total + 1) // 2))
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return int(values[order][np.searchsorted(reached, (total + 1) // 2)])
