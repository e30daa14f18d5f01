"""Rows that a model emits often, as a few words in the ring instead of JSON: a third of the cost, on both sides.

A blob whose kind begins with `=` holds its row packed: the fields below, little-endian, names as their number in the
ring's table. What does not fit (a float where a count belongs, a name too many) goes as JSON, as all other rows do.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from struct import Struct
from typing import Any, NamedTuple

PREFIX = "="
NONE = -(2**63)
"""Stands for None among whole numbers; among names it is 0."""


class Format(NamedTuple):
    """Fields of a packed row: whole numbers (8 bytes each), then floats (8 bytes), then names (4 bytes)."""

    table: str
    integers: tuple[str, ...]
    floats: tuple[str, ...]
    names: tuple[str, ...]


FORMATS = {
    "work": Format("work", ("flops", "bytes"), (), ("dtype",)),
    "quantisation": Format(
        "quantisation",
        ("saturated", "flushed", "nonfinite", "elements"),
        ("amax", "scale_min", "scale_max"),
        ("tensor", "format"),
    ),
    "transfers": Format("transfers", ("src", "dst", "bytes", "start_ns", "dur_ns"), (), ("op", "hop")),
    "kernel": Format("kernels", ("start_ns", "dur_ns", "flops", "bytes"), (), ("name", "kind", "dtype", "evidence")),
}

COMM = PREFIX + "comm "
"""A collective's issue: `=comm OP DTYPE GROUP`, and as words its number, its time, how many sizes are sent and received
(-1: not told), and these."""


def packer(format: Format, number_of: Callable[[str | None], int]) -> Callable[[dict[str, Any]], bytes]:
    """Packs rows of `format`; raises (struct.error, KeyError, LookupError) for one that does not fit.

    number_of: a name's number in the ring; 0 for None
    """
    numbers = itemgetter(*format.integers, *format.floats)
    first, *others = format.names
    pack = Struct(f"<{len(format.integers)}q{len(format.floats)}d{len(format.names)}I").pack

    def packed(row: dict[str, Any]) -> bytes:
        values = numbers(row)
        if None in values:
            values = [NONE if value is None else value for value in values]
        return pack(*values, number_of(row[first]), *[number_of(row[name]) for name in others])

    return packed


def pack_comm(number: int, issue_ns: int, sent: Any, received: Any) -> bytes:
    """The words of a collective's issue; sent, received: bytes for each rank of the group, or None."""
    sizes = [*(sent or ()), *(received or ())]
    counts = -1 if sent is None else len(sent), -1 if received is None else len(received)
    return Struct(f"<{4 + len(sizes)}q").pack(number, issue_ns, *counts, *sizes)
