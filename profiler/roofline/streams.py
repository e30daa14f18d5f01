"""Operators that pass over their operands once: the bytes they read and write, no products of matrices among them.

Operands are read once and the result written once, all in the type of the first one. What stays in registers or caches
between two passes of one operator is not told by its operands: operators that pass twice are not in here.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Final

from moescope.profiler.roofline.call import Formula, Work, item_bytes, no_form
from moescope.profiler.roofline.operands import Operands, Shape


def _broadcast(shapes: tuple[Shape, ...]) -> Shape | None:
    """Shape of the result of an element-wise operator; None where the operands do not fit."""
    width = max(len(shape) for shape in shapes)
    result = [1] * width
    for shape in shapes:
        for at, size in enumerate(shape, start=width - len(shape)):
            if size != 1:
                if result[at] not in (1, size):
                    return None
                result[at] = size
    return tuple(result)


def _elementwise(operands: Operands, dtype: str | None, causal: bool | None, *, inputs: int, written: int = 1) -> Work:
    """inputs: tensors among the first operands that are read; written: results of the broadcast shape"""
    shapes = operands.shapes()[:inputs]
    item = item_bytes(dtype)
    result = _broadcast(shapes) if shapes else None
    if result is None:
        return no_form("an element-wise operator", dtype)
    moved = None if item is None else item * (sum(map(prod, shapes)) + written * prod(result))
    return Work(0.0, moved, dtype)


def _first(operands: Operands, dtype: str | None, causal: bool | None, *, passes: int) -> Work:
    """passes: how often the first operand's size is read or written"""
    shapes = operands.shapes()
    if not shapes:
        return no_form("an operator over one tensor", dtype)
    item = item_bytes(dtype)
    return Work(0.0, None if item is None else item * passes * prod(shapes[0]), dtype)


def _lists(operands: Operands, dtype: str | None, causal: bool | None) -> Work:
    """cat: every tensor of the list is read and written once"""
    listed = [shape for shapes in operands.lists for shape in shapes]
    if not listed:
        return no_form("an operator over a list of tensors", dtype)
    item = item_bytes(dtype)
    return Work(0.0, None if item is None else item * 2 * sum(map(prod, listed)), dtype)


_ONE: Final[Formula] = partial(_first, passes=2)
_TWO: Final[Formula] = partial(_elementwise, inputs=2)
_THREE: Final[Formula] = partial(_elementwise, inputs=3)

_UNARY: Final = (
    "abs exp log neg rsqrt sqrt reciprocal sigmoid tanh silu gelu relu clamp clamp_min clamp_max pow square floor ceil "
    "logical_not bitwise_not sin cos erf hardtanh leaky_relu _softmax _log_softmax contiguous clone tril triu"
)
_BINARY: Final = (
    "add sub rsub mul div maximum minimum eq ne lt le gt ge logical_and logical_or bitwise_and bitwise_or remainder "
    "silu_backward gelu_backward threshold_backward sigmoid_backward tanh_backward _softmax_backward_data masked_fill"
)

STREAMS: Final[dict[str, Formula]] = {
    **{f"aten::{name}{end}": _ONE for name in _UNARY.split() for end in ("", "_")},
    **{f"aten::{name}{end}": _TWO for name in _BINARY.split() for end in ("", "_")},
    **{f"aten::{name}{end}": _THREE for name in ("addcmul", "addcdiv", "where") for end in ("", "_")},
    "aten::fill_": partial(_first, passes=1),
    "aten::zero_": partial(_first, passes=1),
    "aten::cat": _lists,
    "vllm::rms_norm": partial(_first, passes=2),
}
"""Operators by name."""
