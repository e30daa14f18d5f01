"""Execution units (SMs, or cores on the CPU backend) that communication and compute hold: measured, else inferred."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.intervals import Times, concurrency
from moescope.profiler.overlap import DeviceKernels, Sweep

if TYPE_CHECKING:
    import pyarrow as pa

SMS: Final = {
    "V100": 80, "T4": 40, "A100": 108, "A30": 56, "A10": 72, "L4": 58, "L40": 142, "RTX 4090": 128, "H100 PCIe": 114,
    "H100": 132, "H800": 132, "H200": 132, "H20": 78, "GH200": 132, "B200": 148, "GB200": 148, "B300": 148,
    "GB300": 148, "MI250X": 110, "MI300X": 304, "MI325X": 304, "MI355X": 256,
}  # fmt: skip
"""Units by device name, from the vendors' data sheets, for sources that do not tell."""


@dataclass(frozen=True, slots=True)
class UnitUse:
    """What is held; None with a reason where it is not known.

    comm_typical, compute_typical: time-weighted median while any is held; comm_time_share: unit·time over
    total x counted time
    """

    kind: Literal["sm", "core"]
    total: int | None
    comm_typical: int | None
    comm_peak: int | None
    comm_time_share: float | None
    compute_typical: int | None
    evidence: str
    reason: str = ""


def weighted_median(values: Times, weights: Times) -> int | None:
    """The smallest value that at least half of the weight does not exceed; None without weight.

    values, weights: [n]
    """
    total = int(weights.sum())
    if total <= 0:
        return None
    order = np.argsort(values, kind="stable")
    reached = np.cumsum(weights[order])
    return int(values[order][np.searchsorted(reached, (total + 1) // 2)])


def units_used(
    kernels: DeviceKernels, swept: Sweep, source_kernels: pa.Table, intervals: pa.Table, meta: dict[str, Any]
) -> UnitUse:
    """Units of one device.

    intervals: `unit_intervals`; source_kernels: the table that `kernels.rows` counts in
    """
    on_cpu = kernels.device.startswith("cpu")
    properties = _properties(meta, kernels)
    total = _total(meta, properties, on_cpu)
    measured = _measured(kernels.rank, swept, intervals, total, on_cpu)
    if measured is not None:
        return measured
    if on_cpu:
        return _unknown("core", total, "the scheduler's switches were not recorded (see `moescope doctor`)")
    if total is None:
        return _unknown("sm", None, "the source does not tell the device's number of SMs")
    return _inferred(kernels, swept, source_kernels, total)


def _unknown(kind: Literal["sm", "core"], total: int | None, reason: str) -> UnitUse:
    return UnitUse(kind, total, None, None, None, None, "inferred" if kind == "sm" else "measured", reason)


def _properties(meta: dict[str, Any], kernels: DeviceKernels) -> dict[str, Any]:
    for entry in meta.get("ranks") or ():
        if entry.get("rank") == kernels.rank:
            found = (entry.get("device_properties") or {}).get(kernels.device)
            return found if isinstance(found, dict) else {}
    return {}


def _total(meta: dict[str, Any], properties: dict[str, Any], on_cpu: bool) -> int | None:
    hardware = meta.get("hardware") if isinstance(meta.get("hardware"), dict) else {}
    assert isinstance(hardware, dict)
    told = hardware.get("cores") if on_cpu else properties.get("numSms", hardware.get("sms"))
    if isinstance(told, int) and told > 0:
        return told
    name = str(properties.get("name", hardware.get("gpu", "")))
    return next((SMS[key] for key in sorted(SMS, key=len, reverse=True) if key in name), None) if not on_cpu else None


def _measured(rank: int, swept: Sweep, intervals: pa.Table, total: int | None, on_cpu: bool) -> UnitUse | None:
    if not intervals.num_rows:
        return None
    import pyarrow.compute as pc

    own = intervals.filter(pc.equal(intervals.column("rank"), rank))
    if not own.num_rows:
        return None
    kind: Literal["sm", "core"] = "core" if on_cpu else "sm"
    typical: dict[str, int | None] = {}
    peak, share = 0, None
    for role in ("comm", "compute"):
        rows = own.filter(pc.equal(own.column("role"), role))
        times, counts = _distinct_units(rows)
        times, counts, held = _inside(times, counts, swept)
        typical[role] = weighted_median(counts, held * (counts > 0))
        if role == "comm":
            peak = int(counts[held > 0].max(initial=0))
            share = float((counts * held).sum()) / (total * swept.span_ns) if total and swept.span_ns else None
    return UnitUse(
        kind, total, typical["comm"] or 0, peak, share, typical["compute"] or 0, "measured",
        "" if share is not None else "the number of units is not known",
    )  # fmt: skip


def _distinct_units(rows: pa.Table) -> tuple[Times, Times]:
    """Units held over time; a unit that several threads or launches hold at once counts once."""
    from moescope.profiler.intervals import union

    unit = rows.column("unit").to_numpy()
    starts, ends = rows.column("start_ns").to_numpy(), rows.column("end_ns").to_numpy()
    merged = [union(starts[unit == one], ends[unit == one]) for one in np.unique(unit)]
    if not merged:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    return concurrency(np.concatenate([one[0] for one in merged]), np.concatenate([one[1] for one in merged]))


def _inside(edges: Times, counts: Times, swept: Sweep) -> tuple[Times, Times, Times]:
    """The step function's stretches and how long each lasts inside the counted time."""
    from moescope.profiler.intervals import covered_within

    if len(edges) < 2:
        none = np.empty(0, np.int64)
        return none, none, none
    return edges[:-1], counts[:-1], covered_within(swept.recorded, edges[:-1], edges[1:])


def _inferred(kernels: DeviceKernels, swept: Sweep, table: pa.Table, total: int) -> UnitUse:
    """From launch shapes: a kernel holds min(SMs, CTAs) units while it runs."""
    held = _units_by_launch(table, kernels.rows, total)
    reason = "" if (held > 0).any() else "no launch shapes in the source"
    typical: dict[str, int | None] = {}
    peak: int | None = None
    share: float | None = None
    for role, kinds in (("comm", ("comm", "fused")), ("compute", ("compute", "fused"))):
        pick = np.isin(kernels.kinds, kinds) & (held > 0)
        edges, counts = _weighted(kernels.starts[pick], kernels.ends[pick], held[pick], total)
        _, counts, lasts = _inside(edges, counts, swept)
        typical[role] = weighted_median(counts, lasts * (counts > 0))
        if role == "comm" and not reason:
            ran = lasts > 0
            peak = int(counts[ran].max(initial=0))
            share = float((counts * lasts).sum()) / (total * swept.span_ns) if swept.span_ns else None
            if typical[role] is None and not np.isin(kernels.kinds, kinds).any():
                typical[role] = 0
    return UnitUse("sm", total, typical["comm"], peak, share, typical["compute"], "inferred", reason)


def _weighted(starts: Times, ends: Times, weights: Times, most: int) -> tuple[Times, Times]:
    """Sum of the weights of what is open over time, no more than `most`: edges, sums as `concurrency`."""
    if not len(starts):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    edges, inverse = np.unique(np.concatenate((starts, ends)), return_inverse=True)
    change = np.bincount(inverse, np.concatenate((weights, -weights)), minlength=len(edges))
    return edges, np.minimum(np.cumsum(np.rint(change).astype(np.int64)), most)


def _units_by_launch(table: pa.Table, rows: Times, total: int) -> Times:
    """[kernels] units of each kernel; 0 where the launch shape is not known.

    The hardware spreads blocks over idle units before it stacks them on one, so a grid smaller than the device takes a
    unit a block, and any larger one takes them all.
    """
    import pyarrow as pa

    return np.minimum(_volume(table.column("grid").take(pa.array(rows))), total)


def _volume(column: pa.ChunkedArray) -> Times:
    """Product of `x,y,z` in each row, 0 for null: [rows]."""
    encoded = column.combine_chunks().dictionary_encode()
    products: NDArray[np.int64] = np.array([_product(text) for text in encoded.dictionary.to_pylist()] + [0], np.int64)
    volumes: Times = products[encoded.indices.fill_null(len(products) - 1).to_numpy()]
    return volumes


def _product(text: str | None) -> int:
    parts = [part.strip() for part in (text or "").split(",")]
    return int(np.prod([int(part) for part in parts])) if all(part.isdigit() for part in parts) else 0
