"""Runs a graph with given durations: when every kernel would start and end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.whatif.graph import Graph
from moescope.profiler.whatif.nodes import NOBODY


@dataclass(frozen=True, slots=True)
class Replayed:
    """starts, ends: [nodes] ns from the graph's origin"""

    starts: Times
    ends: Times


def replay(graph: Graph, work: Times, wires: float = 1.0) -> Replayed:
    """When every kernel starts and ends.

    work: [nodes] ns that each takes, waiting for other ranks left out; wires: what times of unseen wires are multiplied
    by
    """
    before = np.concatenate(([0], np.cumsum(work)))
    steps = len(graph.opens)
    edges = np.append(graph.opens, len(work))
    of_step = before[edges[1:]] - before[edges[:-1]]
    weights = graph.constant.copy()
    weights += np.where(graph.worker != NOBODY, work[np.maximum(graph.worker, 0)], 0)
    weights += np.where(graph.spanned != NOBODY, of_step[np.maximum(graph.spanned, 0)], 0)
    wire = np.rint(graph.nodes.wire * wires).astype(np.int64)
    weights += np.where(graph.wire != NOBODY, wire[np.maximum(graph.wire, 0)], 0)
    times = _latest(graph, weights)
    vertex = np.empty(len(graph.order), np.int64)
    vertex[graph.order] = times
    inside = before[:-1] - before[graph.opens][graph.step]
    starts = vertex[2 * graph.step] + graph.inner + inside
    ends = starts + work
    # The end of a collective follows from all of its ranks.
    closes = edges[1:] - 1
    ends[closes] = vertex[2 * np.arange(steps) + 1]
    return Replayed(starts, ends)


def _latest(graph: Graph, weights: Times) -> list[int]:
    """[vertices] the time of each, in the graph's order."""
    times: list[int] = graph.base.tolist()
    pointer, source, weight = graph.pointer.tolist(), graph.source.tolist(), weights.tolist()
    low = 0
    for place, high in enumerate(pointer[1:]):
        best = times[place]
        for edge in range(low, high):
            time = times[source[edge]] + weight[edge]
            if time > best:
                best = time
        times[place] = best
        low = high
    return times
