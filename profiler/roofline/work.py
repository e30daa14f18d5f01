"""Operations and bytes of every kernel of a device: from its call's operands, from its name, or as the source told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.labels import Labels, distinct_rows, labels_of
from moescope.profiler.overlap.sweep import DeviceKernels
from moescope.profiler.roofline.call import SHAPES_MISSING, Work, knows, streams, unknown, work_of_call
from moescope.profiler.roofline.names import causal_in, dtype_in, weight_in
from moescope.profiler.roofline.operands import ITEM_BYTES, dtype_named
from moescope.profiler.roofline.products import RESULT_FIRST

if TYPE_CHECKING:
    import pyarrow as pa

Floats = NDArray[np.float64]

PRODUCTS: Final = frozenset({"gemm", "grouped_gemm", "attention", "conv"})
"""Operator classes whose kernels multiply matrices."""

_HELPER: Final = re.compile(
    r"splitk_?reduce|reduce_1block|reduce_?splitk|nchwtonhwc|nhwctonchw|transpose|fill|memset|dot_do_o|convert_dq|combine|merge_?state"
    r"|get_?mla_?metadata|preprocess|im2col|col2im|add_padding|offsetskernel|compute_gemm_pointers",
    re.IGNORECASE,
)
"""Kernels of a product's call that only prepare it or sum up its parts."""

_NO_OPERATOR: Final = "neither its operator nor its shapes are told: launched by a CUDA graph, or not from PyTorch"

_COLUMNS: Final = ("name", "shapes", "dtype", "op")


@dataclass(frozen=True, slots=True)
class KernelWork:
    """[kernels] each, in the order of `DeviceKernels`; NaN and "" where not known.

    flops, bytes: work of the kernel; least_bytes: what it must read in any case; dtypes: of its products; reasons: why
    operations or bytes are not known; inferred: whether its work is, derived from recorded operands where not;
    products: whether it multiplies matrices
    """

    flops: Floats
    bytes: Floats
    least_bytes: Floats
    dtypes: Labels
    reasons: Labels
    inferred: NDArray[np.bool_]
    products: NDArray[np.bool_]


def kernel_work(kernels: DeviceKernels, table: pa.Table) -> KernelWork:
    """Work of one device's kernels. table: that which `kernels.rows` counts in

    Several kernels of one call share its work by their time, those aside that only prepare it or sum up its parts.
    """
    import pyarrow as pa

    rows = table.select([*_COLUMNS, "op_call", "flops", "bytes"]).take(pa.array(kernels.rows))
    named = rows.select(_COLUMNS).append_column("operator", pa.array(kernels.operators, pa.string()))
    codes, first = distinct_rows(named)
    distinct = [tuple(row.values()) for row in named.take(pa.array(first)).to_pylist()]
    works = [_work(*one) for one in distinct]
    found = KernelWork(
        flops=_gathered(codes, [work.flops for work in works]),
        bytes=_gathered(codes, [work.bytes for work in works]),
        least_bytes=_gathered(codes, [work.least_bytes for work in works]),
        dtypes=_labelled(codes, [work.dtype or "" for work in works]),
        reasons=_labelled(codes, [work.reason for work in works]),
        inferred=_flags(codes, [work.evidence == "inferred" for work in works]),
        products=_flags(codes, [operator in PRODUCTS for *_, operator in distinct]),
    )
    helpers = _flags(codes, [bool(_HELPER.search(name or "")) for name, *_ in distinct])
    _share_calls(kernels, rows, found, helpers)
    _as_told(rows, kernels, found)
    return found


def _labelled(codes: NDArray[np.int64], texts: list[str]) -> Labels:
    """Labels of rows from those of their numbers."""
    known = labels_of(texts)
    return Labels(known.codes[codes] if len(codes) else codes, known.texts)


def _flags(codes: NDArray[np.int64], values: list[bool]) -> NDArray[np.bool_]:
    return np.array(values or [False], np.bool_)[codes]


def _gathered(codes: NDArray[np.int64], values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values] or [np.nan], np.float64)[codes]


def _is_operator(name: str) -> bool:
    """Whether a kernel is the operator itself, `aten::copy_`, as on the host."""
    return "::" in name and "<" not in name and "(" not in name


def _work(name: str | None, shapes: str | None, dtype: str | None, op: str | None, operator: str) -> Work:
    """Work of the whole call that launched a kernel of this name."""
    name = name or ""
    if operator not in PRODUCTS:
        if op is not None and streams(op):
            return work_of_call(op, shapes, dtype_named(dtype))
        if op is not None:
            return unknown("no rule tells the bytes of its operator")
        return unknown(SHAPES_MISSING if _is_operator(name) and not shapes else _NO_OPERATOR)
    named = dtype_in(name)
    if op is None and _is_operator(name):
        op = name
    told = None if op in RESULT_FIRST else dtype_named(dtype)
    if op is not None and knows(op):
        work = work_of_call(op, shapes, told or named, causal_in(name))
        # Products of f32 operands run as TF32 where the kernel says so.
        return replace(work, dtype="tf32") if named == "tf32" and work.dtype in ("f32", None) else work
    weight = weight_in(name)
    if weight is not None and named is not None:
        item = ITEM_BYTES[named]
        least = weight.n * weight.k * item
        which = "of one expert" if weight.grouped else "it reads"
        reason = f"its name tells the weight {which}, [{weight.n}, {weight.k}], but not how many tokens there are"
        return Work(None, None, named, "inferred", reason, least)
    why = _why_unknown(op, shapes)
    return unknown(why, named or told)


def _why_unknown(op: str | None, shapes: str | None) -> str:
    if op is None:
        return _NO_OPERATOR
    return work_of_call(op, shapes, None).reason


def _share_calls(kernels: DeviceKernels, rows: pa.Table, found: KernelWork, helpers: NDArray[np.bool_]) -> None:
    """Divide each call's work over the kernels that do it, in place."""
    calls = rows.column("op_call").fill_null(-1).to_numpy()
    counted = (found.products | ~np.isnan(found.bytes)) & (calls >= 0)
    idle = found.products & (calls < 0) & helpers
    if counted.any():
        numbers, inverse = np.unique(calls[counted], return_inverse=True)
        durations = np.maximum(kernels.ends - kernels.starts, 1)[counted].astype(np.float64)
        aside = helpers[counted]
        workers = np.bincount(inverse, ~aside, minlength=len(numbers))
        # A call of nothing but helpers shares its work among them.
        weights = np.where(aside & (workers[inverse] > 0), 0.0, durations)
        share = weights / np.bincount(inverse, weights, minlength=len(numbers))[inverse]
        at = np.flatnonzero(counted)
        for values in (found.flops, found.bytes, found.least_bytes):
            values[at] *= share
        idle[at[share == 0]] = True
    found.flops[idle], found.bytes[idle], found.least_bytes[idle] = 0.0, np.nan, np.nan
    found.reasons.put(idle, "it prepares a product or sums up its parts: the operations are the product's")
    found.products[idle] = False


def _as_told(rows: pa.Table, kernels: DeviceKernels, found: KernelWork) -> None:
    """What the source itself tells goes before what is worked out, in place.

    Copies inside the device read and write what they tell; what communication tells are messages.
    """
    import pyarrow as pa

    compute = kernels.kinds == "compute"
    copies = np.flatnonzero(kernels.kinds == "memory")
    told = rows.select(["name", "bytes"]).take(pa.array(copies)).to_pylist()
    for at, row in zip(copies.tolist(), told, strict=True):
        passes = _passes_of_copy(row["name"] or "")
        if row["bytes"] is not None and passes:
            found.flops[at], found.bytes[at] = 0.0, float(passes * row["bytes"])
    for column, values in (("flops", found.flops), ("bytes", found.bytes)):
        column_told = rows.column(column)
        known = compute & column_told.is_valid().to_numpy()
        if known.any():
            values[known] = column_told.fill_null(0).to_numpy()[known]
    typeless = compute & found.dtypes.are("") & ~np.isnan(found.flops)
    if typeless.any():
        named = rows.column("dtype").to_pylist()
        for at in np.flatnonzero(typeless).tolist():
            found.dtypes.codes[at] = found.dtypes.code(dtype_named(named[at]) or named[at] or "")
    found.reasons.put(~np.isnan(found.flops) & ~np.isnan(found.bytes), "")


def _passes_of_copy(name: str) -> int:
    """How often a copy's bytes pass through the device's memory; 0 where a link bounds it or the name does not tell."""
    low = name.lower()
    if "memset" in low:
        return 1
    return 2 if "dtod" in low or "devicetodevice" in low or "device -> device" in low else 0
