"""What matching gives: the same collectives, seen from every rank that takes part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.calls import UNKNOWN, Calls, Group

World: TypeAlias = Mapping[int, Calls]

BY_GROUP: Final = "process group, operation and order in the group"
BY_PAIR: Final = "sender, receiver and order between them"
BY_STREAM: Final = "order on the stream, among ranks whose calls end together"
BY_NAME: Final = "order of the kernel's name, among ranks whose calls end together"
FEW: Final = 3
"""Fewer common calls than this tell nothing about whether they end together."""


@dataclass(frozen=True, slots=True)
class Matched:
    """The collectives of one group.

    ranks: [ranks], rising; rows: [ranks, collectives] place of each in the rank's `Calls`, -1 where the rank has none;
    ops: [collectives] operation; missing: ranks of the group that the source does not hold, None where the group does
    not tell its ranks; how: what they were matched by; inferred: whether that rests on a guess
    """

    group: Group
    ranks: tuple[int, ...]
    rows: NDArray[np.int64]
    ops: NDArray[np.object_]
    missing: tuple[int, ...] | None
    how: str
    inferred: bool


@dataclass(frozen=True, slots=True)
class Unmatched:
    """Calls of one group that found no counterpart, summed over ranks, and why."""

    group: Group
    calls: int
    reason: str


@dataclass(frozen=True, slots=True)
class Matching:
    """All groups; calls, matched: over all ranks, matched those that another rank took part in."""

    groups: tuple[Matched, ...]
    unmatched: tuple[Unmatched, ...]
    calls: int
    matched: int


def ends_of(world: World, one: Matched) -> tuple[Times, NDArray[np.bool_]]:
    """[ranks, collectives] when each rank left each collective, ns, and whether that is known."""
    return _times(world, one, "ends")


def starts_of(world: World, one: Matched) -> tuple[Times, NDArray[np.bool_]]:
    """[ranks, collectives] when each rank entered each collective, ns, and whether that is known."""
    return _times(world, one, "starts")


def _times(world: World, one: Matched, name: str) -> tuple[Times, NDArray[np.bool_]]:
    found = np.stack(
        [np.append(getattr(world[rank], name), UNKNOWN)[one.rows[place]] for place, rank in enumerate(one.ranks)]
    )
    known = np.stack(
        [np.append(world[rank].ends, UNKNOWN)[one.rows[place]] >= 0 for place, rank in enumerate(one.ranks)]
    )
    return found, known


def ops_of(calls: Calls, at: Times) -> NDArray[np.object_]:
    """[calls] operation of these calls of a rank."""
    return np.array(calls.ops, object)[calls.op[at]] if len(at) else np.empty(0, object)
