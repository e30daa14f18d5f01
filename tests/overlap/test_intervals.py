"""Interval sets against a bitmap, one cell a nanosecond, that shares no code with them."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.profiler.overlap.intervals import binned, clip, concurrency, in_order, intersect, length, subtract, union

SIZE = 64
RANGES = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, SIZE)), max_size=12)


def arrays(ranges):
    return np.array([a for a, _ in ranges], np.int64), np.array([b for _, b in ranges], np.int64)


def bitmap(ranges):
    cells = [False] * SIZE
    for start, end in ranges:
        for cell in range(start, end):
            cells[cell] = True
    return cells


def painted(intervals):
    return bitmap(list(zip(intervals[0].tolist(), intervals[1].tolist(), strict=True)))


def assert_union(intervals):
    starts, ends = intervals
    assert (ends > starts).all()
    assert (starts[1:] > ends[:-1]).all()


@given(RANGES)
def test_union_covers_what_any_interval_covers(ranges):
    found = union(*arrays(ranges))
    assert_union(found)
    assert painted(found) == bitmap(ranges)
    assert length(found) == sum(bitmap(ranges))


@given(RANGES, RANGES)
def test_intersection_and_difference_partition_a_set(first, second):
    a, b = union(*arrays(first)), union(*arrays(second))
    cells_a, cells_b = bitmap(first), bitmap(second)
    both, rest = intersect(a, b), subtract(a, b)
    assert painted(both) == [x and y for x, y in zip(cells_a, cells_b, strict=True)]
    assert painted(rest) == [x and not y for x, y in zip(cells_a, cells_b, strict=True)]
    assert length(both) + length(rest) == length(a)
    assert_union(both)


@given(RANGES, st.integers(0, SIZE), st.integers(0, SIZE))
def test_clip_keeps_only_what_lies_inside(ranges, low, high):
    cells = bitmap(ranges)
    assert painted(clip(union(*arrays(ranges)), low, high)) == [
        covered and low <= at < high for at, covered in enumerate(cells)
    ]


@given(RANGES, st.lists(st.integers(0, SIZE), min_size=2, max_size=9).map(sorted))
def test_bins_hold_the_covered_cells_between_their_edges(ranges, edges):
    cells = bitmap(ranges)
    expected = [sum(cells[a:b]) for a, b in pairwise(edges)]
    assert binned(union(*arrays(ranges)), np.array(edges, np.int64)).tolist() == expected


@given(RANGES)
def test_concurrency_counts_open_intervals_at_every_moment(ranges):
    edges, counts = concurrency(*arrays(ranges))
    for time in range(SIZE):
        at = np.searchsorted(edges, time, side="right") - 1
        assert (int(counts[at]) if at >= 0 else 0) == sum(start <= time < end for start, end in ranges)


def test_epoch_nanoseconds_lose_no_digit():
    start = 1_795_492_871_004_900_011
    found = union(np.array([start, start + 5]), np.array([start + 5, start + 7]))
    assert (found[0].tolist(), found[1].tolist()) == ([start], [start + 7])


@given(st.lists(st.one_of(st.integers(-4, 4), st.integers(-(2**62), 2**62)), max_size=20))
def test_order_of_times_keeps_the_order_of_equal_ones(times):
    found = in_order(np.array(times, np.int64))
    assert found.tolist() == sorted(range(len(times)), key=times.__getitem__)
