"""Operations and bytes of every kernel of a device: from its call's operands, from its name, or as the source told."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap import DeviceKernels
from moescope.profiler.roofline.call import Work, knows, unknown, work_of_call
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

_COLUMNS: Final = ("name", "shapes", "dtype", "op")


@dataclass(frozen=True, slots=True)
class KernelWork:
    """[kernels] each, in the order of `DeviceKernels`; NaN and "" where not known.

    flops, bytes: work of the kernel; least_bytes: what it must read in any case; dtypes: of its products; evidence:
    `derived` or `inferred`; reasons: why operations or bytes are not known; products: whether it multiplies matrices
    """

    flops: Floats
    bytes: Floats
    least_bytes: Floats
    dtypes: NDArray[np.object_]
    evidence: NDArray[np.object_]
    reasons: NDArray[np.object_]
    products: NDArray[np.bool_]


def kernel_work(kernels: DeviceKernels, table: pa.Table) -> KernelWork:
    """Work of one device's kernels. table: that which `kernels.rows` counts in

    Several kernels of one call share its work by their time, those aside that only prepare it or sum up its parts.
    """
    import pyarrow as pa

    rows = table.select([*_COLUMNS, "op_call", "flops", "bytes"]).take(pa.array(kernels.rows))
    codes, distinct = _distinct(rows, kernels.operators)
    works = [_work(*one) for one in distinct]
    found = KernelWork(
        flops=_gathered(codes, [work.flops for work in works]),
        bytes=_gathered(codes, [work.bytes for work in works]),
        least_bytes=_gathered(codes, [work.least_bytes for work in works]),
        dtypes=np.array([work.dtype or "" for work in works] or [""], object)[codes],
        evidence=np.array([work.evidence for work in works] or [""], object)[codes],
        reasons=np.array([work.reason for work in works] or [""], object)[codes],
        products=np.array([operator in PRODUCTS for *_, operator in distinct] or [False], np.bool_)[codes],
    )
    helpers = np.array([bool(_HELPER.search(name or "")) for name, *_ in distinct] or [False], np.bool_)[codes]
    _share_calls(kernels, rows, found, helpers)
    _as_told(rows, kernels, found)
    return found


def _distinct(
    rows: pa.Table, operators: NDArray[Any]
) -> tuple[NDArray[np.int64], list[tuple[str | None, str | None, str | None, str | None, str]]]:
    """Number of each row's name, operands and class, and what they are: few of many kernels differ."""
    import pyarrow as pa

    named = rows.select(_COLUMNS).append_column("operator", pa.array(operators.tolist(), pa.string()))
    codes = np.zeros(rows.num_rows, np.int64)
    for name in named.column_names:
        encoded = named.column(name).combine_chunks().dictionary_encode(null_encoding="encode")
        codes = codes * max(len(encoded.dictionary), 1) + encoded.indices.to_numpy()
        codes = np.unique(codes, return_inverse=True)[1].reshape(-1)
    _, first = np.unique(codes, return_index=True)
    return codes, [tuple(row.values()) for row in named.take(pa.array(first)).to_pylist()]


def _gathered(codes: NDArray[np.int64], values: Sequence[float | None]) -> Floats:
    return np.array([np.nan if value is None else value for value in values] or [np.nan], np.float64)[codes]


def _work(name: str | None, shapes: str | None, dtype: str | None, op: str | None, operator: str) -> Work:
    """Work of the whole call that launched a kernel of this name."""
    name = name or ""
    if operator not in PRODUCTS:
        return unknown("operations and bytes are counted for products of matrices only")
    named = dtype_in(name)
    if op is None and "::" in name and "<" not in name and "(" not in name:
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
        return "neither its operator nor its shapes are told: launched by a CUDA graph, or not from PyTorch"
    return work_of_call(op, shapes, None).reason


def _share_calls(kernels: DeviceKernels, rows: pa.Table, found: KernelWork, helpers: NDArray[np.bool_]) -> None:
    """Divide each call's work over the kernels that do it, in place."""
    calls = rows.column("op_call").fill_null(-1).to_numpy()
    counted = found.products & (calls >= 0)
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
    found.reasons[idle] = "it prepares a product or sums up its parts: the operations are the product's"
    found.products[idle] = False


def _as_told(rows: pa.Table, kernels: DeviceKernels, found: KernelWork) -> None:
    """What the source itself tells of a compute kernel goes before what is worked out, in place."""
    compute = kernels.kinds == "compute"
    for column, values in (("flops", found.flops), ("bytes", found.bytes)):
        told = rows.column(column)
        known = compute & told.is_valid().to_numpy()
        if known.any():
            values[known] = told.fill_null(0).to_numpy()[known]
            found.evidence[known] = "derived"
    named = rows.column("dtype").to_pylist()
    for at in np.flatnonzero(compute & (found.dtypes == "") & ~np.isnan(found.flops)).tolist():
        found.dtypes[at] = dtype_named(named[at]) or named[at] or ""
    whole = ~np.isnan(found.flops) & ~np.isnan(found.bytes)
    found.reasons[whole] = ""
