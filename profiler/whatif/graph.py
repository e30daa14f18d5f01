"""Nodes and waits as a graph of starts and ends whose times follow from one another, made small and put in order.

Every time is the latest of what it depends on: `time[target] = max(time[source] + weight)`. So a shorter kernel can
make nothing later, and a replay with the recorded durations gives the recorded times. Kernels that only follow one
another in their lane are one step.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.whatif.nodes import NOBODY, Nodes
from moescope.profiler.whatif.waits import Waits

FREE: Final = -(1 << 60)
"""A time that nothing holds."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """What a trace leaves open. kinds: of waits that are held to; host_waits: whether a host that was late goes on as
    soon after the device as it did, or launches at the recorded time, whatever the device does"""

    kinds: frozenset[int]
    host_waits: bool


@dataclass(frozen=True, slots=True)
class Graph:
    """Vertex 2 s is the start of step s, 2 s + 1 its end; behind all steps stand the last entries into collectives.

    work: [nodes] ns that each takes by itself: waiting for other ranks left out, and of an emulated wire all of it
    since its exchange began; step: [nodes] its step; inner: [nodes] ns from the step's start to the node's, without
    the work of nodes before it; opens: [steps] first node; base: [vertices] earliest time, ns from `origin`; order:
    [vertices] to be computed in; pointer: [vertices + 1] into source, constant and worker, by place in `order`;
    source: [edges] place in `order`; constant: [edges] ns; worker: [edges] node whose work is added, NOBODY for
    none; wire: [edges] node whose unseen wire is added; spanned: [edges] step whose work is added, NOBODY for none
    """

    nodes: Nodes
    origin: int
    work: Times
    step: Times
    inner: Times
    opens: Times
    base: Times
    order: Times
    pointer: Times
    source: Times
    constant: Times
    worker: Times
    spanned: Times
    wire: Times


def graph_of(nodes: Nodes, waits: Waits, assumed: Assumed) -> Graph:
    """Make the graph."""
    count = len(nodes)
    origin = int(nodes.starts.min())
    starts, ends = nodes.starts - origin, nodes.ends - origin
    meetings = _meetings(nodes)
    work = ends - starts
    met = np.zeros(count, np.bool_)
    for meeting in meetings:
        met[meeting] = True
        work[meeting] = ends[meeting] - starts[meeting].max()
    held = np.isin(waits.kinds, sorted(assumed.kinds))
    sources, targets, lags = waits.sources[held], waits.targets[held], waits.lags[held]
    on_time = waits.late if not assumed.host_waits else np.zeros(count, np.bool_)
    lane_lag = np.where(on_time & ~waits.overlaps, 0, waits.lag)
    lags = np.where(on_time[targets], 0, lags)
    wired = np.flatnonzero(nodes.exchange != NOBODY)
    work[wired] = ends[wired] - starts[nodes.exchange[wired]]
    met[wired] = True
    alone = np.zeros(count, np.bool_)  # a step of its own begins
    alone |= (waits.before == NOBODY) | met | waits.overlaps | on_time
    alone[targets] = True
    after = np.zeros(count, np.bool_)
    after[sources] = True
    after |= met
    alone[nodes.exchange[wired]] = True
    beneath = np.flatnonzero(nodes.wire > 0)
    alone[beneath] = True
    after[beneath] = True
    after[waits.before[waits.overlaps]] = True
    alone[waits.before[waits.overlaps]] = True
    alone[1:] |= after[:-1]
    step = np.cumsum(alone) - 1
    opens = np.flatnonzero(alone)
    run = np.where(alone, 0, waits.lag)
    total = np.cumsum(run)
    inner = total - total[opens][step]
    steps = len(opens)
    closes = np.append(opens[1:], count) - 1
    base = np.full(2 * steps, FREE, np.int64)
    waited = np.zeros(count, np.bool_)
    waited[targets] = True
    rootless = opens[(waits.before[opens] == NOBODY) & ~waited[opens]]
    base[2 * step[rootless]] = starts[rootless]
    late = np.flatnonzero(on_time)
    base[2 * step[late]] = starts[late]
    follows = opens[(waits.before[opens] != NOBODY) & ~waits.overlaps[opens]]
    beside = opens[waits.overlaps[opens]]
    own = np.arange(steps)
    simple = ~met[opens]
    met_at = np.concatenate([np.full(len(one), 2 * steps + at) for at, one in enumerate(meetings)] or [own[:0]])
    everyone = np.concatenate([*meetings, own[:0]])
    exchange = nodes.exchange[wired]
    edges = (
        _edges(2 * step[waits.before[follows]] + 1, 2 * step[follows], lane_lag[follows]),
        # What overlaps the one before it follows that one's start, which begins a step for it.
        _edges(2 * step[waits.before[beside]], 2 * step[beside], waits.lag[beside]),
        _edges(2 * step[sources] + 1, 2 * step[targets], lags),
        _edges(2 * own[simple], 2 * own[simple] + 1, inner[closes][simple], spanned=own[simple]),
        # All ranks enter a collective before any leaves it.
        _edges(2 * step[everyone], met_at),
        _edges(met_at, 2 * step[everyone] + 1, worker=everyone),
        # An emulated wire is busy from the beginning of its exchange.
        _edges(2 * step[wired], 2 * step[wired] + 1),
        _edges(2 * step[exchange], 2 * step[wired] + 1, worker=wired),
        _edges(2 * step[beneath], 2 * step[beneath] + 1, wire=beneath),
    )
    columns = [np.concatenate([edge[at] for edge in edges]) for at in range(6)]
    vertices = 2 * steps + len(meetings)
    base = np.append(base, np.full(len(meetings), FREE, np.int64))
    order = _ordered(vertices, columns[0], columns[1])
    place = np.empty(vertices, np.int64)
    place[order] = np.arange(vertices)
    by_target = np.argsort(place[columns[1]], kind="stable")
    pointer = np.searchsorted(place[columns[1]][by_target], np.arange(vertices + 1))
    return Graph(
        nodes=nodes,
        origin=origin,
        work=work,
        step=step,
        inner=inner,
        opens=opens,
        base=base[order],
        order=order,
        pointer=pointer,
        source=place[columns[0]][by_target],
        constant=columns[2][by_target],
        worker=columns[3][by_target],
        spanned=columns[4][by_target],
        wire=columns[5][by_target],
    )


def _edges(
    source: Times,
    target: Times,
    constant: Times | None = None,
    *,
    worker: Times | None = None,
    spanned: Times | None = None,
    wire: Times | None = None,
) -> tuple[Times, ...]:
    """Columns of the graph's edges; what is not given is 0 or NOBODY."""
    none = np.full(len(source), NOBODY, np.int64)
    added = (none if given is None else given for given in (worker, spanned, wire))
    return source, target, np.zeros(len(source), np.int64) if constant is None else constant, *added


def _meetings(nodes: Nodes) -> list[Times]:
    """Collectives of which the ranks that are seen leave after all of them have entered; others are left apart."""
    found = []
    segments = nodes.segments
    for meeting in nodes.meetings:
        last = int(nodes.starts[meeting].max())
        inside = meeting[(nodes.ends[meeting] > last) & (segments[meeting] == segments[meeting[0]])]
        if len(inside) == len(meeting):
            found.append(inside)
    return found


def _ordered(count: int, sources: Times, targets: Times) -> NDArray[np.int64]:
    """[vertices] each after all that it depends on. Raises ValueError where two depend on one another."""
    by_source = np.argsort(sources, kind="stable")
    followers = targets[by_source].tolist()
    pointer = np.searchsorted(sources[by_source], np.arange(count + 1)).tolist()
    missing = np.bincount(targets, minlength=count).tolist()
    ready = deque(vertex for vertex, left in enumerate(missing) if not left)
    found: list[int] = []
    while ready:
        vertex = ready.popleft()
        found.append(vertex)
        for follower in followers[pointer[vertex] : pointer[vertex + 1]]:
            missing[follower] -= 1
            if not missing[follower]:
                ready.append(follower)
    if len(found) != count:
        raise ValueError(f"{count - len(found)} of {count} times depend on one another in a circle")
    return np.array(found, np.int64)
