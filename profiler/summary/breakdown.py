"""Parts of a device as rows of `summary --json`: by operator, layer, micro-batch, stage and direction."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from moescope.profiler.overlap.breakdown import By, OverlapPart, class_labels, overlap_by, overlap_of_labels
from moescope.profiler.overlap.placement import Placement
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep

ALSO_BY: Final[tuple[By, ...]] = ("layer", "micro_batch", "stage", "direction")
"""What `overlap_by` holds; phases and operators have rows of their own."""

_NS_PER_US: Final = 1000


def operator_rows(
    device: DeviceKernels, swept: Sweep, bounds: Mapping[tuple[str, str], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Operators of a device, the longest first; `busy_us` and `exposed_comm_us` are of unions, `total_us` is a sum.

    bounds: what bounds each (operator, kind)
    """
    parts = overlap_of_labels(device, swept, *class_labels(device, "kind", "operator"))
    whole = sum(part.total_ns for part in parts)
    found = []
    for part in parts:
        assert isinstance(part.key, tuple)
        kind, operator = part.key
        found.append(
            {
                "class": operator,
                "kind": kind,
                "count": part.kernels,
                "total_us": _us(part.total_ns),
                "share": part.total_ns / whole if whole else 0.0,
                "busy_us": _us(part.busy_ns),
                **({"exposed_comm_us": _us(part.exposed_ns)} if kind in ("comm", "fused") else {}),
                **bounds[operator, kind],
            }
        )
    return sorted(found, key=lambda one: -one["share"])


def overlap_rows(device: DeviceKernels, swept: Sweep, places: Placement) -> dict[str, Any]:
    """`phase_coverage` and `overlap_by` of a device."""
    found = places.coverage
    covered: dict[str, Any] = {
        "kernels": found.kernels,
        "with_phase": found.with_phase,
        "time_us": _us(found.time_ns),
        "with_phase_us": _us(found.with_phase_ns),
        "share": found.share,
        **({} if found.share is not None else {"share_reason": "no kernel takes time"}),
        "graph_launches": found.graph_launches,
        "graph_kernels": found.graph_kernels,
        "graph_us": _us(found.graph_ns),
        "evidence": "derived",
    }
    parts = {
        by: [_row(part, by in places.inferred) for part in overlap_by(device, swept, by, places)] for by in ALSO_BY
    }
    return {"phase_coverage": covered, "overlap_by": parts}


def _row(part: OverlapPart, inferred: bool) -> dict[str, Any]:
    return {
        "key": part.key,
        "kernels": part.kernels,
        "busy_us": _us(part.busy_ns),
        "compute_us": _us(part.compute_ns),
        "comm_us": _us(part.comm_ns),
        "overlapped_us": _us(part.overlapped_ns),
        "exposed_comm_us": _us(part.exposed_ns),
        "evidence": "inferred" if inferred else "derived",
    }


def _us(ns: int) -> float | int:
    return ns // _NS_PER_US if ns % _NS_PER_US == 0 else ns / _NS_PER_US
