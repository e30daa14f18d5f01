"""What each kernel waited for, as far as a trace shows it: the one before it in its lane, and what ended on another.

A kernel that starts after a gap in its lane waited for something. On a GPU that is taken to be whatever ended last
before it, on any stream: within `NEAR_NS` a stream waited for another, beyond it the host was late. A thread of the CPU
backend has gaps of its own, so it waits only where communication ended in one that is unusually long; what a
communicating thread runs was handed to it by a computing one.

What a trace cannot show are dependencies that never made anyone wait. Two kinds are possible: communication needs what
was computed just before it (*producer*), and what computes just after it needs what it brought (*consumer*).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times, covered_within, subtract, union
from moescope.profiler.whatif.nodes import NOBODY, Nodes

NEAR_NS: Final = 20_000
"""A stream that waits for another starts within this; events and launches take some µs."""
_LEAST_NS: Final = {False: 5_000, True: 100_000}
"""The shortest gap that is looked at, on a GPU and on the CPU backend, where a thread wakes within 0.1 ms."""
_UNUSUAL: Final = 3
"""Gaps are looked at that are so many times the lane's median gap."""
_EVER: Final = -(1 << 62)

CERTAIN, PRODUCER, CONSUMER = 0, 1, 2


@dataclass(frozen=True, slots=True)
class Waits:
    """Who starts after whom.

    before: [nodes] the node before each in its lane, NOBODY for the first; lag: [nodes] ns from its end, or from its
    start where the two overlap; overlaps: [nodes] whether they do; sources, targets, lags, kinds: [waits] between
    lanes, from the end of the source to the start of the target, CERTAIN, PRODUCER or CONSUMER; late: [nodes] started
    longer than NEAR_NS after anything ended on its GPU, so that the host was late
    """

    before: Times
    lag: Times
    overlaps: NDArray[np.bool_]
    sources: Times
    targets: Times
    lags: Times
    kinds: NDArray[np.int8]
    late: NDArray[np.bool_]


def waits_of(nodes: Nodes, *, hidden: bool = False) -> Waits:
    """Infer them.

    hidden: what would be if nothing but communication waited for communication: waits for it are left out of computing
    lanes, and its exposed time out of their gaps
    """
    count = len(nodes)
    first = np.ones(count, np.bool_)
    first[1:] = nodes.lane[1:] != nodes.lane[:-1]
    before = np.where(first, NOBODY, np.arange(count) - 1)
    starts, ends = nodes.starts, nodes.ends
    gap = np.where(first, 0, starts - ends[np.maximum(before, 0)])
    overlaps = ~first & (gap < 0)
    lag = np.where(overlaps, starts - starts[np.maximum(before, 0)], gap)
    order = np.empty(count, np.int64)
    order[np.lexsort((np.arange(count), ends, starts))] = np.arange(count)
    looked = first | (gap >= _thresholds(nodes, gap, first))
    comm_lane, on_cpu = (nodes.of_lanes(value).astype(bool) for value in (lambda one: one.comm, lambda one: one.on_cpu))
    is_comm = nodes.is_comm
    since_last = np.where(first, _EVER, ends[before])
    found: list[tuple[Times, Times, int]] = []
    waiting = np.full(count, NOBODY, np.int64)
    exposed = np.zeros(count, np.int64)
    for own in _groups(nodes):
        computing = own[~comm_lane[own]]
        communicating = own[is_comm[own]]
        shown = subtract(
            union(starts[communicating], ends[communicating]),
            union(starts[computing[~is_comm[computing]]], ends[computing[~is_comm[computing]]]),
        )
        since = np.where(first[own], starts[own], ends[np.maximum(before[own], 0)])
        exposed[own] = covered_within(shown, since, np.maximum(since, starts[own]))
        for targets, pools in (
            (own[looked[own] & ~on_cpu[own]], (own,)),
            (own[looked[own] & on_cpu[own] & ~comm_lane[own]], (communicating,)),
            (own[looked[own] & on_cpu[own] & comm_lane[own]], (communicating, computing)),
        ):
            for pool in pools:
                lost = targets[waiting[targets] == NOBODY]
                waiting[lost] = _latest(nodes, order, pool, lost, since_last[lost])
        found.append((*_producers(nodes, order, computing, own[is_comm[own] & comm_lane[own]]), PRODUCER))
        found.append((*_consumers(nodes, order, communicating, computing), CONSUMER))
    issued = _issued(nodes, order)
    waiting = np.where(issued != NOBODY, issued, waiting)
    targets = np.flatnonzero(waiting != NOBODY)
    for_comm = np.zeros(count, np.bool_)
    for_comm[targets] = is_comm[waiting[targets]] | comm_lane[waiting[targets]]
    spared = for_comm & ~comm_lane & ~is_comm
    lag = np.where((waiting != NOBODY) & ~overlaps, np.where(spared, gap - exposed, 0), lag)
    if hidden:
        lag = np.where(~comm_lane & ~is_comm & ~overlaps & ~first, np.maximum(gap - exposed, 0), lag)
        targets = targets[~spared[targets]]
    sure = starts[targets] - ends[waiting[targets]]
    late = np.zeros(count, np.bool_)
    late[targets] = (sure > NEAR_NS) & ~on_cpu[targets]
    late |= (waiting == NOBODY) & ~first & ~on_cpu & (gap > NEAR_NS)
    if hidden:
        found = [(sources, to, kind) for sources, to, kind in found if kind != CONSUMER]
    possible = [(sources, to, np.zeros(len(to), np.int64), np.full(len(to), kind)) for sources, to, kind in found]
    parts = [(waiting[targets], targets, sure, np.full(len(targets), CERTAIN)), *possible]
    joined = [np.concatenate([part[at] for part in parts]) for at in range(4)]
    return Waits(before, lag, overlaps, joined[0], joined[1], joined[2], joined[3].astype(np.int8), late)


def _thresholds(nodes: Nodes, gap: Times, first: NDArray[np.bool_]) -> Times:
    """[nodes] from which length a gap in its lane is looked at, ns."""
    found = np.zeros(len(nodes.lanes), np.int64)
    edges = np.searchsorted(nodes.lane, np.arange(len(nodes.lanes) + 1))
    for place, lane in enumerate(nodes.lanes):
        own = slice(int(edges[place]), int(edges[place + 1]))
        real = gap[own][(gap[own] > 0) & ~first[own]]
        usual = int(np.median(real)) if len(real) else 0
        found[place] = max(_LEAST_NS[lane.on_cpu], min(_UNUSUAL * usual, 10 * _LEAST_NS[lane.on_cpu]))
    return found[nodes.lane]


def _groups(nodes: Nodes) -> Iterator[Times]:
    """Nodes of each rank and stretch."""
    keys = nodes.ranks * (int(nodes.segments.max(initial=0)) + 1) + nodes.segments
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    yield from np.split(order, edges)


def _latest(nodes: Nodes, order: Times, pool: Times, targets: Times, after: Times) -> Times:
    """[targets] the node of the pool that ended last before each began, NOBODY where none ended since `after`."""
    found = np.full(len(targets), NOBODY, np.int64)
    if not len(pool) or not len(targets):
        return found
    pool = pool[np.lexsort((order[pool], nodes.ends[pool]))]
    ended = nodes.ends[pool]
    begun = nodes.starts[targets]
    # What takes no time ends when it starts: it must not be found as what it waited for itself.
    instant = nodes.ends[targets] == begun
    at = np.where(instant, np.searchsorted(ended, begun), np.searchsorted(ended, begun, side="right")) - 1
    there = at >= 0
    source = pool[np.maximum(at, 0)]
    there &= (
        (nodes.ends[source] > after) & (nodes.lane[source] != nodes.lane[targets]) & (order[source] < order[targets])
    )
    found[there] = source[there]
    return found


def _producers(nodes: Nodes, order: Times, computing: Times, communicating: Times) -> tuple[Times, Times]:
    """What ended last in any computing lane before each communication kernel began."""
    sources = _latest(nodes, order, computing, communicating, np.full(len(communicating), _EVER))
    known = sources != NOBODY
    return sources[known], communicating[known]


def _consumers(nodes: Nodes, order: Times, communicating: Times, computing: Times) -> tuple[Times, Times]:
    """What began first in any computing lane after each communication kernel ended."""
    sources, targets = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    if len(communicating) and len(computing):
        waiting = computing[~nodes.is_comm[computing]]
        waiting = waiting[np.lexsort((order[waiting], nodes.starts[waiting]))]
        at = np.searchsorted(nodes.starts[waiting], nodes.ends[communicating])
        there = at < len(waiting)
        target = waiting[np.minimum(at, max(len(waiting) - 1, 0))][there] if len(waiting) else np.empty(0, np.int64)
        source = communicating[there]
        apart = (nodes.lane[source] != nodes.lane[target]) & (order[source] < order[target])
        sources.append(source[apart])
        targets.append(target[apart])
    return np.concatenate(sources), np.concatenate(targets)


def _issued(nodes: Nodes, order: Times) -> Times:
    """[nodes] what the issuing thread ran last before it made each call, NOBODY where that is not told."""
    found = np.full(len(nodes), NOBODY, np.int64)
    told = np.flatnonzero(nodes.issuer != NOBODY)
    edges = np.searchsorted(nodes.lane, np.arange(len(nodes.lanes) + 1))
    for node in told.tolist():
        lane = int(nodes.issuer[node])
        low, high = int(edges[lane]), int(edges[lane + 1])
        issue = int(nodes.starts[node] - nodes.ahead[node])
        at = low + int(np.searchsorted(nodes.ends[low:high], issue, side="right")) - 1
        if at >= low and order[at] < order[node] and lane != nodes.lane[node]:
            found[node] = at
    return found
