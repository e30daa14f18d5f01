"""Each collective taken apart: how long its ranks wait for the last one to arrive, and how long it then transfers.

On the aligned clock, with s and e when a rank enters and leaves, and L when the last one enters: a rank waits from s to
L, or to e where it leaves before; it moves data for the rest of its call; the collective transfers from L to the last
e. Waiting and moving add up to the call, so what was measured is kept.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.calls import UNKNOWN
from moescope.profiler.ranks.clocks import Clocks
from moescope.profiler.ranks.matched import Matched, World, ends_of, starts_of


@dataclass(frozen=True, slots=True)
class Taken:
    """The collectives of one group that at least two ranks were seen in, taken apart; times ns on the aligned clock.

    of: the group; at: [collectives] columns of `of.rows`; ops: [collectives]; present: [ranks, collectives] who is
    seen; arrivals: [ranks, collectives] entry; wait, moving: [ranks, collectives] 0 where not seen; last: [collectives]
    row of the rank that arrives last; last_ns, next_ns: [collectives] its arrival, and that of the one before it;
    transfer: [collectives]; moved, buffer: [collectives] bytes, of the mean rank and of the operation, UNKNOWN
    """

    of: Matched
    at: Times
    ops: NDArray[np.object_]
    present: NDArray[np.bool_]
    arrivals: Times
    wait: Times
    moving: Times
    last: NDArray[np.int64]
    last_ns: Times
    next_ns: Times
    transfer: Times
    moved: Times
    buffer: Times

    @property
    def lead_ns(self) -> Times:
        """[collectives] how much later than any other rank the last one arrives, ns."""
        return self.last_ns - self.next_ns


def take_apart(world: World, one: Matched, clocks: Clocks) -> Taken | None:
    """Take the collectives of a group apart; None where no two ranks are seen in any."""
    starts, present = starts_of(world, one)
    ends, _ = ends_of(world, one)
    at = np.flatnonzero(present.sum(axis=0) > 1)
    if not len(at):
        return None
    starts, ends, present = starts[:, at], ends[:, at], present[:, at]
    for row, rank in enumerate(one.ranks):
        starts[row], ends[row] = clocks.aligned(rank, starts[row]), clocks.aligned(rank, ends[row])
    lowest = np.iinfo(np.int64).min
    arrivals = np.where(present, starts, lowest)
    last = arrivals.argmax(axis=0)
    ordered = np.partition(arrivals, len(one.ranks) - 2, axis=0)
    last_ns, next_ns = ordered[-1], ordered[-2]
    wait = np.where(present, np.clip(np.minimum(last_ns, ends) - starts, 0, None), 0)
    moving = np.where(present, ends - starts, 0) - wait
    left = np.where(present, ends, lowest).max(axis=0)
    return Taken(
        of=one,
        at=at,
        ops=one.ops[at],
        present=present,
        arrivals=arrivals,
        wait=wait,
        moving=moving,
        last=last,
        last_ns=last_ns,
        next_ns=next_ns,
        transfer=np.maximum(left - last_ns, 0),
        moved=_mean_bytes(world, one, at, present, "moved"),
        buffer=_mean_bytes(world, one, at, present, "buffer"),
    )


def _mean_bytes(world: World, one: Matched, at: Times, present: NDArray[np.bool_], name: str) -> Times:
    """[collectives] mean over the ranks that are seen; UNKNOWN where one of them does not tell."""
    total, unknown = np.zeros(len(at), np.int64), np.zeros(len(at), np.bool_)
    for row, rank in enumerate(one.ranks):
        values = np.append(getattr(world[rank], name), UNKNOWN)[one.rows[row, at]]
        unknown |= present[row] & (values < 0)
        total += np.where(present[row], np.maximum(values, 0), 0)
    return np.where(unknown, UNKNOWN, total // present.sum(axis=0))
