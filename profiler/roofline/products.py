"""Matrix products: [m, k] x [k, n], batched and grouped, with 2 m k n operations each."""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Final

from moescope.profiler.roofline.call import NARROW, Formula, Work, item_bytes, no_form
from moescope.profiler.roofline.operands import Operands, Shape

_WIDE_BYTES: Final = 2.0
"""Products of narrow types are taken to be written in bf16."""

_PACKED: Final = 2
"""fp4 elements stand two to a byte, and shapes count the bytes."""


def product(
    dtype: str | None, batch: int, m: int, n: int, k: int, *, more_read: int = 0, out_bytes: float | None = None
) -> Work:
    """`batch` products of [m, k] by [k, n]; more_read: elements read besides, such as a bias"""
    if dtype == "fp4":
        k *= _PACKED
    flops = 2.0 * batch * m * n * k
    item = item_bytes(dtype)
    if item is None:
        return Work(flops, None, dtype)
    written = out_bytes if out_bytes is not None else _WIDE_BYTES if dtype in NARROW else item
    read = item * batch * (m * k + k * n) + written * more_read
    return Work(flops, read + written * batch * m * n, dtype)


def _pair(a: Shape, b: Shape, transposed: bool) -> tuple[int, int, int] | None:
    """m, n, k of two matrices, the second one [n, k] where transposed; None where they do not fit."""
    if len(a) != 2 or len(b) != 2:
        return None
    n, k = (b[0], b[1]) if transposed else (b[1], b[0])
    return (a[0], n, k) if a[1] == k else None


def _matrices(
    operands: Operands, dtype: str | None, causal: bool | None, *, at: int = 0, second: int | None = None,
    transposed: bool = False, out_bytes: float | None = None,
) -> Work:  # fmt: skip
    """The tensors number `at` and `second`, the next one where not given."""
    tensors = operands.shapes()
    second = at + 1 if second is None else second
    found = _pair(tensors[at], tensors[second], transposed) if len(tensors) > second else None
    return no_form("a matrix product", dtype) if found is None else product(dtype, 1, *found, out_bytes=out_bytes)


def _added(operands: Operands, dtype: str | None, causal: bool | None) -> Work:
    """addmm, baddbmm: what is added comes first."""
    tensors = operands.shapes()
    if len(tensors) < 3:
        return no_form("a product with a sum", dtype)
    more = prod(tensors[0])
    if len(tensors[1]) == 3:
        return _batched(operands, dtype, causal, at=1, more_read=more)
    found = _pair(tensors[1], tensors[2], False)
    return no_form("a product with a sum", dtype) if found is None else product(dtype, 1, *found, more_read=more)


def _batched(operands: Operands, dtype: str | None, causal: bool | None, *, at: int = 0, more_read: int = 0) -> Work:
    tensors = operands.shapes()[at : at + 2]
    if len(tensors) != 2 or any(len(shape) != 3 for shape in tensors) or tensors[0][0] != tensors[1][0]:
        return no_form("a batched product", dtype)
    found = _pair(tensors[0][1:], tensors[1][1:], False)
    if found is None:
        return no_form("a batched product", dtype)
    return product(dtype, tensors[0][0], *found, more_read=more_read)


def _linear(operands: Operands, dtype: str | None, causal: bool | None) -> Work:
    """x: [..., k], weight: [n, k], bias: [n] or none"""
    tensors = operands.shapes()
    if len(tensors) < 2 or len(tensors[1]) != 2 or not tensors[0] or tensors[0][-1] != tensors[1][1]:
        return no_form("a linear layer", dtype)
    n, k = tensors[1]
    bias = prod(tensors[2]) if len(tensors) > 2 else 0
    return product(dtype, 1, prod(tensors[0][:-1]), n, k, more_read=bias)


def _matmul(operands: Operands, dtype: str | None, causal: bool | None) -> Work:
    """a: [..., m, k], b: [k, n] or [..., k, n] with the same batch"""
    tensors = operands.shapes()[:2]
    if len(tensors) != 2 or len(tensors[0]) < 2 or len(tensors[1]) < 2 or tensors[0][-1] != tensors[1][-2]:
        return no_form("a matrix product", dtype)
    a, b = tensors
    if len(b) == 2:
        return product(dtype, 1, prod(a[:-1]), b[1], b[0])
    if a[:-2] != b[:-2]:
        return no_form("a batched product", dtype)
    return product(dtype, prod(a[:-2]), a[-2], b[-1], a[-1])


def _vector(operands: Operands, dtype: str | None, causal: bool | None, *, at: int = 0) -> Work:
    """mv: [m, k] by [k]"""
    tensors = operands.shapes()[at : at + 2]
    if len(tensors) != 2 or len(tensors[0]) != 2 or tensors[1] != (tensors[0][1],):
        return no_form("a product with a vector", dtype)
    return product(dtype, 1, tensors[0][0], 1, tensors[0][1])


def _grouped(operands: Operands, dtype: str | None, causal: bool | None) -> Work:
    """Tokens by the weights of their group: [t, k] by [groups, k, n], every token in one group.

    Rows that no group holds are counted too, and the weights of min(groups, tokens) groups are taken to be read: the
    offsets are values, and those are not recorded. The weights' gradient is [m, t] by [t, n], to [groups, m, n].
    """
    tensors = operands.shapes()
    a, b = (tensors[0], tensors[1]) if len(tensors) > 1 else ((), ())
    if len(a) == 3 and len(b) == 3:
        return _batched(operands, dtype, causal)
    packed = _PACKED if dtype == "fp4" else 1
    item = (item_bytes(dtype) or 0.0) * packed
    wide = _WIDE_BYTES if dtype in NARROW else item
    if len(a) == 2 and len(b) == 3 and a[1] == b[1]:
        groups, k, n = b
        moved = item * (a[0] * k + min(groups, a[0]) * k * n) + wide * a[0] * n
        flops = 2.0 * a[0] * k * n
    elif len(a) == 3 and len(b) == 2 and a[2] == b[0]:
        groups, m, k = a
        moved = item * (min(groups, b[1]) * m * k + k * b[1]) + wide * m * b[1]
        flops = 2.0 * m * k * b[1]
    elif len(a) == 2 and len(b) == 2 and a[1] == b[0]:
        groups = next((shape[0] for shape in tensors[2:] if len(shape) == 1), 1)
        moved = item * (a[0] * a[1] + b[0] * b[1]) + wide * groups * a[0] * b[1]
        flops = 2.0 * a[0] * a[1] * b[1]
    else:
        return no_form("a grouped product", dtype)
    return Work(flops * packed, moved if item else None, dtype, evidence="inferred")


_SECOND_TRANSPOSED: Final = partial(_matrices, transposed=True)

PRODUCTS: Final[dict[str, Formula]] = {
    "aten::mm": _matrices,
    "aten::addmm": _added,
    "aten::_addmm_activation": _added,
    "aten::bmm": _batched,
    "aten::baddbmm": _added,
    "aten::linear": _linear,
    "aten::matmul": _matmul,
    "aten::mv": _vector,
    "aten::addmv": partial(_vector, at=1),
    "aten::_int_mm": partial(_matrices, out_bytes=4.0),
    "aten::_scaled_mm": _matrices,
    "aten::_scaled_mm_v2": _matrices,
    "aten::_grouped_mm": _grouped,
    "aten::_scaled_grouped_mm": _grouped,
    "aten::mkldnn_linear": _linear,
    "mkldnn::_linear_pointwise": _linear,
    "sgl_kernel::fp8_scaled_mm": _matrices,
    "sgl_kernel::int8_scaled_mm": _matrices,
    "sgl_kernel::fp8_blockwise_scaled_mm": _matrices,
    "sglang::deep_gemm_fp8_fp8_bf16_nt": partial(_matrices, second=2, transposed=True),
    "_C::cutlass_scaled_mm": partial(_matrices, at=1),
    "vllm::w8a8_triton_block_scaled_mm_func": _SECOND_TRANSPOSED,
    "fbgemm::f8f8bf16": _SECOND_TRANSPOSED,
    "fbgemm::f8f8bf16_rowwise": _SECOND_TRANSPOSED,
    "fbgemm::f8f8bf16_blockwise": _SECOND_TRANSPOSED,
    "trtllm::fp8_block_scaling_gemm": _SECOND_TRANSPOSED,
    "aiter::gemm_a8w8_blockscale": _SECOND_TRANSPOSED,
}
"""Operators by name. A custom operator stands here only where its signature tells which operands are multiplied."""

RESULT_FIRST: Final = frozenset({"_C::cutlass_scaled_mm"})
"""Operators whose first operand is their result, so that its type is not that of the product."""
