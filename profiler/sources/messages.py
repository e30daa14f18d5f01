"""What a trace tells of the messages of its collectives, and the bytes that these carry from rank to rank.

PyTorch writes it on the kernels that NCCL's calls launch: elements in and out, rows to and from each rank of an
all-to-all, the other side of a send or receive (`Process Group Ranks` and splits are cut short beyond 30 of them).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from moescope.profiler.classify.classifier import operator_of_collective

MOST_RANKS: Final = 4096
"""No list of a group's ranks is written out beyond this."""

_CUT: Final = re.compile(r"(\d+(?:,\d+)+),\.\.\.,(\d+)")


@dataclass(frozen=True, slots=True)
class Message:
    """One call's, as told; None where it is not.

    elements_in, elements_out: of the rank's input and output; size: ranks of the group; peer: other side of a send or
    receive; splits_in, splits_out: rows to and from each rank of the group, in its order, empty where they are even
    """

    elements_in: int | None = None
    elements_out: int | None = None
    size: int | None = None
    peer: int | None = None
    splits_in: tuple[int, ...] | None = None
    splits_out: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """Bytes of one rank's part in a call, None where not known.

    sent, received: to and from other ranks; to: by rank, only where the operation itself tells who gets what
    """

    sent: int | None = None
    received: int | None = None
    to: tuple[tuple[int, int], ...] = ()


def splits_of(text: object) -> tuple[int, ...] | None:
    """`[4096, 1024]` as numbers; None for what is no such list, or one that was cut short."""
    if not isinstance(text, str) or not text.startswith("[") or not text.endswith("]"):
        return None
    parts = [part.strip() for part in text[1:-1].split(",")]
    if parts == [""]:
        return ()
    whole = len(parts) <= MOST_RANKS and all(part.isascii() and part.isdecimal() and len(part) < 16 for part in parts)
    return tuple(map(int, parts)) if whole else None


def ranks_text(told: str, size: int | None, group: str, groups: Mapping[str, str]) -> str:
    """A group's ranks written out where a trace has cut them short; as told where that cannot be settled.

    told: `0,1,...,63`; groups: ranks by name of the group, as the trace's head has them. Without these, ranks that lie
    evenly as far as told, and end where so many evenly spaced ones end, are taken for such.
    """
    cut = _CUT.fullmatch(told)
    if cut is None:
        return told
    known = groups.get(group, "")
    if known and size in (None, known.count(",") + 1) and known.startswith(cut[1] + ","):
        return known
    first, *rest = map(int, cut[1].split(","))
    step = rest[0] - first
    if size is None or not len(rest) < size <= MOST_RANKS or step <= 0:
        return told
    even = range(first, first + size * step, step)
    return ",".join(map(str, even)) if list(even[1 : len(rest) + 1]) == rest and even[-1] == int(cut[2]) else told


def carried(op: str, message: Message, item: float | None, ranks: tuple[int, ...], me: int | None) -> Carried:
    """Bytes of a call.

    op: as told, `_allgather_base`; item: bytes of an element; ranks: of the group, in its order, empty where not told;
    me: rank whose trace it is. An all-reduce's, and whatever depends on a root, are not known.
    """
    if item is None or item != int(item):
        return Carried()
    size, into, out = int(item), message.elements_in, message.elements_out
    count = message.size or len(ranks)
    if op in ("send", "recv"):
        moved = into if into is not None else out
        if moved is None:
            return Carried()
        if op == "recv":
            return Carried(0, moved * size)
        other = ((message.peer, moved * size),) if message.peer is not None and message.peer != me else ()
        return Carried(moved * size, 0, other)
    kind = operator_of_collective(op)
    if count < 1 or into is None or out is None:
        return Carried()
    if kind == "all_gather" and out == into * count:
        return Carried(into * (count - 1) * size, (out - into) * size)
    if kind == "reduce_scatter" and into == out * count:
        return Carried((into - out) * size, out * (count - 1) * size)
    if kind == "all_to_all":
        at = ranks.index(me) if me in ranks and len(ranks) == count else None
        sent, received = _by_rank(into, message.splits_in, count), _by_rank(out, message.splits_out, count)
        to: tuple[tuple[int, int], ...] = ()
        if sent is not None and at is not None:
            to = tuple((ranks[peer], part * size) for peer, part in enumerate(sent) if peer != at and part)
        return Carried(_others(sent, at, size), _others(received, at, size), to)
    return Carried()


def _by_rank(elements: int, splits: tuple[int, ...] | None, count: int) -> tuple[int, ...] | None:
    """Elements to or from each rank of the group; None where that is not told."""
    if splits is None or count > MOST_RANKS:
        return None
    if not splits:
        return (elements // count,) * count if elements % count == 0 else None
    rows = sum(splits)
    if len(splits) != count or (elements % rows if rows else elements):
        return None
    return tuple(part * (elements // rows) for part in splits) if rows else splits


def _others(parts: tuple[int, ...] | None, at: int | None, size: int) -> int | None:
    """Bytes to or from all ranks but the one at `at`; where that is not known, only if all parts are alike."""
    if parts is None or (at is None and len(set(parts)) > 1):
        return None
    return (sum(parts) - parts[at or 0]) * size
