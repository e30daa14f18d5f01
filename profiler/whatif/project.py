"""Runs every scenario on the recorded graph, under all assumptions that a trace leaves open, and gives figures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from moescope.profiler.errors import MoescopeError
from moescope.profiler.overlap.intervals import Times, length, subtract, union
from moescope.profiler.whatif.casts import casts, transposed_reads
from moescope.profiler.whatif.change import LONGEST_NS, Change, Factors, Scenario, changed, together
from moescope.profiler.whatif.experts import balanced_experts
from moescope.profiler.whatif.graph import Assumed, Graph, graph_of
from moescope.profiler.whatif.hiding import perfect_overlap
from moescope.profiler.whatif.links import faster_link, one_link_domain
from moescope.profiler.whatif.nodes import NOBODY, Nodes, nodes_of, with_comm_apart
from moescope.profiler.whatif.replay import Replayed, replay
from moescope.profiler.whatif.situation import Situation
from moescope.profiler.whatif.steps import Borders, borders_of
from moescope.profiler.whatif.units import off_the_units, on_units
from moescope.profiler.whatif.waits import CERTAIN, CONSUMER, PRODUCER, Waits, waits_of

if TYPE_CHECKING:
    from moescope.profiler.source import Source

BETWEEN: Final = Assumed(frozenset((CERTAIN, PRODUCER)), host_waits=True)
"""What an estimate rests on."""
EXTREMES: Final = (
    Assumed(frozenset((CERTAIN,)), host_waits=True),
    Assumed(frozenset((CERTAIN, PRODUCER, CONSUMER)), host_waits=True),
    Assumed(frozenset((CERTAIN, PRODUCER, CONSUMER)), host_waits=False),
)
"""What bounds rest on: fewest and most dependencies, a host that waits for its device and one that does not."""

AT_ONCE: Final = frozenset(
    ("comm-off-sms", "one-link-domain", "near-memory-casts", "transposed-reads", "balanced-experts")
)
"""Scenarios that a machine could have all of; they are re-run as one, since their gains rest on the same time."""


@dataclass(frozen=True, slots=True)
class Figure:
    """low <= estimate <= high"""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Projection:
    """A scenario's figures, ns; span, gain: of the recorded stretches; step_ns: of the median step, None where none is
    whole or steps run into one another; kernels, kernels_ns: how many kernels change, and their time"""

    scenario: Scenario
    span: Figure
    gain: Figure
    step_ns: float | None
    kernels: int
    kernels_ns: int


@dataclass(frozen=True, slots=True)
class Projected:
    """All of it; times ns. span_ns: recorded; replay_error_ns: how far the replay of unchanged durations is from it;
    waits: between lanes that were found; late, late_ns: kernels that nothing recorded explains the start of, and for
    how long their devices waited; step_ns, step_spread: median step recorded and its quartiles
    over it, less 1, None where they are not known; together: of `joined`, re-run as one"""

    nodes: Nodes
    span_ns: int
    replay_error_ns: int
    waits: int
    late: int
    late_ns: int
    step_ns: float | None
    step_spread: tuple[float, float] | None
    projections: tuple[Projection, ...]
    untold: tuple[Scenario, ...]
    joined: tuple[str, ...]
    together: Projection | None


class Runs:
    """The graphs of one run under each assumption, made when they are first needed."""

    def __init__(self, nodes: Nodes) -> None:
        self.nodes = nodes
        self.waits = waits_of(nodes)
        apart, self._order = with_comm_apart(nodes)
        self._held = {False: (nodes, self.waits), True: (apart, waits_of(apart, hidden=True))}
        self._graphs: dict[tuple[Assumed, bool], Graph] = {}

    def graph(self, assumed: Assumed, *, hidden: bool = False) -> Graph:
        """The graph under an assumption; hidden: its nodes are in another order."""
        key = (assumed, hidden)
        if key not in self._graphs:
            self._graphs[key] = graph_of(*self._held[hidden], assumed)
        return self._graphs[key]

    def run(
        self, assumed: Assumed, factors: Factors | None = None, *, hidden: bool = False, wires: float = 1.0
    ) -> Replayed:
        """Replay with own times multiplied by factors. hidden: nothing but communication waits for communication"""
        graph = self.graph(assumed, hidden=hidden)
        if factors is not None and hidden:
            factors = factors[self._order]
        done = replay(graph, graph.work if factors is None else changed(graph.work, factors), wires)
        if not hidden:
            return done
        starts, ends = np.empty_like(done.starts), np.empty_like(done.ends)
        starts[self._order], ends[self._order] = done.starts, done.ends
        return Replayed(starts, ends)


def span_of(nodes: Nodes, starts: Times, ends: Times) -> int:
    """Time from the first start to the last end of each recorded stretch, added up, ns."""
    segments = nodes.segments
    order = np.argsort(segments, kind="stable")
    edges = np.concatenate(([0], np.flatnonzero(np.diff(segments[order])) + 1))
    lasts, firsts = np.maximum.reduceat(ends[order], edges), np.minimum.reduceat(starts[order], edges)
    return int((lasts - firsts).sum())


def project(source: Source, comm_sms: Iterable[int] = (), link_factors: Iterable[float] = (2.0,)) -> Projected | None:
    """Project a source; None where it holds no kernels in a stretch that all of its ranks recorded.

    comm_sms: SMs that communication is to run on, each a scenario; link_factors: how much faster links are to be.
    Raises MoescopeError where times span more than 36 years.
    """
    if not source.table("kernels").num_rows:
        return None
    nodes = nodes_of(source)
    if not len(nodes):
        return None
    if float(nodes.ends.max()) - float(nodes.starts.min()) > LONGEST_NS:
        raise MoescopeError(f"{source.name}: kernels lie more than 36 years apart: a start is missing, or damaged")
    runs = Runs(nodes)
    borders = borders_of(source, nodes)
    now = Situation(source, nodes, runs.graph(BETWEEN).work)
    scenarios = [
        perfect_overlap(now),
        off_the_units(now),
        *(on_units(now, wanted) for wanted in comm_sms),
        *(faster_link(now, factor) for factor in link_factors),
        one_link_domain(now),
        *casts(now),
        transposed_reads(now),
        balanced_experts(now),
    ]
    span = span_of(nodes, nodes.starts, nodes.ends)
    unchanged = runs.run(BETWEEN)
    told = [one for one in scenarios if one.change is not None]
    projections = tuple(_projection(runs, borders, one, one.change, span) for one in told if one.change is not None)
    waits = runs.waits
    joined = [one for one in told if one.id in AT_ONCE]
    together_ = None
    if len(joined) > 1:
        change = together([one.change for one in joined if one.change is not None])
        what = "together: " + ", ".join(one.id for one in joined)
        together_ = _projection(runs, borders, Scenario("together", what, change), change, span)
    late = np.flatnonzero(waits.late)
    return Projected(
        nodes=nodes,
        span_ns=span,
        replay_error_ns=int(np.abs(unchanged.ends - (nodes.ends - runs.graph(BETWEEN).origin)).max()),
        waits=int((waits.kinds == CERTAIN).sum()),
        late=len(late),
        late_ns=_late_ns(nodes, waits),
        step_ns=borders.median(nodes.starts, nodes.ends),
        step_spread=borders.spread(nodes.starts, nodes.ends),
        projections=projections,
        untold=tuple(one for one in scenarios if one.change is None),
        joined=tuple(one.id for one in joined),
        together=together_,
    )


def _late_ns(nodes: Nodes, waits: Waits) -> int:
    """Time before kernels that nothing recorded explains the start of, in which their rank ran nothing, ns."""
    total = 0
    ranks = nodes.ranks
    since = nodes.starts - nodes.starts
    inner = waits.before != NOBODY
    since[inner] = nodes.ends[waits.before[inner]]
    certain = waits.kinds == CERTAIN
    since[waits.targets[certain]] = nodes.ends[waits.sources[certain]]
    for rank in np.unique(ranks[waits.late]).tolist():
        own, late = ranks == rank, waits.late & (ranks == rank)
        gaps = subtract(union(since[late], nodes.starts[late]), union(nodes.starts[own], nodes.ends[own]))
        total += length(gaps)
    return total


def _projection(runs: Runs, borders: Borders, scenario: Scenario, change: Change, span: int) -> Projection:
    nodes = runs.nodes

    def spans(assumed: Assumed, factors: Factors) -> int:
        run = runs.run(assumed, factors, hidden=change.hidden, wires=change.wires)
        return span_of(nodes, run.starts, run.ends)

    done = runs.run(BETWEEN, change.between, hidden=change.hidden, wires=change.wires)
    estimate = span_of(nodes, done.starts, done.ends)
    extremes = (change.least, change.most)[: 1 if np.array_equal(change.least, change.most) else 2]
    bounds = [spans(one, factors) for one in EXTREMES for factors in extremes]
    low, high = min(estimate, *bounds), max(estimate, *bounds)
    touched = change.touched
    return Projection(
        scenario=scenario,
        span=Figure(estimate, low, high),
        gain=Figure(span - estimate, span - high, span - low),
        step_ns=None if change.hidden else borders.median(done.starts, done.ends),
        kernels=int(touched.sum()),
        kernels_ns=int((nodes.ends - nodes.starts)[touched].sum()),
    )
