"""Which rank a trace is of: as it says, else as its file or folder is named, else by order."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

from moescope.profiler.errors import MoescopeError
from moescope.profiler.sources.columns import Origin, integer

_RANK_IN_NAME: Final = re.compile(
    r"rank[-_]?(\d+)|worker[-_]?(\d+)|(?:^|[-_.])TP[-_]?(\d+)|(?:^|[-_])r(\d+)(?=[-_.]|$)", re.I
)


def rank_in(name: str) -> int | None:
    """The rank that a file's or folder's name tells."""
    match = _RANK_IN_NAME.search(name)
    return next((integer(group, 32) for group in match.groups() if group), None) if match else None


def ranks_of(origins: Sequence[Origin]) -> tuple[list[int], list[str]]:
    """The rank of each trace, and what was odd about that.

    Raises MoescopeError where two traces are of the same rank: they are of two runs, or two parts of one.
    """
    told = [origin.rank for origin in origins]
    named = [_named(origin) for origin in origins]
    mixed = [first if first is not None else second for first, second in zip(told, named, strict=True)]
    if len(origins) == 1:
        return [mixed[0] or 0], []
    for ranks, why in ((told, ""), (named, "ranks are taken from the files' names"), (mixed, "")):
        known = [rank for rank in ranks if rank is not None]
        if len(known) == len(origins) == len(set(known)):
            return known, [why] if why else []
    _refuse_twins(origins, told, "say")
    _refuse_twins(origins, named, "are named as if")
    listed = [f"{origin.group} is rank {rank}" for rank, origin in enumerate(origins) if origin.group]
    if listed:
        some = ", ".join(listed[:8]) + (" …" if len(listed) > 8 else "")
        return list(range(len(origins))), [f"ranks are numbered by the GPU that a process used: {some}"]
    return list(range(len(origins))), ["the files do not tell their ranks apart: ranks are numbered in the order given"]


def sure_rank(origin: Origin) -> int | None:
    """The rank that a trace says it is of, unless its file is named as of another: whatever `ranks_of` settles then."""
    return origin.rank if _named(origin) in (None, origin.rank) else None


def odd_worlds(origins: Sequence[Origin], ranks: Sequence[int]) -> list[str]:
    """What speaks against these traces being of one run."""
    worlds = sorted({origin.world_size for origin in origins if origin.world_size is not None})
    if len(worlds) > 1:
        listed = ", ".join(map(str, worlds))
        return [f"the traces tell of different world sizes ({listed}): they may be of different runs"]
    beyond = [rank for rank in ranks if worlds and rank >= worlds[0] > 0]
    return [f"rank {beyond[0]} is beyond the world size of {worlds[0]} that the traces tell"] if beyond else []


def _named(origin: Origin) -> int | None:
    names = (origin.group,) if origin.group else (origin.path.name, origin.path.resolve().parent.name)
    for name in names:
        rank = rank_in(name)
        if rank is not None:
            return rank
    return None


def _refuse_twins(origins: Sequence[Origin], ranks: Sequence[int | None], how: str) -> None:
    first: dict[int, Origin] = {}
    for origin, rank in zip(origins, ranks, strict=True):
        if rank is None:
            continue
        twin = first.setdefault(rank, origin)
        if twin is not origin:
            raise MoescopeError(
                f"{twin.path} and {origin.path} both {how} they were of rank {rank}: give one trace a rank, of one run"
            )
