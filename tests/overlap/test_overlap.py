"""The sweep, its bins and its parts against a bitmap with one cell a nanosecond, which shares no code with them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.overlap.breakdown import overlap_of_labels
from moescope.profiler.overlap.intervals import union, union_by_group
from moescope.profiler.overlap.sweep import DeviceKernels, binned_overlap, sweep

SIZE = 48
KINDS = ("compute", "comm", "memory", "fused", "unknown")
SPAN = st.tuples(st.integers(0, SIZE), st.integers(0, 12))
KERNELS = st.lists(st.tuples(SPAN, st.sampled_from(KINDS), st.integers(-1, 3)), min_size=1, max_size=14)
WINDOWS = st.none() | st.lists(SPAN, max_size=4)


def device_of(kernels):
    ordered = sorted(kernels, key=lambda one: one[0][0])
    starts = np.array([start for (start, _), _, _ in ordered], np.int64)
    ends = starts + np.array([dur for (_, dur), _, _ in ordered], np.int64)
    kinds = np.array([kind for _, kind, _ in ordered], object)
    labels = np.array([label for _, _, label in ordered], np.int64)
    rows = np.arange(len(ordered))
    return DeviceKernels(0, "cuda:0", starts, ends, kinds, kinds, np.full(len(rows), -1), rows), labels


def cells(spans):
    return {cell for start, dur in spans for cell in range(start, start + dur)}


class Painted:
    """What each cell of a device holds."""

    def __init__(self, kernels, windows, window=None):
        everything = cells([span for span, _, _ in kernels])
        if window is not None:
            inside = set(range(*window))
        elif windows is not None:
            inside = cells(windows)
        else:
            inside = set(range(min(s for (s, _), _, _ in kernels), max(s + d for (s, d), _, _ in kernels)))
        self.recorded = inside & cells(windows) if windows is not None else inside
        self.busy = everything & self.recorded
        self.compute = self.of(kernels, "compute", "fused")
        self.comm = self.of(kernels, "comm", "fused")
        self.memory = self.of(kernels, "memory")
        self.unknown = self.of(kernels, "unknown")

    def of(self, kernels, *kinds):
        return cells([span for span, kind, _ in kernels if kind in kinds]) & self.recorded


def recorded_of(windows):
    if windows is None:
        return None
    return union(np.array([s for s, _ in windows], np.int64), np.array([s + d for s, d in windows], np.int64))


@settings(max_examples=60, deadline=None)
@given(KERNELS, WINDOWS, st.none() | st.tuples(st.integers(0, SIZE // 2), st.integers(SIZE // 2, SIZE + 9)))
def test_a_sweep_counts_every_nanosecond_once(kernels, windows, window):
    device, _ = device_of(kernels)
    swept = sweep(device, recorded_of(windows), window)
    painted = Painted(kernels, windows, window)
    for name in ("recorded", "busy", "compute", "comm", "memory", "unknown"):
        assert cells_of(getattr(swept, name)) == getattr(painted, name), name
    assert cells_of(swept.overlapped) == painted.compute & painted.comm
    assert cells_of(swept.exposed) == painted.comm - painted.compute
    assert swept.idle_ns == len(painted.recorded - painted.busy)
    share = len(painted.compute & painted.comm) / len(painted.comm) if painted.comm else None
    assert swept.overlap_fraction == share


def cells_of(intervals):
    return cells([(start, end - start) for start, end in zip(*(side.tolist() for side in intervals), strict=True)])


@settings(max_examples=60, deadline=None)
@given(KERNELS, WINDOWS, st.integers(1, 20))
def test_bins_partition_what_is_swept(kernels, windows, bin_ns):
    device, _ = device_of(kernels)
    swept = sweep(device, recorded_of(windows))
    bins = binned_overlap(swept, bin_ns)
    painted = Painted(kernels, windows)
    for at, (low, high) in enumerate(zip(bins.edges[:-1].tolist(), bins.edges[1:].tolist(), strict=True)):
        inside = set(range(low, high))
        assert high - low == bin_ns or high == swept.window[1]
        assert bins.recorded[at] == len(painted.recorded & inside)
        assert bins.compute[at] == len(painted.compute & inside)
        assert bins.comm[at] == len(painted.comm & inside)
        assert bins.overlapped[at] == len(painted.compute & painted.comm & inside)
        assert bins.exposed[at] == len((painted.comm - painted.compute) & inside)
        assert bins.idle[at] == len((painted.recorded - painted.busy) & inside)
    assert bins.recorded.sum() == len(painted.recorded)


@settings(max_examples=80, deadline=None)
@given(KERNELS, WINDOWS)
def test_parts_are_unions_of_their_own_kernels_hidden_by_compute_of_any(kernels, windows):
    device, labels = device_of(kernels)
    keys = ["a", "b", "c", "d"]
    painted = Painted(kernels, windows)
    found = {part.key: part for part in overlap_of_labels(device, sweep(device, recorded_of(windows)), keys, labels)}
    for number, key in enumerate(keys):
        own = [one for one in kernels if one[2] == number]
        spans = [cells([span]) & painted.recorded for span, _, _ in own]
        counted = [span for span, ((_, dur), _, _) in zip(spans, own, strict=True) if span or not dur]
        if not counted:
            assert key not in found
            continue
        part, comm = found[key], painted.of(own, "comm", "fused")
        assert part.kernels == len(counted)
        assert part.total_ns == sum(len(span) for span in spans)
        assert part.busy_ns == len(set().union(*spans))
        assert part.compute_ns == len(painted.of(own, "compute", "fused"))
        assert part.comm_ns == len(comm)
        assert part.memory_ns == len(painted.of(own, "memory"))
        assert part.unknown_ns == len(painted.of(own, "unknown"))
        assert part.overlapped_ns == len(comm & painted.compute)
        assert part.exposed_ns == len(comm - painted.compute)


def test_parts_come_in_the_order_in_which_they_first_run():
    device, labels = device_of([((9, 1), "comm", 0), ((0, 2), "compute", 2), ((3, 4), "compute", 1)])
    assert [part.key for part in overlap_of_labels(device, sweep(device), ["x", "y", "z"], labels)] == ["z", "y", "x"]


def test_kernels_of_one_stream_that_overlap_count_once():
    device, _ = device_of([((0, 10), "compute", 0), ((8, 10), "compute", 0), ((15, 4), "comm", 0)])
    (part,) = overlap_of_labels(device, sweep(device), ["all"], np.zeros(3, np.int64))
    assert (part.total_ns, part.busy_ns, part.compute_ns) == (24, 19, 18)
    assert (part.overlapped_ns, part.exposed_ns) == (3, 1)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), SPAN), max_size=14), st.sampled_from([0, 10**18, 2**61]))
def test_unions_by_group_are_the_unions_of_the_groups(spans, far):
    # A time of three centuries beside six groups does not fit 63 bits: it must come out all the same.
    spans = [*spans, (3, (far, 1))]
    groups = np.array([group for group, _ in spans], np.int64)
    starts = np.array([start for _, (start, _) in spans], np.int64)
    ends = starts + np.array([dur for _, (_, dur) in spans], np.int64)
    owner, (from_ns, to_ns) = union_by_group(groups, starts, ends)
    assert (np.diff(owner) >= 0).all()
    for group in range(6):
        pick, own = groups == group, owner == group
        expected = union(starts[pick], ends[pick])
        assert (from_ns[own].tolist(), to_ns[own].tolist()) == (expected[0].tolist(), expected[1].tolist())


@pytest.mark.parametrize("count", [0, 1])
def test_no_kernels_give_no_parts(count):
    device, labels = device_of([((3, 2), "comm", -1)])
    assert overlap_of_labels(device, sweep(device), ["x"] * count, labels) == []
