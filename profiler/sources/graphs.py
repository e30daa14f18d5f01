"""Loops of compiled graphs: of code that torch.compile made for a CPU, traces tell only the operators that it calls."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.sources.columns import Ints
from moescope.profiler.sources.nesting import NOBODY, parents

GRAPH_RANGE: Final = "## Call CompiledFxGraph"
"""Name of the range of a compiled graph, before its key."""
LOOPS: Final = "compiled graph"
"""Name of what a graph does by itself, before its key; recordings name it alike."""
_KEY_LETTERS: Final = 10
SHORTEST_NS: Final = 1000
"""What lies between two operators is told from this length on, as in recordings."""


def loops_name(graph: str) -> str:
    """Of the name of a graph's range."""
    key = graph.removeprefix(GRAPH_RANGE).strip(" #")
    return f"{LOOPS} {key[:_KEY_LETTERS]}".rstrip()


def loops_of(starts: Ints, ends: Ints, is_graph: NDArray[np.bool_]) -> tuple[Ints, Ints, Ints]:
    """What the graphs of one thread do outside of the operators they call: starts, ends and the graph of each stretch.

    starts, ends: [ranges] ns, ordered by `outer_first`; is_graph: [ranges] whether each is a graph's
    """
    above = parents(starts, ends)
    called = np.flatnonzero((above != NOBODY) & is_graph[above])
    graphs = np.flatnonzero(is_graph)
    # Of each graph: where it begins, then what it calls, in order; a stretch lies before each and after the last.
    owner = np.concatenate((graphs, above[called], graphs))
    begins = np.concatenate((starts[graphs], starts[called], ends[graphs]))
    until = np.concatenate((starts[graphs], ends[called], ends[graphs]))
    order = np.lexsort((until, begins, owner))
    owner, begins, until = owner[order], begins[order], until[order]
    # Calls of one graph may overlap by rounding: a stretch begins behind all of those before it.
    low = np.int64(starts.min()) if len(starts) else np.int64(0)
    span = (np.int64(ends.max()) - low + 1) if len(ends) else np.int64(1)
    place = np.searchsorted(graphs, owner)
    reached = np.maximum.accumulate(place * span + (until - low)) - place * span + low
    same = owner[1:] == owner[:-1]
    long = same & (begins[1:] - reached[:-1] >= SHORTEST_NS)
    return reached[:-1][long], begins[1:][long], owner[1:][long]
