"""A track answers as if it had been built at once, however often its end was rewritten."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from moescope.profiler.growing.track import EVER, Track

SIZE = 64


def _intervals(covered: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    edges = np.diff(np.concatenate(([0], covered.astype(np.int8), [0])))
    return np.flatnonzero(edges == 1).astype(np.int64), np.flatnonzero(edges == -1).astype(np.int64)


rewrites = st.lists(st.tuples(st.integers(0, SIZE), st.integers(0, 2**SIZE - 1)), min_size=1, max_size=6)


@given(rewrites, st.integers(-3, SIZE + 3), st.integers(-3, SIZE + 3))
def test_rewriting_the_end_equals_a_bitmap_of_every_nanosecond(
    changes: list[tuple[int, int]], one: int, other: int
) -> None:
    track = Track()
    truth = np.zeros(SIZE, np.bool_)
    for since, bits in changes:
        truth[since:] = np.array([bits >> at & 1 for at in range(since, SIZE)], np.bool_)
        tail = truth.copy()
        tail[:since] = False
        track.replace_from(since, *_intervals(tail))
    starts, ends = _intervals(truth)
    assert track.starts.tolist() == starts.tolist()
    assert track.ends.tolist() == ends.tolist()
    low, high = min(one, other), max(one, other)
    assert track.length(low, high) == truth[max(low, 0) : max(high, 0)].sum()
    inside = np.zeros(SIZE, np.bool_)
    inside[max(low, 0) : max(high, 0)] = True
    cut = track.between(low, high)
    expected = _intervals(truth & inside)
    assert (cut[0].tolist(), cut[1].tolist()) == (expected[0].tolist(), expected[1].tolist())
    assert track.holds(np.arange(SIZE)).tolist() == truth.tolist()


def test_many_intervals_outgrow_the_first_room() -> None:
    track = Track()
    for number in range(100):
        track.replace_from(number * 10, np.array([number * 10 + 2]), np.array([number * 10 + 5]))
    assert len(track) == 100
    assert track.length(EVER, 10_000) == 300


def test_an_empty_track_covers_nothing() -> None:
    track = Track()
    assert track.length(0, 10) == 0
    assert track.within(np.array([0, 5]), np.array([3, 9])).tolist() == [0, 0]
    assert not track.holds(np.array([1])).any()
