"""Fills the columns of `kernels` that tell work, where the source tells none: what operands and names settle."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from moescope.profiler.overlap.sweep import kernels_by_device
from moescope.profiler.roofline.work import Floats, kernel_work

if TYPE_CHECKING:
    import pyarrow as pa

_LARGEST = 2.0**62


def with_work(kernels: pa.Table) -> pa.Table:
    """The same rows with `flops` and `bytes` of compute kernels, and `dtype` of those that multiply matrices, where
    these are null and recorded operands tell them (derived), as `docs/roofline.md` has it.

    Nothing is written that rests on a device's peaks, and nothing that a source told is changed. A kernel's dtype is
    written with its operations alone: it is what their peak is looked up by.
    """
    import pyarrow as pa

    if not kernels.num_rows:
        return kernels
    flops, moved = np.full(kernels.num_rows, np.nan), np.full(kernels.num_rows, np.nan)
    dtypes = np.full(kernels.num_rows, None, object)
    for device in kernels_by_device(kernels):
        work = kernel_work(device, kernels)
        compute = device.are("compute") & ~work.inferred
        rows = device.rows
        flops[rows[compute]] = work.flops[compute]
        moved[rows[compute]] = work.bytes[compute]
        typed = compute & work.products & (work.flops > 0) & ~work.dtypes.are("")
        dtypes[rows[typed]] = np.array(work.dtypes.texts, object)[work.dtypes.codes[typed]]
    for name, values in (("flops", flops), ("bytes", moved)):
        kernels = _filled(kernels, name, _whole(values))
    return _filled(kernels, "dtype", pa.array(dtypes, pa.string()))


def _whole(values: Floats) -> pa.Array:
    """[values] as integers, null for what is not known or beyond 62 bits."""
    import pyarrow as pa

    unknown = ~(np.abs(values) < _LARGEST)
    return pa.array(np.rint(np.where(unknown, 0, values)).astype(np.int64), mask=unknown)


def _filled(kernels: pa.Table, name: str, values: pa.Array) -> pa.Table:
    at = kernels.schema.get_field_index(name)
    held = kernels.column(at)
    if held.null_count == 0 or values.null_count == len(values):
        return kernels
    import pyarrow.compute as pc

    return kernels.set_column(at, kernels.schema.field(at), pc.coalesce(held.combine_chunks(), values))
