"""Convolutions: 2 x elements of the result x elements of one output channel's filter, and twice that backward."""

from __future__ import annotations

import re
from functools import partial
from math import prod
from typing import Final

from moescope.profiler.roofline.call import Formula, Work, item_bytes, no_form, unknown
from moescope.profiler.roofline.operands import Operands, Shape

_NUMBER: Final = re.compile(r"-?\d+")
_NOT_TOLD: Final = "stride and padding of the convolution were not recorded"


def _numbers(text: str | None, count: int) -> tuple[int, ...] | None:
    """`[1, 1]` or `1` for each of `count` axes."""
    found = tuple(int(part) for part in _NUMBER.findall(text or ""))
    return found if len(found) == count else found * count if len(found) == 1 else None


def _output(x: Shape, w: Shape, stride: tuple[int, ...], padding: tuple[int, ...], dilation: tuple[int, ...]) -> Shape:
    """Places of the result along each axis."""
    return tuple(
        (x[2 + at] + 2 * padding[at] - dilation[at] * (w[2 + at] - 1) - 1) // stride[at] + 1 for at in range(len(w) - 2)
    )


def _forward(
    operands: Operands, dtype: str | None, causal: bool | None, *, stride: int, padding: int, dilation: int,
    transposed: int | None = None,
) -> Work:  # fmt: skip
    """input: [n, c_in, …], weight: [c_out, c_in / groups, …]; the others: which arguments they are"""
    tensors = operands.shapes()
    if len(tensors) < 2 or len(tensors[0]) != len(tensors[1]) or len(tensors[0]) < 3:
        return no_form("a convolution", dtype)
    x, w = tensors[:2]
    if transposed is not None and operands.value(transposed) not in ("False", "0", None):
        return unknown("transposed convolutions are not counted", dtype)
    axes = len(x) - 2
    told = [_numbers(operands.value(at), axes) for at in (stride, padding, dilation)]
    if any(part is None for part in told) or not all(told[0] or ()):
        return unknown(_NOT_TOLD, dtype)
    places = _output(x, w, *(part for part in told if part is not None))
    if any(size <= 0 for size in places):
        return no_form("a convolution", dtype)
    result = x[0] * w[0] * prod(places)
    item = item_bytes(dtype)
    moved = None if item is None else item * (prod(x) + prod(w) + result)
    return Work(2.0 * result * prod(w[1:]), moved, dtype)


def _backward(operands: Operands, dtype: str | None, causal: bool | None, *, mask: int) -> Work:
    """gradient of the result: [n, c_out, …], input, weight; mask: which argument tells the gradients that are wanted"""
    tensors = operands.shapes()
    if len(tensors) < 3 or not len(tensors[0]) == len(tensors[1]) == len(tensors[2]) >= 3:
        return no_form("a convolution's gradient", dtype)
    if operands.value(mask - 3) == "True":
        return unknown("transposed convolutions are not counted", dtype)
    told = re.findall(r"True|False", operands.value(mask) or "")
    if len(told) < 2:
        return unknown("which gradients the convolution computes was not recorded", dtype)
    wanted = told[:2].count("True")
    gradient, x, w = tensors[:3]
    item = item_bytes(dtype)
    moved = None if item is None else item * (prod(gradient) + prod(x) + prod(w)) * wanted
    return Work(2.0 * prod(gradient) * prod(w[1:]) * wanted, moved, dtype)


_AFTER_BIAS: Final = partial(_forward, stride=3, padding=4, dilation=5, transposed=6)
_CUDNN: Final = partial(_forward, stride=3, padding=2, dilation=4)
_MIOPEN: Final = partial(_forward, stride=4, padding=3, dilation=5)

CONVOLUTIONS: Final[dict[str, Formula]] = {
    "aten::convolution": _AFTER_BIAS,
    "aten::_convolution": _AFTER_BIAS,
    "aten::convolution_overrideable": _AFTER_BIAS,
    "aten::conv2d": partial(_forward, stride=3, padding=4, dilation=5),
    "aten::conv1d": partial(_forward, stride=3, padding=4, dilation=5),
    "aten::cudnn_convolution": _CUDNN,
    "aten::miopen_convolution": _MIOPEN,
    "aten::mkldnn_convolution": _MIOPEN,
    "aten::convolution_backward": partial(_backward, mask=10),
}
