"""Attention: softmax(q k^T) v over all pairs of positions that see one another, and its gradients.

Forward it has two products over the pairs, backward five: the scores anew, and the gradients of v, of the
probabilities, of q and of k (FlashAttention-2, arXiv 2307.08691, section 3.1). With a causal mask only the pairs below
the diagonal count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Final

from moescope.profiler.roofline.call import Formula, Work, item_bytes, no_form
from moescope.profiler.roofline.operands import Operands, Shape

_NO_MASK: Final = "whether attention was causal was not recorded"
_LENGTHS: Final = "the lengths of its sequences are values, and those are not recorded"


@dataclass(frozen=True, slots=True)
class _Sizes:
    """batch, query heads, query and key positions, and the sizes of a query and of a value."""

    batch: int
    heads: int
    queries: int
    keys: int
    d_query: int
    d_value: int

    def pairs(self, causal: bool) -> float | None:
        """Pairs of positions in a head; None for a causal mask that is not square: where it is aligned is not told."""
        if not causal:
            return float(self.queries * self.keys)
        return self.queries * (self.queries + 1) / 2 if self.queries == self.keys else None


def _sizes(q: Shape, k: Shape, v: Shape, order: str) -> _Sizes | None:
    """order: of the axes, `bhsd` or `bshd`; `thd` for one sequence without a batch"""
    if order == "thd":
        q, k, v = ((1, *shape) if len(shape) == 3 else shape for shape in (q, k, v))
        order = "bshd"
    if any(len(shape) != 4 for shape in (q, k, v)):
        return None
    heads, places = (1, 2) if order == "bhsd" else (2, 1)
    fits = q[0] == k[0] == v[0] and k[places] == v[places] and q[3] == k[3] and k[heads] == v[heads]
    if not fits or not k[heads] or q[heads] % k[heads]:
        return None
    return _Sizes(q[0], q[heads], q[places], k[places], q[3], v[3])


def _attention(
    operands: Operands, dtype: str | None, causal: bool | None, *, order: str, causal_at: int, backward: bool = False
) -> Work:
    """causal_at: which argument tells whether attention is causal"""
    tensors = operands.shapes()
    first = 1 if backward else 0
    if len(tensors) < first + 3:
        return no_form("attention", dtype)
    q, k, v = tensors[first : first + 3]
    if order == "bshd" and len(q) == 3:
        # Sequences in a row, told apart by offsets: those of one sequence are two.
        offsets = [shape for shape in tensors[first + 3 :] if len(shape) == 1]
        if not offsets or offsets[0] != (2,):
            return Work(None, _moved(q, k, v, dtype, backward), dtype, reason=_LENGTHS)
        order = "thd"
    sizes = _sizes(q, k, v, order)
    if sizes is None:
        return no_form("attention", dtype)
    told = {"True": True, "False": False, "0": False, "1": True, "2": True}.get(operands.value(causal_at) or "")
    masked = causal if told is None else told
    moved = _moved(q, k, v, dtype, backward)
    if masked is None:
        return Work(None, moved, dtype, reason=_NO_MASK)
    pairs = sizes.pairs(masked)
    if pairs is None:
        return Work(None, moved, dtype, reason="how its causal mask lies over unequal lengths is not recorded")
    depth = 3 * sizes.d_query + 2 * sizes.d_value if backward else sizes.d_query + sizes.d_value
    return Work(2.0 * sizes.batch * sizes.heads * pairs * depth, moved, dtype)


def _moved(q: Shape, k: Shape, v: Shape, dtype: str | None, backward: bool) -> float | None:
    """Bytes: q, k, v and the result once; backward those, the result's gradient, and three gradients."""
    item = item_bytes(dtype)
    if item is None:
        return None
    inputs, result = prod(q) + prod(k) + prod(v), prod(q[:-1]) * v[-1]
    return item * (2 * inputs + 2 * result if backward else inputs + result)


def _formula(order: str, causal_at: int, *, backward: bool = False) -> Formula:
    return partial(_attention, order=order, causal_at=causal_at, backward=backward)


ATTENTION: Final[dict[str, Formula]] = {
    "aten::scaled_dot_product_attention": _formula("bhsd", 5),
    "aten::_scaled_dot_product_flash_attention": _formula("bhsd", 4),
    "aten::_scaled_dot_product_flash_attention_for_cpu": _formula("bhsd", 4),
    "aten::_scaled_dot_product_efficient_attention": _formula("bhsd", 6),
    "aten::_scaled_dot_product_cudnn_attention": _formula("bhsd", 6),
    "aten::_cudnn_attention_forward": _formula("bhsd", 10),
    "aten::_flash_attention_forward": _formula("bshd", 8),
    "aten::_efficient_attention_forward": _formula("bshd", 9),
    "aten::_scaled_dot_product_flash_attention_backward": _formula("bhsd", 11, backward=True),
    "aten::_scaled_dot_product_efficient_attention_backward": _formula("bhsd", 11, backward=True),
    "aten::_scaled_dot_product_cudnn_attention_backward": _formula("bhsd", 14, backward=True),
    "aten::_flash_attention_backward": _formula("bshd", 11, backward=True),
    "FlashAttnFunc": _formula("bshd", 5),
    "flash_attn::_flash_attn_forward": _formula("bshd", 5),
    "flash_attn::_flash_attn_backward": _formula("bshd", 11, backward=True),
    "FlashAttnVarlenFunc": _formula("bshd", 9),
    "flash_attn::_flash_attn_varlen_forward": _formula("bshd", 9),
}
"""Operators by name, with the order of their axes and the place of `is_causal` among their arguments."""
