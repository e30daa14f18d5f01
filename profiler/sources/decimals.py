"""Decimal µs as written in a trace to whole ns, exact for all that has up to three decimals."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from moescope.profiler.sources.columns import FARTHEST_NS, NO_INT, Ints

_WHOLE: Final = Decimal(1)
_NEWLINE: Final = 10
_LONGEST: Final = 24
"""Letters of a number that the quick way takes: it cannot overflow."""
_ORDINARY: Final = np.zeros(256, np.bool_)
_ORDINARY[list(b"0123456789.-\n")] = True
_NUMBER: Final = re.compile(rb'"?(-?\d{1,40}(?:\.\d{1,40})?(?:[eE][+-]?\d{1,3})?)"?')


def to_ns(text: bytes) -> int:
    """One number's text as ns, half to even; NO_INT for what is no number or beyond any clock."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return NO_INT
    try:
        ns = int((Decimal(match[1].decode()) * 1000).quantize(_WHOLE, ROUND_HALF_EVEN))
    except InvalidOperation:
        return NO_INT
    return ns if abs(ns) <= FARTHEST_NS else NO_INT


def all_to_ns(texts: Sequence[msgspec.Raw]) -> Ints:
    """[texts] ns as `to_ns`."""
    quick = _quick(b"\n".join(texts) + b"\n", len(texts)) if texts else np.empty(0, np.int64)
    return quick if quick is not None else np.fromiter((to_ns(bytes(text)) for text in texts), np.int64)


def _quick(joined: bytes, count: int) -> Ints | None:
    """The same for numbers without exponent and with at most three decimals, one a line; None where any is not so."""
    import pyarrow as pa

    letters = np.frombuffer(joined, np.uint8)
    ends = np.flatnonzero(letters == _NEWLINE)
    starts = np.concatenate((np.zeros(1, ends.dtype), ends[:-1] + 1))
    lengths = ends - starts
    if len(ends) != count or lengths.max() > _LONGEST or not lengths.min() or not _ORDINARY[letters].all():
        return None
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(lengths))).astype(np.int32)
    text = pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(letters[letters != _NEWLINE]))
    try:
        decimals = text.cast(pa.decimal128(38, 3))
    except pa.ArrowInvalid:
        return None
    # A decimal of scale 3 is stored as its thousandfold, in two halves of 64 bits.
    halves: NDArray[np.int64] = np.frombuffer(decimals.buffers()[1], np.int64)[: 2 * count].reshape(-1, 2)
    ns = halves[:, 0].copy()
    far = (halves[:, 1] != ns >> 63) | (ns > FARTHEST_NS) | (ns < -FARTHEST_NS)
    ns[far] = NO_INT
    return ns
