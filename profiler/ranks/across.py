"""What only all ranks together can tell: clocks, who waits for whom, what transfers cost, who is late and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.profiler.live.rows import rank_tokens
from moescope.profiler.ranks.calls import Calls
from moescope.profiler.ranks.clocks import Clocks, align
from moescope.profiler.ranks.lateness import Facts, Late, latecomers, surely_last
from moescope.profiler.ranks.links import SlowGroup, slow_groups
from moescope.profiler.ranks.matched import BY_PAIR, Matching, Unmatched, World
from moescope.profiler.ranks.matching import match
from moescope.profiler.ranks.part import Part, expert_rows
from moescope.profiler.ranks.waiting import Taken, take_apart

NOT_MATCHED: Final = "none of its calls could be matched across ranks"


@dataclass(frozen=True, slots=True)
class OpUse:
    """All calls of one operation, over all groups; times ns.

    calls, called_ns: over ranks, those that ended, and how long they took; collectives, groups: that were matched and
    taken apart; wait_ns, moving_ns: summed over their ranks; transfer_ns, median_transfer_ns: summed over, and of the
    median of, collectives; moved, moved_ns, buffer, buffer_ns: bytes of the mean rank and of the operation, and the
    transfer time of the collectives that tell them; told, told_ns: bytes that calls moved and the calls' time; last:
    (rank, collectives) by how often it was surely last
    """

    op: str
    calls: int
    called_ns: int
    collectives: int
    groups: int
    wait_ns: int
    moving_ns: int
    transfer_ns: int
    median_transfer_ns: int
    moved: int
    moved_ns: int
    buffer: int
    buffer_ns: int
    told: int
    told_ns: int
    last: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Across:
    """All of it. left: groups that were not taken apart; partial: of those that were, how many lack ranks, and how many
    do not tell"""

    world: World
    matching: Matching
    clocks: Clocks
    taken: tuple[Taken, ...]
    left: tuple[Unmatched, ...]
    partial: tuple[int, int]
    ops: tuple[OpUse, ...]
    late: tuple[Late, ...]
    slow: tuple[SlowGroup, ...]


def across(part: Part) -> Across:
    """Compare the ranks of a part by the collectives that they share."""
    world = {key[1]: rank.calls for key, rank in sorted(part.ranks.items()) if len(rank.calls)}
    hosts = {key[1]: rank.host for key, rank in part.ranks.items() if rank.host}
    matching = match(world)
    clocks = align(world, matching, hosts)
    taken: list[Taken] = []
    left = list(matching.unmatched)
    for one in matching.groups:
        lost = [rank for rank in one.ranks if clocks.by_rank[rank].offset_ns is None]
        apart = None if lost else take_apart(world, one, clocks)
        if apart is None:
            reason = f"the clock of rank {lost[0]} could not be aligned" if lost else "no two ranks ended any of them"
            left.append(Unmatched(one.group, int((one.rows >= 0).sum()), reason))
        else:
            taken.append(apart)
    facts = _facts(part)
    # A stage of a pipeline waits for the one before it by design: nobody is late there.
    together = [one for one in taken if one.of.how != BY_PAIR]
    return Across(
        world=world,
        matching=matching,
        clocks=clocks,
        taken=tuple(taken),
        left=tuple(left),
        partial=(sum(bool(one.of.missing) for one in taken), sum(one.of.missing is None for one in taken)),
        ops=_ops(world, taken, clocks),
        late=latecomers(world, together, clocks, facts),
        slow=slow_groups(together, clocks),
    )


def _facts(part: Part) -> dict[int, Facts]:
    """Clock and tokens of each rank; experts are taken as spread over the ranks in equal runs."""
    ranks = sorted(part.ranks)
    tokens = rank_tokens(expert_rows(part.totals.experts), len(part.listed))
    by_rank = dict(zip((key[1] for key in sorted(part.listed)), tokens, strict=False)) if tokens else {}
    return {key[1]: Facts(part.ranks[key].clock_hz, by_rank.get(key[1])) for key in ranks}


def _ops(world: World, taken: list[Taken], clocks: Clocks) -> tuple[OpUse, ...]:
    names = dict.fromkeys(op for calls in world.values() for op in calls.ops)
    found = [_op(op, world, taken, clocks) for op in names]
    return tuple(sorted(found, key=lambda one: (-one.called_ns, one.op)))


def _op(op: str, world: World, taken: list[Taken], clocks: Clocks) -> OpUse:
    each_rank = [_own(op, one) for one in world.values()]
    calls, called, told, told_ns = (sum(values) for values in zip(*each_rank, strict=True))
    wait = moving = moved = moved_ns = buffer = buffer_ns = groups = 0
    transfers = [np.empty(0, np.int64)]
    last: dict[int, int] = {}
    for one in taken:
        own = one.ops == op
        if not own.any():
            continue
        groups += 1
        wait += int(one.wait[:, own].sum())
        moving += int(one.moving[:, own].sum())
        transfers.append(one.transfer[own])
        known, whole = own & (one.moved >= 0), own & (one.buffer >= 0)
        moved, moved_ns = moved + int(one.moved[known].sum()), moved_ns + int(one.transfer[known].sum())
        buffer, buffer_ns = buffer + int(one.buffer[whole].sum()), buffer_ns + int(one.transfer[whole].sum())
        for row in one.last[own & surely_last(one, clocks)].tolist():
            rank = one.of.ranks[row]
            last[rank] = last.get(rank, 0) + 1
    each = np.concatenate(transfers)
    return OpUse(
        op=op,
        calls=calls,
        called_ns=called,
        collectives=len(each),
        groups=groups,
        wait_ns=wait,
        moving_ns=moving,
        transfer_ns=int(each.sum()),
        median_transfer_ns=int(np.sort(each)[(len(each) - 1) // 2]) if len(each) else 0,
        moved=moved,
        moved_ns=moved_ns,
        buffer=buffer,
        buffer_ns=buffer_ns,
        told=told,
        told_ns=told_ns,
        last=tuple(sorted(last.items(), key=lambda pair: (-pair[1], pair[0]))),
    )


def _own(op: str, calls: Calls) -> tuple[int, int, int, int]:
    """Calls of an operation that ended and their time; bytes that calls moved and those calls' time."""
    if op not in calls.ops:
        return 0, 0, 0, 0
    own = (calls.op == calls.ops.index(op)) & (calls.ends >= 0)
    durations = calls.ends - calls.starts
    known = own & (calls.moved >= 0)
    return int(own.sum()), int(durations[own].sum()), int(calls.moved[known].sum()), int(durations[known].sum())


def matched_by(found: Across) -> Mapping[str, int]:
    """Matched calls, over ranks, by how they were matched."""
    counts: dict[str, int] = {}
    for one in found.matching.groups:
        counts[one.how] = counts.get(one.how, 0) + int((one.rows >= 0).sum())
    return counts
