"""Operations and bytes of one operator's call, from the operands that were recorded of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final

from moescope.profiler.roofline.operands import ITEM_BYTES, Operands, parse_operands


@dataclass(frozen=True, slots=True)
class Work:
    """What a call or kernel has to do at least; None with a reason where that is not known.

    flops: operations of its products; bytes: its operands read once and its results written once; least_bytes: what it
    must read in any case, where `bytes` is not known; dtype: of its products; evidence: `derived` from recorded shapes,
    `inferred` from names
    """

    flops: float | None
    bytes: float | None
    dtype: str | None
    evidence: str = "derived"
    reason: str = ""
    least_bytes: float | None = None


Formula = Callable[[Operands, str | None, "bool | None"], Work]
"""Operands, their type, and whether attention is causal where the kernel's name tells that, to the work."""


def unknown(reason: str, dtype: str | None = None) -> Work:
    """Nothing is known."""
    return Work(None, None, dtype, reason=reason)


def no_form(what: str, dtype: str | None) -> Work:
    """Operands that are not as the operator takes them."""
    return unknown(f"the recorded operands are not those of {what}", dtype)


def item_bytes(dtype: str | None) -> float | None:
    """Bytes of an element; None for a type that is not known."""
    return None if dtype is None else ITEM_BYTES.get(dtype)


def streams(op: str) -> bool:
    """Whether there is a rule for the operator, and it multiplies no matrices."""
    from moescope.profiler.roofline.streams import STREAMS

    return op in STREAMS


SHAPES_MISSING: Final = "operand shapes were not recorded (torch.profiler does with record_shapes=True)"


@lru_cache(maxsize=65536)
def work_of_call(op: str, shapes: str | None, dtype: str | None, causal: bool | None = None) -> Work:
    """Work of a call.

    op: `aten::addmm`, a custom operator's name …; shapes: as the column `shapes`; dtype: of the first operand;
    causal: as the kernel's name tells, for calls that do not
    """
    formula = _formulas().get(op)
    if formula is None:
        return unknown(f"no rule tells what {op} computes from its operands", dtype)
    if not shapes:
        return unknown(SHAPES_MISSING, dtype)
    operands = parse_operands(shapes)
    if operands is None:
        return unknown("the recorded shapes are not of the form `64,128;128,256`", dtype)
    work = formula(operands, dtype, causal)
    if work.bytes is None and not work.reason:
        reason = f"the size of a {dtype} is not known" if dtype else "the type of its operands was not recorded"
        return replace(work, reason=reason)
    return work


def knows(op: str) -> bool:
    """Whether there is a rule for the operator."""
    return op in _formulas()


@lru_cache(maxsize=1)
def _formulas() -> Mapping[str, Formula]:
    from moescope.profiler.roofline.attention import ATTENTION
    from moescope.profiler.roofline.convolution import CONVOLUTIONS
    from moescope.profiler.roofline.products import PRODUCTS
    from moescope.profiler.roofline.streams import STREAMS

    return {**PRODUCTS, **CONVOLUTIONS, **ATTENTION, **STREAMS}


NARROW: Final = frozenset({"fp8", "fp8_e4m3", "fp8_e5m2", "fp4", "i8", "u8"})
"""Types whose products are written in a wider one."""
