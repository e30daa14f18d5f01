"""Ranges in ranges against a plain search through all of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.profiler.sources.nesting import NOBODY, Innermost, leaves, outer_first, parents

ANY = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=9)


@st.composite
def nested(draw, low=0, high=40, depth=3):
    """Ranges as one thread has them: any two lie in one another or apart."""
    ranges, at = [], low
    while at < high and len(ranges) < 5 and draw(st.booleans()):
        start = draw(st.integers(at, high - 1))
        end = draw(st.integers(start + 1, high))
        ranges.append((start, end - start))
        if depth:
            ranges += draw(nested(start, end, depth - 1))
        at = end
    return ranges


def columns(ranges):
    starts = np.array([start for start, _ in ranges], np.int64)
    ends = starts + np.array([length for _, length in ranges], np.int64)
    order = outer_first(starts, ends)
    return starts[order], ends[order]


@given(st.one_of(ANY, nested()))
def test_innermost_began_last_of_all_that_hold_the_time(ranges):
    starts, ends = columns(ranges)
    times = np.arange(-1, 42)
    for time, found in zip(times.tolist(), Innermost(starts, ends).at(times).tolist(), strict=True):
        around = [
            (start, -end) for start, end in zip(starts.tolist(), ends.tolist(), strict=True) if start <= time < end
        ]
        assert (None if found == NOBODY else (int(starts[found]), -int(ends[found]))) == max(around, default=None)


@given(nested())
def test_a_parent_is_the_shortest_range_around(ranges):
    starts, ends = columns(ranges)
    for at, parent in enumerate(parents(starts, ends).tolist()):
        around = [
            int(ends[other] - starts[other])
            for other in range(at)
            if starts[other] <= starts[at] and ends[at] <= ends[other]
        ]
        assert (None if parent == NOBODY else int(ends[parent] - starts[parent])) == min(around, default=None)


@given(st.one_of(ANY, nested()))
def test_leaves_are_those_whose_inner_ranges_cover_less_than_half(ranges):
    starts, ends = columns(ranges)
    above = parents(starts, ends).tolist()
    found = set(leaves(starts, ends).tolist())

    def ancestors(at):
        return [] if above[at] == NOBODY else [above[at], *ancestors(above[at])]

    for at in range(len(starts)):
        inner = sum(int(ends[child] - starts[child]) for child in range(len(starts)) if above[child] == at)
        length = int(ends[at] - starts[at])
        works = 2 * inner < length or length == inner == 0
        assert (at in found) == (works and not found & set(ancestors(at)))
