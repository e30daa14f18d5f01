"""Execution units (SMs, or cores on the CPU backend) that communication and compute hold: measured, else inferred.

Inferred from launch shapes, a kernel holds the fewest units that take its blocks at once while it runs,
`min(units, ceil(blocks / resident blocks of a unit))`. Blocks may be spread wider than that: the `at_most` figures
count a unit for each block, so what is true lies between the two; they are one where a unit holds one block alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from moescope.profiler.hardware.residency import resident_ctas, units_needed, units_spread
from moescope.profiler.hardware.table import Hardware, UnitLimits, hardware_of
from moescope.profiler.labels import distinct_rows
from moescope.profiler.overlap.intervals import Times
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.units.over_time import (
    ROLES,
    Held,
    UnitSteps,
    held_by_units,
    recorded_unit_steps,
    unit_steps,
    weighted_median,
)

if TYPE_CHECKING:
    import pyarrow as pa

SHAPE_COLUMNS: Final = ("grid", "block", "registers", "shared_bytes")
"""Columns of `kernels` that tell a launch's shape."""


@dataclass(frozen=True, slots=True)
class UnitUse:
    """What is held; None with a reason where it is not known.

    comm_typical, compute_typical: time-weighted median while any is held; comm_time_share, compute_time_share: unit
    time over total x counted time; comm_at_most, compute_at_most: the typical count where blocks are spread over as
    many units as there are; shape_share: share of the kernels' time with a known launch shape, 1 where it was measured
    """

    kind: Literal["sm", "core"]
    total: int | None
    comm_typical: int | None
    comm_peak: int | None
    comm_time_share: float | None
    compute_typical: int | None
    evidence: str
    reason: str = ""
    compute_peak: int | None = None
    compute_time_share: float | None = None
    comm_at_most: int | None = None
    compute_at_most: int | None = None
    shape_share: float | None = None


@dataclass(frozen=True, slots=True)
class UnitAnswer:
    """What is held in short, and over time; steps: None where nothing is known of it."""

    use: UnitUse
    steps: UnitSteps | None


def units_used(
    kernels: DeviceKernels, swept: Sweep, source_kernels: pa.Table, intervals: pa.Table, meta: dict[str, Any]
) -> UnitUse:
    """Units of one device.

    intervals: `unit_intervals`; source_kernels: the table that `kernels.rows` counts in
    """
    return unit_answer(kernels, swept, source_kernels, intervals, hardware_of(meta, kernels.rank, kernels.device)).use


def unit_answer(
    kernels: DeviceKernels, swept: Sweep, source_kernels: pa.Table, intervals: pa.Table, hardware: Hardware
) -> UnitAnswer:
    """Units of one device, in short and over time; arguments as `units_used` takes them.

    On a GPU kernels record themselves, so that one role can be recorded and the other not: that one is inferred.
    """
    kind: Literal["sm", "core"] = "core" if kernels.device.startswith("cpu") else "sm"
    recorded = _recorded(kernels, intervals)
    silent = [role for role in ("comm", "compute") if role not in recorded and (kernels.kinds == role).any()]
    if recorded and (kind == "core" or not silent):
        steps = recorded_unit_steps(recorded, swept.recorded)
        return UnitAnswer(_measured_use(steps, swept, hardware.units, kind), steps)
    if kind == "core":
        reason = "the scheduler's switches were not recorded (see `moescope doctor`)"
        return UnitAnswer(_unknown(kind, hardware.units, reason), None)
    if hardware.units is None:
        return UnitAnswer(_unknown("sm", None, "the source does not tell the device's number of SMs"), None)
    return _inferred(kernels, swept, source_kernels, hardware.units, hardware.unit_limits, recorded)


def _unknown(kind: Literal["sm", "core"], total: int | None, reason: str) -> UnitUse:
    return UnitUse(kind, total, None, None, None, None, "inferred" if kind == "sm" else "measured", reason)


def _recorded(kernels: DeviceKernels, intervals: pa.Table) -> dict[str, Held]:
    """Recorded intervals of the device by role: starts, ends, units; roles without any are not in it."""
    if not intervals.num_rows:
        return {}
    import pyarrow.compute as pc

    device = intervals.column("device")
    # The cores of the host are no GPU's: they are recorded beside it.
    there = pc.is_null(device) if kernels.device.startswith("cpu") else pc.equal(device, kernels.device)
    own = intervals.filter(pc.and_(pc.equal(intervals.column("rank"), kernels.rank), there))
    found = {}
    for role in ("comm", "compute"):
        rows = own.filter(pc.equal(own.column("role"), role))
        if rows.num_rows:
            starts, ends, units = (rows.column(name).to_numpy() for name in ("start_ns", "end_ns", "unit"))
            found[role] = starts, ends, units
    return found


def _measured_use(steps: UnitSteps, swept: Sweep, total: int | None, kind: Literal["sm", "core"]) -> UnitUse:
    typical = {role: weighted_median(held, steps.counted * (held > 0)) or 0 for role, held in _roles(steps)}
    return UnitUse(
        kind=kind,
        total=total,
        comm_typical=typical["comm"],
        comm_peak=_peak(steps.comm, steps),
        comm_time_share=_share(steps.comm, steps, swept, total),
        compute_typical=typical["compute"],
        evidence="measured",
        reason="" if total and swept.span_ns else "the number of units is not known",
        compute_peak=_peak(steps.compute, steps),
        compute_time_share=_share(steps.compute, steps, swept, total),
        comm_at_most=typical["comm"],
        compute_at_most=typical["compute"],
        shape_share=1.0,
    )


def _roles(steps: UnitSteps) -> tuple[tuple[str, Times], ...]:
    return ("comm", steps.comm), ("compute", steps.compute)


def _peak(held: Times, steps: UnitSteps) -> int:
    return int(held[steps.counted > 0].max(initial=0))


def _share(held: Times, steps: UnitSteps, swept: Sweep, total: int | None) -> float | None:
    return float((held * steps.counted).sum()) / (total * swept.span_ns) if total and swept.span_ns else None


def _inferred(
    kernels: DeviceKernels,
    swept: Sweep,
    table: pa.Table,
    total: int,
    limits: UnitLimits | None,
    recorded: Mapping[str, Held],
) -> UnitAnswer:
    needed, spread = units_by_launch(table, kernels.rows, total, limits)
    told = {role: held_by_units(*held) for role, held in recorded.items()}
    if not (needed > 0).any() and not told:
        return UnitAnswer(_unknown("sm", total, "no launch shapes in the source"), None)
    steps = unit_steps(_parts(kernels, needed) | told, swept.recorded, total)
    alike = bool((needed == spread).all())
    wide = steps if alike else unit_steps(_parts(kernels, spread) | told, swept.recorded, total)
    typical = {role: weighted_median(held, steps.counted * (held > 0)) for role, held in _roles(steps)}
    at_most = {role: weighted_median(held, wide.counted * (held > 0)) for role, held in _roles(wide)}
    known = {}
    for role in typical:
        own = np.isin(kernels.kinds, (role, "fused"))
        known[role] = role in told or bool((needed[own] > 0).any()) or not own.any()
        if typical[role] is None and not own.any():
            typical[role] = at_most[role] = 0
    working = np.isin(kernels.kinds, ("comm", "compute", "fused"))
    lasting = (kernels.ends - kernels.starts) * working
    whole = int(lasting.sum())
    use = UnitUse(
        kind="sm",
        total=total,
        comm_typical=typical["comm"],
        comm_peak=_peak(steps.comm, steps) if known["comm"] else None,
        comm_time_share=_share(steps.comm, steps, swept, total) if known["comm"] else None,
        compute_typical=typical["compute"],
        evidence="inferred",
        compute_peak=_peak(steps.compute, steps) if known["compute"] else None,
        compute_time_share=_share(steps.compute, steps, swept, total) if known["compute"] else None,
        comm_at_most=at_most["comm"],
        compute_at_most=at_most["compute"],
        shape_share=int(lasting[needed > 0].sum()) / whole if whole else None,
    )
    return UnitAnswer(use, steps if all(known.values()) else None)


def _parts(kernels: DeviceKernels, held: Times) -> dict[str, Held]:
    found = {}
    for role in ROLES:
        pick = (kernels.kinds == role) & (held > 0) & (kernels.ends > kernels.starts)
        found[role] = kernels.starts[pick], kernels.ends[pick], held[pick]
    return found


def units_by_launch(table: pa.Table, rows: Times, total: int, limits: UnitLimits | None) -> tuple[Times, Times]:
    """The fewest and the most units that each kernel's blocks hold at once: [rows], 0 where the grid is not known.

    table: with `grid` and, where they are known, the other SHAPE_COLUMNS; rows: which of its rows
    """
    codes, shapes = _distinct_shapes(table, rows)
    needed, spread = np.zeros(len(shapes), np.int64), np.zeros(len(shapes), np.int64)
    for at, (grid, block, registers, shared) in enumerate(shapes):
        ctas = volume(grid)
        if ctas:
            resident = resident_ctas(limits, volume(block) or None, registers, shared)
            needed[at], spread[at] = units_needed(ctas, resident, total), units_spread(ctas, total)
    return needed[codes], spread[codes]


def _distinct_shapes(
    table: pa.Table, rows: Times
) -> tuple[Times, list[tuple[str | None, str | None, int | None, int | None]]]:
    """Number of each row's launch shape, and the shapes: few thousands of kernels share few shapes."""
    import pyarrow as pa

    picked = table.select([name for name in SHAPE_COLUMNS if name in table.column_names]).take(pa.array(rows))
    codes, first = distinct_rows(picked)
    shapes = picked.take(pa.array(first)).to_pylist()
    return codes, [tuple(shape.get(name) for name in SHAPE_COLUMNS) for shape in shapes]


def volume(text: str | None) -> int:
    """Product of `x,y,z`; 0 where that is not known."""
    parts = [part.strip() for part in (text or "").split(",")]
    product = 1
    for part in parts:
        if not (part.isascii() and part.isdigit()) or len(part) > 10:
            return 0
        product *= int(part)
    return min(product, 2**62)


def with_launch_text(rows: pa.Table) -> pa.Table:
    """`kernels` with a column `launch` that holds the SHAPE_COLUMNS in one text; null where there is no grid."""
    import pyarrow as pa
    import pyarrow.compute as pc

    parts = [pc.fill_null(rows.column(name).cast(pa.string()), "") for name in SHAPE_COLUMNS]
    joined = pc.if_else(pc.is_valid(rows.column("grid")), pc.binary_join_element_wise(*parts, "|"), None)
    return pa.table({"launch": joined})


def launch_columns(texts: list[str]) -> pa.Table:
    """The SHAPE_COLUMNS of texts that `with_launch_text` made: [texts]."""
    import pyarrow as pa

    split = [text.split("|") for text in texts]
    columns = {
        name: pa.array([parts[at] or None for parts in split], pa.string()) for at, name in enumerate(SHAPE_COLUMNS)
    }
    for name in ("registers", "shared_bytes"):
        columns[name] = columns[name].cast(pa.int64())
    return pa.table(columns)
