"""The roofline of one device: its kernels' work and bounds, by class, as JSON, and summed up for the matrix units."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from moescope.profiler.hardware.table import Hardware
from moescope.profiler.labels import Labels
from moescope.profiler.overlap.intervals import Times
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep, counted_ns
from moescope.profiler.roofline.bounds import BOUNDS, Bounds, kernel_bounds
from moescope.profiler.roofline.classes import ClassRoof, class_roofs
from moescope.profiler.roofline.names import tokens_of_tile
from moescope.profiler.roofline.work import Floats, KernelWork, kernel_work
from moescope.profiler.units.held import units_by_launch

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class DeviceRoofline:
    """One device against its roof; inside: [kernels] ns of each in the counted time"""

    hardware: Hardware
    work: KernelWork
    bounds: Bounds
    classes: list[ClassRoof]
    inside: Times


def device_roofline(
    kernels: DeviceKernels,
    swept: Sweep,
    table: pa.Table,
    hardware: Hardware,
    names: Labels,
    tokens: Floats | None = None,
) -> DeviceRoofline:
    """Work and bounds of one device's kernels.

    table: that which `kernels.rows` counts in; names: of the kernels; tokens: [kernels] the most tokens that a kernel
    can work on, NaN where that is not known; what its name tells of a tile goes before it where it is less
    """
    work = kernel_work(kernels, table)
    _faster_than_f32(work, kernels, hardware, names)
    tiles = names.mapped([tokens_of_tile(name) or np.nan for name in names.texts], np.float64)
    most = np.fmin(tiles, tokens) if tokens is not None else tiles
    total = hardware.units or 0
    _, spread = units_by_launch(table, kernels.rows, total, hardware.unit_limits)
    bounds = kernel_bounds(kernels, names, work, hardware, spread, most)
    inside = counted_ns(kernels.starts, kernels.ends, swept.recorded)
    return DeviceRoofline(hardware, work, bounds, class_roofs(kernels, inside, work, bounds), inside)


def _faster_than_f32(work: KernelWork, kernels: DeviceKernels, hardware: Hardware, names: Labels) -> None:
    """Products of f32 operands that outrun the f32 peak ran as TF32, whatever their names say; in place."""
    plain = hardware.flops.get("f32")
    if plain is None or "tf32" not in hardware.flops:
        return
    f32 = work.dtypes.are("f32")
    seconds = np.maximum(kernels.ends - kernels.starts, 1) / 1e9
    faster = f32 & (work.flops > plain.value * seconds)
    if faster.any():
        work.dtypes.put(f32 & np.isin(names.codes, np.unique(names.codes[faster])), "tf32")


def roofline_json(roofline: DeviceRoofline) -> dict[str, Any]:
    """`roofline` of `summary --json`, or null with the reason; times µs, rates per second."""
    hardware, classes = roofline.hardware, roofline.classes
    total = sum(one.total_ns for one in classes)
    if hardware.reason and not hardware.flops and not hardware.memory_bytes_per_s:
        return {"roofline": None, "roofline_reason": hardware.reason}
    by_bound = {bound: sum(one.bound_ns.get(bound, 0) for one in classes) for bound in (*BOUNDS, "")}
    return {
        "roofline": {
            "device": hardware.name,
            "peaks": {
                name: {"flops_per_s": peak.value / hardware.sharing, "source": peak.source, "evidence": peak.evidence}
                for name, peak in hardware.flops.items()
            },
            **_memory(hardware),
            "bounds": {bound or "unknown": ns / total if total else 0.0 for bound, ns in by_bound.items()},
            "classes": [_class_json(one) for one in classes],
            "evidence": "derived",
        }
    }


def _memory(hardware: Hardware) -> dict[str, Any]:
    peak = hardware.memory_bytes_per_s
    if peak is None:
        return {"memory": None, "memory_reason": hardware.reason or f"no bandwidth of {hardware.name} is known"}
    value = peak.value / hardware.sharing
    return {"memory": {"bytes_per_s": value, "source": peak.source, "evidence": peak.evidence}}


def _class_json(one: ClassRoof) -> dict[str, Any]:
    answer: dict[str, Any] = {
        "class": one.operator,
        "kind": one.kind,
        "count": one.count,
        "total_us": one.total_ns / 1000,
        "known_us": one.known_ns / 1000,
        **bound_json(one),
    }
    share = one.share_of_roof
    if share is None:
        reason = one.bound_reason or "operations and bytes of its kernels are not known"
        for key in ("flops", "bytes", "flops_per_s", "bytes_per_s", "share_of_roof"):
            answer |= {key: None, f"{key}_reason": reason}
        return answer
    seconds = one.known_ns / 1e9
    return answer | {
        "flops": one.flops,
        "bytes": one.bytes,
        "flops_per_s": one.flops / seconds,
        "bytes_per_s": one.bytes / seconds,
        "share_of_roof": share,
        "evidence": "derived",
    }


def bound_json(one: ClassRoof) -> dict[str, Any]:
    """`bound` and what goes with it, for a class of the summary."""
    total = one.total_ns
    shares = {bound or "unknown": ns / total for bound, ns in one.bound_ns.items()} if total else {}
    answer: dict[str, Any] = {"bound": one.bound, "bound_shares": shares, "bound_evidence": one.bound_evidence}
    return answer | ({"bound_reason": one.bound_reason} if one.bound is None else {"bound_by": one.bound_reason})


@dataclass(frozen=True, slots=True)
class ProductsDone:
    """Operations by type of the kernels whose operations are known, and the share of the products' time that is."""

    flops: dict[str, float]
    known_share: float | None


def products_done(roofline: DeviceRoofline) -> ProductsDone:
    """What the device's products did inside the counted time."""
    flops: dict[str, float] = {}
    for one in roofline.classes:
        for dtype, value in one.flops_by_dtype.items():
            flops[dtype] = flops.get(dtype, 0.0) + value
    products = roofline.work.products
    whole = int(roofline.inside[products].sum())
    known = int(roofline.inside[products & ~np.isnan(roofline.work.flops)].sum())
    return ProductsDone(flops, known / whole if whole else None)
