"""What each step of a rank holds: its totals, and the share of every phase and operator, so that steps can be compared.

A step is the time between its start and its end on the clock of the kernels. Amounts are lengths of unions inside it
and inside the recorded time, summed over the rank's devices; a phase's communication is exposed where nothing computes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.breakdown import class_labels
from moescope.profiler.overlap.intervals import Intervals, Times, covered_within, union_by_group
from moescope.profiler.overlap.placement import Placement
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.steps.durations import warm_up

if TYPE_CHECKING:
    import pyarrow as pa

What: TypeAlias = tuple[str, ...]
"""(figure,), ("phase", name, figure) or ("operator", class, kind)."""

FIGURES: Final = ("busy", "compute", "comm", "overlapped", "exposed", "memory", "unknown")
PHASES: Final = 32
"""Phases of a device that are kept, those with the longest kernels: names can be as many as ranges."""

KEPT: Final = 64
"""Steps of a stage whose amounts are kept one by one, so that memory does not grow with the run."""

WHOLE: Final = 0.99
"""Share of a step's time that must be recorded on every device for its amounts to be the step's."""


@dataclass(frozen=True, slots=True)
class StageAmounts:
    """The steps of one stage on one rank, without its warm-up; times ns, summed over its devices.

    seen: steps with recorded time r; recorded_ns, squared: sums of r and r*r over all of them; sums: by what, of its
    amount x, x*x and x*r, which tell how far shares scatter from step to step; numbers: [kept] of steps that were
    recorded whole, as the source numbers them or else by their order; lasts_ns: [kept] their recorded time; amounts: by
    what, [kept]
    """

    seen: int
    recorded_ns: int
    squared: float
    sums: Mapping[What, tuple[int, float, float]]
    numbers: Times
    lasts_ns: Times
    amounts: Mapping[What, Times]


@dataclass(frozen=True, slots=True)
class StepAmounts:
    """One rank's steps that have ended.

    devices: their number; more: whether there are phases besides those that are kept; reason: why there are no amounts
    """

    stages: Mapping[str, StageAmounts] = field(default_factory=dict)
    devices: int = 0
    more: bool = False
    reason: str = ""


def step_amounts(
    steps: pa.Table, devices: Sequence[DeviceKernels], sweeps: Sequence[Sweep], places: Sequence[Placement]
) -> StepAmounts:
    """Amounts of one rank's steps. steps: its rows of `steps`"""
    rows = steps.select(["stage", "step", "start_ns", "dur_ns"]).to_pylist()
    rows = sorted((row for row in rows if (row["dur_ns"] or 0) > 0), key=lambda row: (row["start_ns"], row["dur_ns"]))
    if not rows or not devices:
        return StepAmounts()
    starts = np.array([row["start_ns"] for row in rows], np.int64)
    ends = starts + np.array([row["dur_ns"] for row in rows], np.int64)
    if (starts[1:] < ends[:-1]).any():
        return StepAmounts(devices=len(devices), reason="steps of a rank overlap in time")
    amounts: dict[What, Times] = {}
    recorded = np.zeros(len(rows), np.int64)
    for device, swept, placed in zip(devices, sweeps, places, strict=True):
        recorded += covered_within(swept.recorded, starts, ends) if swept.clipped else ends - starts
        for what, values in _of_device(device, swept, placed, starts, ends).items():
            amounts[what] = amounts[what] + values if what in amounts else values
    stage_of = np.array([row["stage"] or "" for row in rows], object)
    numbers = np.array([-1 if row["step"] is None else row["step"] for row in rows], np.int64)
    whole = recorded >= WHOLE * (ends - starts) * len(devices)
    return StepAmounts(
        stages={
            stage: _stage(np.flatnonzero(stage_of == stage), ends - starts, numbers, recorded, whole, amounts)
            for stage in dict.fromkeys(stage_of.tolist())
        },
        devices=len(devices),
        more=any(len(_kept_phases(*one)) > PHASES for one in zip(devices, places, strict=True)),
    )


def _stage(
    rows: NDArray[np.int64],
    lasts: Times,
    numbers: Times,
    recorded: Times,
    whole: NDArray[np.bool_],
    amounts: Mapping[What, Times],
) -> StageAmounts:
    own = numbers[rows]
    if (own < 0).any() or len(np.unique(own)) < len(own):
        own = np.arange(len(rows))
    cold = warm_up(lasts[rows].tolist())
    rows, own = rows[cold:], own[cold:]
    at = np.flatnonzero(whole[rows])
    # The same steps on every rank, from all over the run: those whose numbers mix to the least.
    kept = np.sort(at[np.argsort(_mixed(own[at]), kind="stable")[:KEPT]])
    share = recorded[rows].astype(np.float64)
    return StageAmounts(
        seen=int((share > 0).sum()),
        recorded_ns=int(recorded[rows].sum()),
        squared=float((share * share).sum()),
        sums={what: _moments(values[rows], share) for what, values in amounts.items()},
        numbers=own[kept],
        lasts_ns=recorded[rows[kept]],
        amounts={what: values[rows[kept]] for what, values in amounts.items()},
    )


def _mixed(numbers: Times) -> NDArray[np.uint64]:
    """[numbers] mixed thoroughly (the end of MurmurHash3): windows begin at steps that follow a ratio of their own."""
    found = numbers.astype(np.uint64)
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        found ^= found >> np.uint64(33)
        found *= np.uint64(factor)
    return found ^ (found >> np.uint64(33))


def _moments(values: Times, recorded: NDArray[np.float64]) -> tuple[int, float, float]:
    each = values.astype(np.float64)
    return int(values.sum()), float((each * each).sum()), float((each * recorded).sum())


def _of_device(device: DeviceKernels, swept: Sweep, placed: Placement, starts: Times, ends: Times) -> dict[What, Times]:
    found: dict[What, Times] = {(name,): covered_within(getattr(swept, name), starts, ends) for name in FIGURES}
    keys, labels = class_labels(device, "operator", "kind")
    busy = _divided(device, np.ones(len(labels), np.bool_), labels, len(keys), starts, ends, swept.recorded)[0]
    for at, (operator, kind) in enumerate(keys):
        found["operator", operator, kind] = busy[at]
    return found | _of_phases(device, swept, placed, starts, ends)


def _of_phases(device: DeviceKernels, swept: Sweep, placed: Placement, starts: Times, ends: Times) -> dict[What, Times]:
    names = placed.phase_names
    kept = _kept_phases(device, placed)[:PHASES]
    number = np.full(len(names) + 1, -1, np.int64)
    number[kept] = np.arange(len(kept))
    labels = number[placed.phase]
    named = labels >= 0
    busy = _divided(device, named, labels, len(kept), starts, ends, swept.recorded)[0]
    moving = named & np.isin(device.kinds, ("comm", "fused"))
    comm, hidden = _divided(device, moving, labels, len(kept), starts, ends, swept.recorded, swept.compute)
    found: dict[What, Times] = {}
    for at, phase in enumerate(kept.tolist()):
        own = {"busy": busy[at], "comm": comm[at], "exposed": comm[at] - hidden[at]}
        found |= {("phase", names[phase], figure): values for figure, values in own.items()}
    return found


def _kept_phases(device: DeviceKernels, placed: Placement) -> NDArray[np.int64]:
    """Places in `phase_names`, the phase with the longest kernels first."""
    inside = placed.phase >= 0
    total = np.zeros(len(placed.phase_names), np.int64)
    np.add.at(total, placed.phase[inside], (device.ends - device.starts)[inside])
    order = np.argsort(-total, kind="stable")
    return order[total[order] > 0]


def _divided(
    device: DeviceKernels,
    pick: NDArray[np.bool_],
    labels: Times,
    count: int,
    starts: Times,
    ends: Times,
    *within: Intervals,
) -> list[Times]:
    """Time of each label's union inside each step and each of the sets: [labels, steps] ns, one a set.

    pick: [kernels] those that count; labels: [kernels]; starts, ends: [steps], disjoint and rising
    """
    owner, (froms, tos) = union_by_group(labels[pick], device.starts[pick], device.ends[pick])
    first = np.searchsorted(ends, froms, side="right")
    pieces = np.maximum(np.searchsorted(starts, tos, side="left") - first, 0)
    row = np.repeat(np.arange(len(froms)), pieces)
    step = first[row] + np.arange(len(row)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    low, high = np.maximum(froms[row], starts[step]), np.minimum(tos[row], ends[step])
    found = []
    for one in within:
        sums = np.zeros((count, len(starts)), np.int64)
        np.add.at(sums, (owner[row], step), covered_within(one, low, high))
        found.append(sums)
    return found
