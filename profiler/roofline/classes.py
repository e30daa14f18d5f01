"""Kernels by class against the roof: operations, bytes, rates, the share of the roof, and what bounds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.labels import Labels, distinct_rows
from moescope.profiler.overlap.intervals import Times
from moescope.profiler.overlap.sweep import DeviceKernels
from moescope.profiler.roofline.bounds import Bounds
from moescope.profiler.roofline.work import KernelWork

MOST: Final = 0.5
"""A class is bound by what bounds more than this share of its time."""


@dataclass(frozen=True, slots=True)
class ClassRoof:
    """One operator class of one kind on one device; times ns, inside the counted time.

    bound_ns: time by bound, "" for what is not known; known_ns: time of kernels whose roof is known; flops, bytes: of
    those, the part inside the counted time; roof_ns: least time they need; flops_by_dtype: operations by type, of all
    kernels whose operations are known, and flops_known_ns their time
    """

    operator: str
    kind: str
    count: int
    total_ns: int
    bound_ns: dict[str, int]
    bound: str | None
    bound_evidence: str
    bound_reason: str
    known_ns: int
    flops: float
    bytes: float
    roof_ns: float
    flops_by_dtype: dict[str, float]
    flops_known_ns: int

    @property
    def share_of_roof(self) -> float | None:
        """Least time over time taken; above 1 where operands came from caches, whose bandwidth is higher."""
        return self.roof_ns / self.known_ns if self.known_ns else None


def class_roofs(kernels: DeviceKernels, inside: Times, work: KernelWork, bounds: Bounds) -> list[ClassRoof]:
    """Classes by their time, the longest first. inside: [kernels] ns of each in the counted time"""
    import pyarrow as pa

    part = inside / np.maximum(kernels.ends - kernels.starts, 1)
    counted = (inside > 0) | (kernels.ends == kernels.starts)
    table = pa.table(
        {"kind": pa.array(kernels.kinds, pa.string()), "operator": pa.array(kernels.operators, pa.string())}
    )
    codes, first = distinct_rows(table)
    order = np.argsort(codes, kind="stable")
    borders = np.append(np.flatnonzero(np.diff(codes[order], prepend=-1)), len(order))
    found = []
    for at, row in enumerate(first.tolist()):
        rows = order[borders[at] : borders[at + 1]]
        rows = rows[counted[rows]]
        if len(rows):
            kind, operator = str(kernels.kinds[row]), str(kernels.operators[row])
            found.append(_class(operator, kind, rows, inside, part, work, bounds))
    return sorted(found, key=lambda one: -one.total_ns)


def _class(
    operator: str,
    kind: str,
    rows: NDArray[np.int64],
    inside: Times,
    part: NDArray[np.float64],
    work: KernelWork,
    bounds: Bounds,
) -> ClassRoof:
    held, names = inside[rows], Labels(bounds.names.codes[rows], bounds.names.texts)
    total = int(held.sum())
    by_bound = {bound: round(ns) for bound, ns in names.weights(held) if ns}
    bound, evidence, reason = _bound(by_bound, total, held, rows, bounds)
    known = rows[~np.isnan(bounds.roof_ns[rows])]
    told = rows[work.flops[rows] > 0]
    by_dtype = Labels(work.dtypes.codes[told], work.dtypes.texts).weights(work.flops[told] * part[told])
    return ClassRoof(
        operator=operator,
        kind=kind,
        count=len(rows),
        total_ns=total,
        bound_ns=by_bound,
        bound=bound,
        bound_evidence=evidence,
        bound_reason=reason,
        known_ns=int(inside[known].sum()),
        flops=float((work.flops[known] * part[known]).sum()),
        bytes=float((work.bytes[known] * part[known]).sum()),
        roof_ns=float((bounds.roof_ns[known] * part[known]).sum()),
        flops_by_dtype=dict(by_dtype),
        flops_known_ns=int(inside[told].sum()),
    )


def _bound(
    by_bound: dict[str, int], total: int, held: Times, rows: NDArray[np.int64], bounds: Bounds
) -> tuple[str | None, str, str]:
    """The bound of most of the time, its weakest evidence, and how it was told; None with the reason why not."""
    most = max((bound for bound in by_bound if bound), key=lambda bound: by_bound[bound], default=None)
    codes = bounds.names.codes[rows]
    if most is not None and by_bound[most] > MOST * total:
        own = codes == bounds.names.code(most)
        inferred = (bounds.evidence.codes[rows[own]] == bounds.evidence.code("inferred")).any()
        return most, "inferred" if inferred else "derived", _longest(bounds, rows[own], held[own])
    unknown = by_bound.get("", 0)
    if unknown * 2 >= total and unknown:
        own = codes == bounds.names.code("")
        return None, "inferred", _longest(bounds, rows[own], held[own])
    if not total:
        return None, "inferred", "its kernels take no time"
    parts = ", ".join(f"{bound or 'unknown'} {ns / total:.0%}" for bound, ns in sorted(by_bound.items()))
    return None, "inferred", f"nothing bounds more than half of its time: {parts}"


def _longest(bounds: Bounds, rows: NDArray[np.int64], held: Times) -> str:
    """The reason that holds for most of the time."""
    reasons = Labels(bounds.reasons.codes[rows], bounds.reasons.texts).weights(held)
    return max(reasons, key=lambda pair: pair[1], default=("", 0.0))[0]
