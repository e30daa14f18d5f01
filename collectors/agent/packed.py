"""Rows that a model emits often, as a few words in the ring instead of JSON.

A blob whose kind begins with `=` holds its row packed: the fields below, little-endian, names as their number in the
ring's table; the C library packs them (collectors/native/module.c). What does not fit (a float where a count belongs, a
name too many) goes as JSON, as all other rows do.
"""

from __future__ import annotations

from struct import Struct
from typing import Any, NamedTuple

PREFIX = "="
NONE = -(2**63)
"""Stands for None among whole numbers; among names it is 0."""


class Format(NamedTuple):
    """Fields of a packed row: whole numbers (8 bytes each), then floats (8 bytes), then names (4 bytes).

    counts: a list of whole numbers (8 bytes each) behind all of them, as long as the row's size tells; "" for none
    """

    table: str
    integers: tuple[str, ...]
    floats: tuple[str, ...]
    names: tuple[str, ...]
    counts: str = ""


FORMATS = {
    "experts": Format("experts", ("layer", "first_expert"), (), (), "tokens"),
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
(-1: not told, -2 of what is sent: the operand's bytes follow, not who gets them), and these."""


def pack_comm(number: int, issue_ns: int, sent: Any, received: Any) -> bytes:
    """The words of a collective's issue.

    sent, received: bytes for each rank of the group, None where not told; sent may be the bytes of the operand alone
    """
    whole = isinstance(sent, int)
    sizes = [*([sent] if whole else sent or ()), *(received or ())]
    counts = -2 if whole else -1 if sent is None else len(sent), -1 if received is None else len(received)
    return Struct(f"<{4 + len(sizes)}q").pack(number, issue_ns, *counts, *sizes)
