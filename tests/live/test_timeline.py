"""The timeline's cells, lanes and jumps against a count of every nanosecond."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.live.feed import LiveFeed
from moescope.profiler.snapshot import Lane, TimelineView
from tests.live_recording import MemorySource, Row, bitmap, device_bitmaps, kernel, phase, step, window

SIZE = 96
STREAMS = ("main", "pt_gloo_runloop 1")

kernels_of_rank = st.lists(
    st.builds(
        kernel,
        st.integers(0, SIZE - 1),
        st.integers(0, 30),
        st.sampled_from(["compute", "comm", "memory", "unknown"]),
        stream=st.sampled_from(STREAMS),
    ),
    max_size=20,
)
windows_of_rank = st.lists(st.builds(window, st.integers(0, SIZE - 1), st.integers(0, 60)), min_size=1, max_size=3)


def _feed(source: MemorySource) -> LiveFeed:
    feed = LiveFeed(source)
    feed.poll()
    return feed


def _states(lane: Lane) -> list[str]:
    states = [cell.state for cell in lane.cells for _ in range(cell.length)]
    assert [cell.start for cell in lane.cells] == [
        sum(c.length for c in lane.cells[:at]) for at in range(len(lane.cells))
    ]
    return states


def _expected(stream: list[Row], device: dict[str, object], windows: list[Row], low: int, high: int) -> set[str]:
    """States that a cell may show; more than one where shares are equal."""
    maps = device_bitmaps(stream, windows, 2 * SIZE)
    compute = device["compute"]
    busy = {
        "compute": maps["compute"],
        "overlapped": maps["comm"] & compute,
        "exposed": maps["comm"] & ~compute,  # type: ignore[operator]
        "memory": maps["memory"],
        "unknown": maps["unknown"],
    }
    shares = {name: int(bits[low:high].sum()) for name, bits in busy.items()}
    idle = int((maps["recorded"] & ~maps["busy"])[low:high].sum())
    unrecorded = high - low - int(maps["recorded"][low:high].sum())
    most = max(shares.values())
    if most and (most >= max(idle, unrecorded) or most / (high - low) >= 1 / 8):
        return {name for name, share in shares.items() if share == most}
    return {"unrecorded"} if unrecorded > idle else {"idle"}


@settings(max_examples=80, deadline=None)
@given(kernels_of_rank, windows_of_rank, st.integers(0, SIZE - 20), st.integers(1, SIZE), st.integers(1, 12))
def test_every_cell_shows_the_state_with_the_largest_share(
    kernels: list[Row], windows: list[Row], start: int, length: int, cells: int
) -> None:
    shown = _feed(MemorySource().add("kernels", kernels).add("windows", windows)).timeline(
        TimelineView(window=(start, start + length), cells=cells)
    )
    end = max(start + length, start + cells)
    assert (shown.start_ns, shown.end_ns, shown.cells) == (start, end, cells)
    device = device_bitmaps(kernels, windows, 2 * SIZE)
    assert {lane.name for lane in shown.lanes} == {row["stream"] for row in kernels}
    for lane in shown.lanes:
        stream = [row for row in kernels if row["stream"] == lane.name]
        states = _states(lane)
        assert len(states) == cells
        for cell, state in enumerate(states):
            low, high = start + (end - start) * cell // cells, start + (end - start) * (cell + 1) // cells
            assert state in _expected(stream, device, windows, low, high)


@settings(max_examples=80, deadline=None)
@given(
    st.lists(
        st.builds(kernel, st.integers(0, SIZE), st.integers(0, 20), st.sampled_from(["compute", "comm"])), max_size=20
    ),
    windows_of_rank,
    st.integers(-1, SIZE + 30),
    st.booleans(),
)
def test_the_next_exposed_stretch_is_the_nearest_long_one(
    kernels: list[Row], windows: list[Row], after: int, backward: bool
) -> None:
    scale = 10_000
    scaled = [row | {"start_ns": row["start_ns"] * scale, "dur_ns": row["dur_ns"] * scale} for row in kernels]
    wide = [row | {"start_ns": row["start_ns"] * scale, "dur_ns": row["dur_ns"] * scale} for row in windows]
    feed = _feed(MemorySource().add("kernels", scaled).add("windows", wide))
    exposed = device_bitmaps(kernels, windows, 3 * SIZE)["exposed"].tolist()
    stretches: list[tuple[int, int]] = []
    at = 0
    while at < len(exposed):
        stop = at
        while stop < len(exposed) and exposed[stop]:
            stop += 1
        if stop - at >= 5:
            stretches.append((at * scale, stop * scale))
        at = max(stop, at) + 1
    if backward:
        found = [stretch for stretch in stretches if stretch[0] < after * scale]
        expected = found[-1] if found else None
    else:
        found = [stretch for stretch in stretches if stretch[0] > after * scale]
        expected = found[0] if found else None
    assert feed.next_exposed(after * scale, None, backward=backward) == expected
    assert feed.next_exposed(after * scale, 7, backward=backward) is None


def test_a_short_kernel_is_seen_from_an_eighth_of_a_cell_on() -> None:
    source = MemorySource().add("windows", [window(0, 1600)])
    source.add("kernels", [kernel(0, 100), kernel(800, 99)])
    (lane,) = _feed(source).timeline(TimelineView(window=(0, 1600), cells=2)).lanes
    assert _states(lane) == ["compute", "idle"]


def test_the_phase_lane_shows_the_deepest_phase_that_fits() -> None:
    source = MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 100)])
    source.add("steps", [step(4, 0, 100)])
    source.add("phases", [phase(1, "layer", 20, 60), phase(2, "attn(F)", 20, 30, 1), phase(3, "tiny", 60, 4, 1)])
    lane = _feed(source).timeline(TimelineView(window=(0, 100), cells=10)).lanes[0]
    assert lane.kind == "phase"
    assert [(cell.start, cell.length, cell.label) for cell in lane.cells] == [
        (0, 2, "step 4"),
        (2, 3, "attn(F)"),
        (5, 3, "layer"),
        (8, 2, "step 4"),
    ]


def test_the_cursor_tells_the_longest_kernel_of_its_cell() -> None:
    source = MemorySource().add("windows", [window(0, 100)])
    source.add("phases", [phase(1, "combine(F)", 40, 50)])
    source.add(
        "kernels",
        [
            kernel(0, 60),
            kernel(40, 5, "comm", stream="gloo"),
            kernel(46, 40, "comm", stream="gloo", phase_id=1, bytes=4096),
        ],
    )
    feed = _feed(source)
    lanes = [lane.name for lane in feed.timeline(TimelineView(window=(0, 100), cells=5)).lanes]
    detail = feed.timeline(TimelineView(window=(0, 100), cells=5, cursor=(lanes.index("gloo"), 2))).selected
    assert detail is not None
    assert (detail.start_ns, detail.dur_ns, detail.stream, detail.phase) == (46, 40, "gloo", "combine(F)")
    assert (detail.overlapped_ns, detail.exposed_ns, detail.bytes) == (14, 26, 4096)
    assert feed.timeline(TimelineView(window=(0, 100), cells=5, cursor=(99, 2))).selected is None
    assert feed.timeline(TimelineView(window=(0, 100), cells=5, cursor=(lanes.index("phase"), 2))).selected is None


def test_a_filter_paints_matching_kernels_by_all_compute_beside_them() -> None:
    source = MemorySource().add("windows", [window(0, 100)])
    source.add("kernels", [kernel(0, 50), kernel(0, 100, "comm", stream="gloo")])
    lanes = {
        lane.name: _states(lane)
        for lane in _feed(source).timeline(TimelineView(window=(0, 100), cells=4, filter="ALL_TO")).lanes
    }
    assert lanes == {"main": ["idle"] * 4, "gloo": ["overlapped"] * 2 + ["exposed"] * 2}


def test_without_a_window_the_last_three_steps_are_shown() -> None:
    source = MemorySource().add("windows", [window(0, 1000)]).add("kernels", [kernel(0, 1000)])
    source.add("steps", [step(number, number * 100, 90) for number in range(10)])
    shown = _feed(source).timeline(TimelineView())
    assert (shown.start_ns, shown.end_ns) == (700, 990)


def test_without_steps_the_last_200_ms_that_were_recorded_are_shown() -> None:
    ms = 1_000_000
    source = MemorySource().add("windows", [window(0, 150 * ms), window(1000 * ms, 150 * ms)])
    source.add("kernels", [kernel(0, 150 * ms), kernel(1000 * ms, 150 * ms)])
    shown = _feed(source).timeline(TimelineView())
    assert (shown.start_ns, shown.end_ns) == (100 * ms, 1150 * ms)
    assert "recorded" in shown.note


def test_lanes_that_do_not_fit_are_counted() -> None:
    rows = [kernel(0, 10 + at, stream=f"s{at}") for at in range(9)]
    shown = _feed(MemorySource().add("windows", [window(0, 100)]).add("kernels", rows)).timeline(
        TimelineView(window=(0, 100), max_lanes=4)
    )
    assert [lane.name for lane in shown.lanes] == ["s5", "s6", "s7", "s8"]
    assert "5 quieter lanes not shown" in shown.note


def test_the_cores_lane_counts_units_held_by_communication() -> None:
    held = [(0, "comm", 0, 50), (1, "comm", 0, 100), (0, "compute", 50, 75)]
    source = MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 100)])
    source.add(
        "unit_intervals",
        [{"rank": 0, "unit": unit, "role": role, "start_ns": start, "end_ns": end} for unit, role, start, end in held]
        + [{"rank": 0, "device": "cuda:0", "unit": 9, "role": "comm", "start_ns": 0, "end_ns": 100}],
    )
    lane = _feed(source).timeline(TimelineView(window=(0, 100), cells=2)).lanes[-1]
    assert (lane.kind, lane.name) == ("units", "cores comm")
    assert [(cell.state, cell.label) for cell in lane.cells] == [("comm", "2"), ("comm", "1")]


def test_cells_outside_of_windows_are_unrecorded() -> None:
    source = MemorySource().add("windows", [window(0, 50)]).add("kernels", [kernel(0, 100)])
    (lane,) = _feed(source).timeline(TimelineView(window=(0, 100), cells=4)).lanes
    assert _states(lane) == ["compute", "compute", "unrecorded", "unrecorded"]
    assert bitmap([(0, 50)], 100).sum() == 50


def test_jumping_on_from_a_stretch_leaves_it() -> None:
    us = 1_000
    source = MemorySource().add("windows", [window(0, 1000 * us)])
    source.add("kernels", [kernel(start * us, 60 * us, "comm") for start in (100, 300, 500)])
    feed = _feed(source)
    assert feed.next_exposed(300 * us, None) == (500 * us, 560 * us)
    assert feed.next_exposed(300 * us, None, backward=True) == (100 * us, 160 * us)


def test_the_timeline_opens_where_something_was_recorded_last() -> None:
    source = MemorySource("live").add("windows", [window(0, 10), window(430, 50)])
    source.add("kernels", [kernel(0, 10), kernel(440, 20)])
    source.add("steps", [step(at, 100 * at, 100) for at in range(9)])
    found = _feed(source).timeline(TimelineView(cells=10))
    assert (found.start_ns, found.end_ns) == (200, 500)
    unrecorded = MemorySource().add("steps", [step(at, 100 * at, 100) for at in range(9)])
    assert _feed(unrecorded).timeline(TimelineView(cells=10)).end_ns == 900


def test_the_timeline_opens_on_the_last_steps_that_all_ranks_recorded_whole() -> None:
    times = [(rank, 100 * at) for rank in (0, 1) for at in range(12)]
    source = MemorySource().add("steps", [step(start // 100, start, 100, rank=rank) for rank, start in times])
    source.add("kernels", [kernel(start, 50, rank=rank) for rank, start in times])
    # Rank 0 has steps 2, 5, 6 and 9 whole, rank 1 has 2, 5 and 6; of all others slices.
    slices = [window(start + 40, 20, rank) for rank, start in times]
    source.add("windows", [*slices, *(window(100 * at, 99, 0) for at in (2, 5, 6, 9))])
    source.add("windows", [window(100 * at + 1, 99, 1) for at in (2, 5, 6)])
    shown = _feed(source).timeline(TimelineView(cells=40))
    assert (shown.start_ns, shown.end_ns) == (500, 700)
    of_rank_0 = _feed(source).timeline(TimelineView(cells=40, rank=0))
    assert (of_rank_0.start_ns, of_rank_0.end_ns) == (900, 1000)
