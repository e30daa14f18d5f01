"""What compiled graphs do between the operators they call, against a slow reference that walks through time."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.profiler.classify.classifier import classify, is_host_call
from moescope.profiler.sources.graphs import SHORTEST_NS, loops_name, loops_of
from moescope.profiler.sources.nesting import outer_first

Range = tuple[int, int, bool]


@st.composite
def threads(draw: st.DrawFn) -> list[Range]:
    """Ranges of one thread that lie in one another, some of them graphs."""
    clock = [0]
    found: list[Range] = []

    def tick() -> int:
        clock[0] += draw(st.sampled_from([1, 400, 999, 1000, 1001, 5000]))
        return clock[0]

    def one(depth: int) -> None:
        start = tick()
        for _ in range(draw(st.integers(0, 3 if depth < 3 else 0))):
            one(depth + 1)
        found.append((start, tick(), draw(st.booleans())))

    for _ in range(draw(st.integers(0, 4))):
        one(0)
    return found


def reference(ranges: list[Range]) -> list[tuple[int, int, tuple[int, int]]]:
    """Of each graph, the stretches in which no range inside it runs."""
    found = []
    for start, end, is_graph in ranges:
        if not is_graph:
            continue
        inside = sorted((a, b) for a, b, _ in ranges if start <= a and b <= end and (a, b) != (start, end))
        at = start
        for a, b in [*inside, (end, end)]:
            if a - at >= SHORTEST_NS:
                found.append((at, a, (start, end)))
            at = max(at, b)
    return sorted(found)


@given(threads())
def test_loops_are_where_nothing_that_the_graph_calls_runs(ranges: list[Range]) -> None:
    starts = np.array([start for start, _, _ in ranges], np.int64)
    ends = np.array([end for _, end, _ in ranges], np.int64)
    graphs = np.array([graph for _, _, graph in ranges], np.bool_)
    order = outer_first(starts, ends)
    starts, ends, graphs = starts[order], ends[order], graphs[order]
    begin, end, owner = loops_of(starts, ends, graphs)
    found = [
        (a, b, (int(starts[of]), int(ends[of]))) for a, b, of in zip(begin.tolist(), end.tolist(), owner, strict=True)
    ]
    assert sorted(found) == reference(ranges)


def test_a_graph_is_named_by_its_key() -> None:
    assert loops_name("## Call CompiledFxGraph fgr2mmq342ganwv25utqmkuuk6 ##") == "compiled graph fgr2mmq342"
    assert loops_name("## Call CompiledFxGraph ##") == "compiled graph"
    assert classify("compiled graph fgr2mmq342").kind == "compute"
    for name in ("Torch-Compiled Region: 0/0", "CompiledFunctionBackward", "TorchDynamo Cache Lookup"):
        assert is_host_call(name)
