"""The live feed's figures against a count of every nanosecond, and what it does with recordings that lack things."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.live import feed as live_feed
from moescope.profiler.live.feed import LiveFeed
from moescope.profiler.report.text import steps_line
from moescope.profiler.snapshot import TimelineView, View
from moescope.profiler.steps.durations import quantile_step, warm_up
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, Row, device_bitmaps, kernel, phase, step, window

SIZE = 120

kernels_of_rank = st.lists(
    st.builds(
        kernel,
        st.integers(0, SIZE - 1),
        st.integers(-2, 30),
        st.sampled_from(["compute", "comm", "memory", "unknown"]),
        stream=st.sampled_from(["main", "pt_gloo_runloop 1", "backward"]),
    ),
    max_size=25,
)
windows_of_rank = st.lists(st.builds(window, st.integers(0, SIZE - 1), st.integers(0, 50)), max_size=4)


def _clipped(rows: list[Row]) -> list[Row]:
    return [row | {"dur_ns": min(row["dur_ns"], SIZE - row["start_ns"])} for row in rows]


def _feed(source: MemorySource) -> LiveFeed:
    feed = LiveFeed(source)
    feed.poll()
    return feed


@settings(max_examples=60, deadline=None)
@given(
    kernels_of_rank,
    windows_of_rank,
    st.integers(0, SIZE),
    st.integers(0, SIZE),
    st.lists(st.integers(0, 25), max_size=3),
)
def test_shares_equal_a_count_of_every_nanosecond_however_the_rows_arrive(
    kernels: list[Row], windows: list[Row], one: int, other: int, cuts: list[int]
) -> None:
    kernels, windows = _clipped(kernels), _clipped(windows)
    start, end = min(one, other), max(one, other)
    source = MemorySource("live")
    feed = LiveFeed(source)
    edges = [0, *sorted(min(cut, len(kernels)) for cut in cuts), len(kernels)]
    for at, (low, high) in enumerate(pairwise(edges)):
        if at == 1:
            source.add("windows", windows)
        source.add("kernels", kernels[low:high])
        feed.poll()
    if len(edges) == 2:
        source.add("windows", windows)
        feed.poll()
    shares = feed.snapshot(View(window=(start, end))).shares
    maps = {name: bits[start:end] for name, bits in device_bitmaps(kernels, windows, SIZE).items()}
    assert shares.span_ns == maps["recorded"].sum()
    assert shares.compute_only_ns == (maps["compute"] & ~maps["comm"]).sum()
    assert shares.overlapped_ns == maps["overlapped"].sum()
    assert shares.exposed_ns == maps["exposed"].sum()
    assert shares.other_ns == (maps["busy"] & ~maps["compute"] & ~maps["comm"]).sum()
    assert shares.idle_ns == (maps["recorded"] & ~maps["busy"]).sum()


@settings(max_examples=40, deadline=None)
@given(kernels_of_rank, windows_of_rank)
def test_kernel_rows_equal_a_count_of_every_nanosecond(kernels: list[Row], windows: list[Row]) -> None:
    kernels, windows = _clipped(kernels), _clipped(windows)
    feed = _feed(MemorySource("live").add("kernels", kernels).add("windows", windows))
    maps = device_bitmaps(kernels, windows, SIZE)
    rows = {row.name: row for row in feed.snapshot(View(window=(0, SIZE))).kernels}
    for name in {row["name"] for row in kernels}:
        inside = exposed = calls = 0
        for row in kernels:
            if row["name"] != name:
                continue
            begin, stop = row["start_ns"], row["start_ns"] + max(row["dur_ns"], 0)
            recorded = int(maps["recorded"][begin:stop].sum())
            if recorded or (begin < SIZE and maps["recorded"][begin]):
                calls += 1
                inside += recorded
                exposed += int(maps["exposed"][begin:stop].sum()) if name.startswith("gloo") else 0
        if not calls:
            assert name not in rows
            continue
        assert (rows[name].calls, rows[name].total_ns, rows[name].exposed_ns) == (calls, inside, exposed)


@settings(max_examples=40, deadline=None)
@given(kernels_of_rank, windows_of_rank, st.integers(1, 9))
def test_the_scrubber_is_the_exposed_share_of_each_part_of_the_run(
    kernels: list[Row], windows: list[Row], cells: int
) -> None:
    kernels, windows = _clipped(kernels), _clipped(windows)
    feed = _feed(MemorySource("live").add("kernels", kernels).add("windows", windows))
    maps = device_bitmaps(kernels, windows, SIZE)
    start, end = feed.span()
    cells_shown = feed.snapshot(View(scrubber_cells=cells)).scrubber
    assert len(cells_shown) == cells
    if end <= start:
        assert set(cells_shown) == {None}
        return
    for cell, share in enumerate(cells_shown):
        part = slice(start + (end - start) * cell // cells, start + (end - start) * (cell + 1) // cells)
        recorded = maps["recorded"][part].sum()
        assert share == (pytest.approx(maps["exposed"][part].sum() / recorded) if recorded else None)


def test_rows_of_a_vanished_segment_are_forgotten() -> None:
    source = MemorySource("live").add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(0, 400)]).add("kernels", [kernel(500, 100, "comm")])
    feed = _feed(source)
    whole = View(window=(0, 1000))
    assert feed.snapshot(whole).shares.compute_only_ns == 400
    source.forget("kernels", 0)
    feed.poll()
    after = feed.snapshot(whole).shares
    assert (after.compute_only_ns, after.exposed_ns) == (0, 100)


def test_a_vanished_window_takes_its_time_with_it() -> None:
    source = MemorySource("live").add("windows", [window(0, 100)]).add("windows", [window(500, 100)])
    source.add("kernels", [kernel(0, 50), kernel(500, 50)])
    feed = _feed(source)
    source.forget("windows", 0)
    feed.poll()
    assert feed.snapshot(View(window=(0, 1000))).shares.span_ns == 100


def test_an_empty_recording_has_figures_without_values() -> None:
    shown = _feed(MemorySource("live")).snapshot(View())
    assert shown.shares.span_ns == 0
    assert shown.ranks == ()
    assert "Nothing recorded" in shown.headline[0].text
    assert "emit.experts" in shown.experts_reason
    assert set(shown.scrubber) == {None}
    assert _feed(MemorySource("live")).timeline(TimelineView()).lanes == ()


def test_a_rank_that_appears_late_is_added() -> None:
    source = MemorySource("live").add("windows", [window(0, 100)]).add("kernels", [kernel(0, 50)])
    feed = _feed(source)
    assert [row.rank for row in feed.snapshot(View()).ranks] == [0]
    source.add("windows", [window(0, 100, rank=3)]).add("kernels", [kernel(10, 20, rank=3)])
    assert feed.poll()
    shown = feed.snapshot(View())
    assert [(row.rank, row.shares.compute_only_ns) for row in shown.ranks] == [(0, 50), (3, 20)]
    assert shown.shares.span_ns == 200


def test_a_trace_without_windows_counts_from_its_first_kernel_to_its_last() -> None:
    rows = [kernel(100, 50, stream="7"), kernel(180, 20, "comm", stream="20")]
    gpu = [row | {"device": "cuda:0"} for row in rows]
    shown = _feed(MemorySource("trace").add("kernels", gpu)).snapshot(View())
    assert shown.shares.span_ns == 100
    assert shown.shares.idle_ns == 30
    assert shown.state == "trace"
    assert shown.ranks[0].state == "trace"
    assert shown.coverage == 1.0


def test_shares_are_the_mean_of_the_known_steps_and_say_so() -> None:
    source = MemorySource().add("windows", [window(0, 2000)])
    source.add("kernels", [kernel(0, 500), kernel(1000, 300), kernel(1300, 200, "comm")])
    source.add("steps", [step(0, 0, 1000), step(1, 1000, 1000)])
    shown = _feed(source).snapshot(View())
    assert shown.shares.span_ns == 1000
    assert shown.shares.compute_only_ns == 400
    assert shown.shares.exposed_ns == 100
    assert shown.shares.idle_ns == 500
    assert "mean of 2 steps" in shown.shares_note
    assert shown.steps_ns == (1000, 1000)
    assert (shown.step, shown.stage) == (1, "train")


def test_the_note_states_the_coverage_where_only_part_was_recorded() -> None:
    source = MemorySource().add("windows", [window(0, 125), window(875, 125)])
    source.add("kernels", [kernel(0, 100), kernel(900, 100)])
    source.add("windows", [window(500, 100, rank=1)]).add("kernels", [kernel(500, 50, rank=1)])
    shown = _feed(source).snapshot(View())
    assert [row.coverage for row in shown.ranks] == [0.25, 1.0]
    assert shown.coverage == pytest.approx(350 / 1100)
    assert "32% recorded" in shown.shares_note


def test_while_live_figures_are_of_the_last_ten_seconds_only() -> None:
    second = 1_000_000_000
    source = MemorySource("live").add("windows", [window(0, 60 * second)])
    source.add("kernels", [kernel(0, second), kernel(55 * second, second, "comm")])
    shown = _feed(source).snapshot(View())
    assert shown.shares.span_ns == 10 * second
    assert shown.shares.compute_only_ns == 0
    assert "last 10 s" in shown.shares_note
    assert (shown.start_ns, shown.end_ns) == (0, 60 * second)


def test_communication_belongs_to_the_innermost_phase_of_its_launch() -> None:
    source = MemorySource().add("windows", [window(0, 1000)])
    source.add("phases", [phase(1, "layer", 0, 500), phase(2, "dispatch(F)", 10, 20, 1)])
    source.add("phases", [phase(3, "mlp(F)", 30, 400, 1)])
    source.add("kernels", [kernel(20, 300, "comm", stream="gloo", phase_id=2), kernel(100, 120, phase_id=3)])
    source.add(
        "kernels", [kernel(50, 100, "comm", stream="gloo 2", phase_id=2), kernel(900, 50, "comm", stream="gloo")]
    )
    rows = {row.name: row for row in _feed(source).snapshot(View()).phases}
    assert (rows["dispatch(F)"].comm_ns, rows["dispatch(F)"].exposed_ns) == (300, 180)
    assert (rows["(no phase)"].comm_ns, rows["(no phase)"].exposed_ns) == (50, 50)
    assert (rows["layer"].comm_ns, rows["mlp(F)"].comm_ns) == (0, 0)
    assert (rows["dispatch(F)"].count, rows["dispatch(F)"].total_ns) == (1, 20)


@pytest.mark.parametrize("peaks", [{"bf16": {"value": 2e9}}, [{"name": "bf16", "value": 2e9}], {"bf16": 2e9}])
def test_matrix_use_is_achieved_over_the_peak_that_stands_in_for_emulated_fp8(peaks: Any) -> None:
    source = MemorySource(meta={"hardware": {"peaks": peaks}}).add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(0, 1000)])
    source.add("work", [{"rank": 0, "t_ns": 5, "flops": 500, "bytes": 1, "dtype": "fp8_e4m3"}])
    shown = _feed(source).snapshot(View())
    assert shown.ranks[0].matrix_use.value == pytest.approx(0.25)
    engine = next(engine for engine in shown.engines if engine.name == "Matrix units")
    assert engine.used.value == pytest.approx(500 / 1e-6)


def test_summary_and_dashboard_have_one_matrix_use_of_ranks_that_share_a_host() -> None:
    ranks = [{"rank": 0, "host": "a"}, {"rank": 1, "host": "a"}]
    source = MemorySource(meta={"hardware": {"peaks": {"bf16": 2e9}}, "ranks": ranks})
    for rank in (0, 1):
        source.add("windows", [window(0, 1000, rank)]).add("kernels", [kernel(0, 1000, rank=rank)])
        source.add("work", [{"rank": rank, "t_ns": 5, "flops": 500, "bytes": 1, "dtype": "bf16"}])
    shown = [row.matrix_use.value for row in _feed(source).snapshot(View()).ranks]
    summed = [rank["matrix_use"]["achieved"] for rank in summarise(source)["ranks"]]
    assert summed == shown == [pytest.approx(0.5), pytest.approx(0.5)]


def test_the_note_counts_every_step_of_the_window_and_the_line_shows_the_newest() -> None:
    source = MemorySource().add("windows", [window(0, 2000)]).add("kernels", [kernel(0, 2000)])
    shown = _feed(source.add("steps", [step(i, 10 * i, 10) for i in range(200)])).snapshot(View())
    assert "mean of 200 steps" in shown.shares_note
    assert len(shown.steps_ns) == 128


def test_matrix_use_without_any_flops_says_why_it_is_unknown() -> None:
    shown = _feed(MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 50)])).snapshot(View())
    assert shown.ranks[0].matrix_use.value is None
    assert "emit.work" in shown.ranks[0].matrix_use.reason


def test_a_call_that_never_completed_is_counted_as_unfinished() -> None:
    call = {"rank": 0, "op": "all_reduce", "group": "world", "backend": "gloo", "sent_bytes": 100}
    rows = [call | {"call": n, "issue_ns": n, "start_ns": n, "dur_ns": dur} for n, dur in ((1, 10), (2, 30), (3, None))]
    source = MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 100)]).add("collectives", rows)
    (row,) = _feed(source).snapshot(View()).collectives
    assert (row.calls, row.unfinished, row.bytes, row.median_ns) == (3, 1, 300, 20)
    assert row.bytes_per_s.value == pytest.approx(200 / 40 * 1e9)


def test_an_all_reduce_moves_what_its_operand_makes_cross_a_link() -> None:
    call = {"rank": 0, "op": "all_reduce", "group": "g", "group_ranks": "0,1,2,3", "bytes": 400, "dur_ns": 100}
    rows = [call | {"call": n, "issue_ns": n, "start_ns": n} | more for n, more in enumerate(({}, {}, {"bytes": None}))]
    source = MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 100)]).add("collectives", rows)
    (row,) = _feed(source).snapshot(View()).collectives
    assert (row.calls, row.bytes) == (3, 2 * 600)  # 2 (n - 1) / n, twice; of the third it is not known
    assert row.bytes_per_s.value == pytest.approx(6e9)


def test_experts_are_summed_over_ranks_and_the_last_steps() -> None:
    def counted(number: int, rank: int, tokens: list[int]) -> list[Row]:
        return [
            {"rank": rank, "t_ns": 10 + number, "step": number, "layer": 1, "expert": at, "tokens": count}
            for at, count in enumerate(tokens)
        ]

    source = MemorySource().add("windows", [window(0, 100)]).add("kernels", [kernel(0, 99), kernel(0, 99, rank=1)])
    for number in range(40):
        source.add("experts", counted(number, 0, [1, 2, 0, 0]) + counted(number, 1, [0, 0, 3, 0]))
    shown = _feed(source).snapshot(View())
    assert [row.tokens for row in shown.experts] == [(32, 64, 96, 0)]
    assert shown.expert_rank_tokens == (96, 96)


def test_links_show_the_rate_of_the_window_and_survive_a_restarted_counter() -> None:
    second = 1_000_000_000
    totals = [0, 100, 300, 50, 150]
    rows = [
        {"host": "h", "link": "eth0", "t_ns": at * second, "tx_bytes": total, "rx_bytes": 0, "peak_bytes_per_s": 1000}
        for at, total in enumerate(totals)
    ]
    source = MemorySource().add("link_samples", rows).add("windows", [window(0, 5 * second)])
    source.add("kernels", [kernel(0, 5 * second)])
    (row,) = _feed(source).snapshot(View(window=(3 * second, 5 * second))).links
    assert row.tx_bytes_per_s.value == 100  # 50 and then 150 bytes: the counter began again
    (row,) = _feed(source).snapshot(View(window=(second, 3 * second))).links
    assert row.tx_bytes_per_s.value == 200
    (row,) = _feed(source).snapshot(View()).links
    assert row.tx_bytes_per_s.value == pytest.approx(450 / 4)
    assert row.history == (100.0, 200.0, 50.0, 100.0)
    assert row.tx_total == 450


def test_dropped_events_are_shown_and_warnings_stand_last_in_the_log() -> None:
    line = {"rank": 0, "source": "ring", "message": "m"}
    rows = [line | {"t_ns": 1, "level": "warning", "dropped": 7}, line | {"t_ns": 2, "level": "info", "dropped": 0}]
    shown = _feed(MemorySource("live").add("log", rows)).snapshot(View())
    assert shown.dropped == 7
    assert [row.level for row in shown.log] == ["info", "warning"]
    assert any(finding.id == "events-dropped" for finding in shown.findings)


def test_an_answer_is_kept_until_something_new_arrives() -> None:
    source = MemorySource("live").add("windows", [window(0, 100)]).add("kernels", [kernel(0, 50)])
    feed = _feed(source)
    first = feed.snapshot(View())
    assert feed.poll() is False
    assert feed.snapshot(View()) is first
    source.add("kernels", [kernel(60, 10)])
    assert feed.poll() is True
    assert feed.snapshot(View()) is not first


def test_while_live_a_frame_looks_at_a_bounded_number_of_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_feed, "RECENT_KERNELS", 3)
    source = MemorySource("live").add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(at * 100, 50) for at in range(10)])
    shown = _feed(source).snapshot(View())
    assert sum(row.calls for row in shown.kernels) == 3
    assert shown.shares.span_ns == 300
    assert "last 3e-07 s" in shown.shares_note


def test_cores_are_those_that_were_held_inside_recorded_windows() -> None:
    source = MemorySource(meta={"hardware": {"cores": 4}}).add("windows", [window(0, 100)])
    source.add("kernels", [kernel(0, 100)])
    held = [(0, "comm", 0, 60), (1, "comm", 0, 20), (2, "compute", 0, 100), (3, "comm", 100, 900)]
    source.add(
        "unit_intervals",
        [{"rank": 0, "unit": unit, "role": role, "start_ns": start, "end_ns": end} for unit, role, start, end in held],
    )
    units = _feed(source).snapshot(View(window=(0, 1000))).ranks[0].units
    assert (units.kind, units.total) == ("core", 4)
    assert (units.comm_typical.value, units.comm_peak.value, units.compute_typical.value) == (1, 2, 1)
    assert units.comm_time_share.value == pytest.approx(80 / 400)


def test_units_of_a_gpu_come_from_launch_grids_and_are_called_inferred() -> None:
    rows = [
        kernel(0, 100, "comm", stream="20", grid="20,1,1") | {"device": "cuda:0"},
        kernel(0, 100, stream="7", grid="500,2,1") | {"device": "cuda:0"},
    ]
    source = MemorySource("trace", meta={"hardware": {"sms": 132}}).add("kernels", rows)
    shown = _feed(source).snapshot(View())
    units = shown.ranks[0].units
    assert (units.kind, units.total, units.comm_typical.value) == ("sm", 132, 20)
    assert units.comm_typical.evidence == "inferred"
    assert "comm SMs 20/132" in "".join(part.text for part in shown.headline)


def test_gpu_counters_become_gauges_each_with_its_source() -> None:
    second = 1_000_000_000
    rows = [
        {
            "host": "h",
            "device": "cuda:0",
            "t_ns": at * second,
            "tensor_active": active,
            "sm_active": 0.9,
            "dram_active": 0.5,
            "power_w": 350.0,
            "memory_bytes": 20,
            "memory_total_bytes": 80,
        }
        for at, active in ((1, 0.1), (8, 0.3), (9, 0.5))
    ]
    gpu = [kernel(0, 10 * second, stream="7") | {"device": "cuda:0"}]
    source = MemorySource(meta={"hardware": {"peaks": {"power_w": 700.0}}}).add("device_samples", rows)
    source.add("kernels", gpu).add("windows", [window(0, 10 * second)])
    engines = {engine.name: engine for engine in _feed(source).snapshot(View()).engines}
    assert engines["Tensor counter"].share.value == pytest.approx(0.3)
    assert engines["HBM"].share.value == 0.5
    assert engines["HBM"].peak.value is None
    assert engines["Power"].share.value == 0.5
    assert engines["Memory"].share.value == 0.25
    assert all(engine.source for engine in engines.values())


def test_gpus_beside_a_hosts_cores_are_gauges_of_their_own() -> None:
    second = 1_000_000_000

    def at(seconds: int, device: str, **values: object) -> dict[str, object]:
        return {"host": "h", "device": device, "t_ns": seconds * second, **values}

    rows = [
        at(1, "cpu", sm_active=0.5),
        at(1, "cuda:0", sm_active=0.9, tensor_active=0.3, throttle="power cap, sync boost", power_w=350.0),
        at(2, "cuda:0", throttle="idle", gpu_busy=1.0),
        at(2, "cuda:1", throttle=""),
    ]
    hardware = {"gpu_devices": [{"device": "cuda:0", "power_limit_w": 700.0}, {"device": "cuda:1"}]}
    for kernels_on, busy in (("cpu", ("Cores busy", 0.5)), ("cuda:0", ("SM busy", 0.9))):
        source = MemorySource(meta={"hardware": hardware}).add("device_samples", rows)
        source.add("kernels", [kernel(0, 10 * second) | {"device": kernels_on}]).add(
            "windows", [window(0, 10 * second)]
        )
        engines = {engine.name: engine for engine in _feed(source).snapshot(View()).engines}
        assert engines[busy[0]].share.value == pytest.approx(busy[1])
        assert engines["Tensor counter"].share.value == pytest.approx(0.3)
        assert engines["Throttled"].share.value == pytest.approx(1 / 3)
        assert "power cap" in engines["Throttled"].source
        assert "sync boost" not in engines["Throttled"].source
        assert "GPU busy" not in engines
        if kernels_on != "cpu":
            assert engines["Power"].share.value is None, "the GPUs do not tell one limit"


def test_all_gauges_are_of_one_window_and_it_is_named() -> None:
    second = 1_000_000_000

    def source(state: str) -> MemorySource:
        found = MemorySource(state, meta={"hardware": {"peaks": {"bf16": 1e9}}})
        found.add("windows", [window(0, 40 * second)]).add("kernels", [kernel(0, 40 * second)])
        for at in range(40):  # in its second half the run does three times as much, on all of them
            more = 3 if at >= 20 else 1
            t_ns = at * second + 1
            found.add("work", [{"rank": 0, "t_ns": t_ns, "flops": more * 10**8, "dtype": "bf16"}])
            found.add("device_samples", [{"host": "h", "device": "cpu", "t_ns": t_ns, "sm_active": more / 10}])
            total = 100 * (at + 1) + 200 * max(at - 19, 0)
            link = {"host": "h", "link": "eth0", "tx_bytes": total, "rx_bytes": 0, "peak_bytes_per_s": 1000}
            found.add("link_samples", [link | {"t_ns": t_ns}])
        return found

    def shares(feed: LiveFeed, view: View) -> tuple[str, list[float]]:
        shown = feed.snapshot(view)
        by_name = {engine.name: engine.share.value or 0.0 for engine in shown.engines}
        return shown.time_note, [by_name[name] for name in ("Matrix units", "Cores busy", "eth0 tx")]

    finished, live = _feed(source("finished")), _feed(source("live"))
    early, late, mean = [0.1] * 3, [0.3] * 3, [0.2] * 3
    assert shares(finished, View()) == ("whole run", pytest.approx(mean, abs=0.01))
    assert shares(live, View()) == ("last 10 s", pytest.approx(late, abs=0.01))
    assert shares(live, View(window=(0, 20 * second)))[1] == pytest.approx(early, abs=0.01)
    finished.source.add("steps", [step(0, 0, 10 * second), step(1, 10 * second, 10 * second)])  # type: ignore[attr-defined]
    finished.poll()
    assert shares(finished, View()) == ("all steps", pytest.approx(early, abs=0.01))


def test_the_median_step_is_one_figure_in_the_summary_and_on_the_dashboard() -> None:
    # Two ranks, four steps: in each the lower of two ranks, and of these the lower of the middle two.
    source = MemorySource()
    for rank, durations in ((0, (10, 40, 30, 20)), (1, (12, 60, 25, 90))):
        source.add("windows", [window(0, 1000, rank)]).add("kernels", [kernel(0, 900, rank=rank)])
        source.add("steps", [step(at, 100 * at, dur, rank) for at, dur in enumerate(durations)])
    shown, summed = _feed(source).snapshot(View()), summarise(source)["steps"]
    assert shown.steps_ns == (10, 40, 25, 20)
    assert (shown.step_median.value, summed["median_us"]) == (20, 0.02)
    assert shown.step_p99.value == 40
    assert [row.step_ns.value for row in shown.ranks] == [20, 25]
    assert (summed["count"], summed["stage"], summed["others"]) == (4, "train", [])


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 100))
def test_a_quantile_of_steps_is_the_shortest_that_enough_do_not_exceed(durations: list[int], per_cent: int) -> None:
    enough = [one for one in durations if 100 * sum(other <= one for other in durations) >= per_cent * len(durations)]
    assert quantile_step(durations, per_cent / 100) == min(enough, default=None)


def test_figures_are_of_the_stage_that_takes_most_of_the_time_and_say_what_they_leave_out() -> None:
    source = MemorySource().add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(0, 200, "comm"), kernel(200, 300), kernel(600, 300)])
    prompt, tokens = (
        [step(0, 0, 400, stage="prefill")],
        [step(at, 400 + 60 * at, 60, stage="decode") for at in range(9)],
    )
    shown, summed = _feed(source.add("steps", prompt + tokens)).snapshot(View()), summarise(source)
    assert (shown.stage, shown.step, shown.words_of, shown.step_median.value) == ("decode", 8, "decode", 60)
    assert "mean of 9 decode steps" in shown.shares_note
    assert shown.shares.exposed_ns == 0  # the prompt's
    assert (summed["steps"]["stage"], summed["steps"]["count"], summed["steps"]["median_us"]) == ("decode", 9, 0.06)
    assert summed["steps"]["others"] == [{"stage": "prefill", "count": 1}]
    assert "Over its 9 decode steps (median 0.1 µs; 1 of prefill left out): " in steps_line(summed["steps"])
    assert "exposed-communication" not in {finding.id for finding in shown.findings}
    chosen = _feed(source).snapshot(View(window=(0, 400)))
    assert (chosen.stage, chosen.words_of, chosen.step_median.value) == ("prefill", "prefill", 400)
    assert "mean of 1 step ·" in chosen.shares_note


def test_a_stage_that_one_rank_ends_while_another_has_begun_the_next_is_not_among_its_steps() -> None:
    source = MemorySource()
    for rank, late in ((0, 0), (1, 10)):
        source.add("windows", [window(0, 1000, rank)])
        source.add("kernels", [kernel(0, 500, rank=rank), kernel(500, 500, "comm", rank=rank)])
        source.add("steps", [step(0, late, 100, rank, "prefill")])
        source.add("steps", [step(at, 100 + late + 80 * at, 80, rank, "decode") for at in range(10)])
    shown, summed = _feed(source).snapshot(View()), summarise(source)
    assert "mean of 10 decode steps" in shown.shares_note
    assert all("a step" in finding["gain"] for finding in summed["findings"])
    assert summed["steps"]["others"] == [{"stage": "prefill", "count": 1}]


def test_a_time_with_steps_of_several_stages_has_no_mean_step() -> None:
    source = MemorySource().add("windows", [window(0, 1000)]).add("kernels", [kernel(0, 900)])
    source.add("steps", [step(0, 0, 300), step(0, 300, 20, stage="decode"), step(1, 320, 300)])
    shown, summed = _feed(source).snapshot(View()), summarise(source)
    assert "sum over 3 steps of train, decode" in shown.shares_note
    assert shown.shares.span_ns == 620
    assert (shown.stage, shown.steps_ns, shown.step_median.value) == ("train", (300, 300), 300)
    assert "Over its 2 train steps (median 0.3 µs; 1 of decode left out): " in steps_line(summed["steps"])
    assert not any("a step" in finding.gain for finding in shown.findings)


def test_a_warm_up_is_none_of_the_steps() -> None:
    source = MemorySource().add("windows", [window(0, 30_000)])
    lasts = [9000, 100, 4000, *[100] * 40]
    starts = [sum(lasts[:at]) for at in range(len(lasts))]
    source.add("steps", [step(at, start, dur) for at, (start, dur) in enumerate(zip(starts, lasts, strict=True))])
    source.add("kernels", [kernel(start, 60) for start in starts])
    shown, summed = _feed(source).snapshot(View()), summarise(source)["steps"]
    assert (summed["count"], summed["median_us"], summed["warm_up"]) == (40, 0.1, {"count": 3, "us": 13.1})
    assert (summed["span_us"], summed["compute_us"], summed["idle_us"]) == (4.0, 2.4, 1.6)
    assert summed["typical"]["figures"]["compute"]["share"] == 0.6
    assert (shown.shares.span_ns, shown.time_note) == (100, "all steps but the first 3")  # the mean step's
    assert "(median 0.1 µs; the first 3, 13.1 µs of warm-up, left out)" in steps_line(summed)
    chosen = _feed(source).snapshot(View(window=(0, 13_100)))
    assert "mean of 3 steps" in chosen.shares_note  # what somebody asks to see is there


def test_steps_that_take_much_longer_than_the_rest_are_told_apart() -> None:
    source = MemorySource().add("windows", [window(0, 30_000)])
    lasts = [*[100] * 8, 1500, *[100] * 8, 1001, 1000]
    starts = [sum(lasts[:at]) for at in range(len(lasts))]
    source.add("steps", [step(at, start, dur) for at, (start, dur) in enumerate(zip(starts, lasts, strict=True))])
    source.add("kernels", [kernel(start, 60) for start in starts])
    summed = summarise(source)["steps"]
    assert summed["long"] == {"count": 2, "us": 2.501, "times": 10}
    assert "Over its 19 steps (median 0.1 µs; 2 of them take over 10 times that, 2.5 µs in all): " in steps_line(summed)


def test_a_warm_up_is_left_out_while_the_run_goes_on() -> None:
    source = MemorySource("live").add("windows", [window(0, 30_000)])
    lasts = [20_000, *[100] * 40]
    starts = [sum(lasts[:at]) for at in range(len(lasts))]
    source.add("steps", [step(at, start, dur) for at, (start, dur) in enumerate(zip(starts, lasts, strict=True))])
    source.add("kernels", [kernel(start, 60) for start in starts])
    assert "mean of 40 steps" in _feed(source).snapshot(View()).shares_note


@pytest.mark.parametrize(
    ("lasts", "count"),
    [
        ([9, 1, 1], 0),  # too few to tell
        ([9, 1, 1, 1], 1),
        ([1, 1, 1, 1, 9, 1, 1, 1], 0),  # among the others: a checkpoint, or a validation
        ([2, 2, 1, 1, 1, 1, 1, 1], 0),
        ([1, 9, *[1] * 10], 2),
        ([9, 1, 1, 9, *[1] * 20], 4),
        ([*[1] * 3, 9, *[1] * 20], 0),
        ([0] * 12, 0),
        ([*[1] * 10, 9, *[1] * 50], 0),
        ([320, 5] * 40, 0),  # by turns, as where every other one waits for data
        ([], 0),
    ],
)
def test_a_warm_up_is_what_takes_much_longer_at_the_start(lasts: list[int], count: int) -> None:
    assert warm_up(lasts) == count


def test_ranks_whose_warm_up_ends_apart_have_none_of_it_among_their_steps() -> None:
    source = MemorySource()
    for rank, late in ((0, 0), (1, 700)):
        source.add("windows", [window(0, 20_000, rank)])
        source.add("steps", [step(0, 0, 5000 + late, rank)])
        source.add("steps", [step(1 + at, 5000 + late + 100 * at, 100, rank) for at in range(40)])
        source.add("kernels", [kernel(5000 + late + 100 * at, 50, rank=rank) for at in range(40)])
    shown, summed = _feed(source).snapshot(View()), summarise(source)["steps"]
    assert (summed["count"], summed["warm_up"]["count"]) == (40, 1)
    assert set(shown.steps_ns) == {100}


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 5)),
        st.dictionaries(st.integers(0, 3), st.tuples(st.integers(0, 40), st.integers(0, 9)), min_size=1),
    )
)
def test_steps_equal_a_slow_count(taken: dict[tuple[str, int], dict[int, tuple[int, int]]]) -> None:
    rows = [
        step(number, start, dur, rank, stage)
        for (stage, number), ranks in taken.items()
        for rank, (start, dur) in ranks.items()
    ]
    found = _feed(MemorySource().add("steps", rows)).aggregates(View(window=(-1, 100))).steps
    lasts = {key: sorted(dur for _, dur in ranks.values())[(len(ranks) - 1) // 2] for key, ranks in taken.items()}
    total = {stage: sum(last for key, last in lasts.items() if key[0] == stage) for stage in ("a", "b")}
    assert sorted(found.durations_ns) == sorted(last for key, last in lasts.items() if key[0] == found.stage)
    assert total.get(found.stage, 0) == max(total.values())
    assert sum(count for _, count in found.others) + len(found.durations_ns) == len(taken)
    if taken:
        own = [at for key, ranks in taken.items() if key[0] == found.stage for at in ranks.values()]
        assert found.span_ns == (min(start for start, _ in own), max(start + dur for start, dur in own))


def test_decoding_is_told_in_steps_alone_and_a_chosen_stage_brings_its_advice() -> None:
    source = MemorySource().add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(0, 300), kernel(300, 400, "comm")])
    source.add("steps", [step(at, 250 * at, 250, stage="decode") for at in range(4)])
    feed = _feed(source)

    def words(view: View) -> tuple[str, str]:
        shown = feed.snapshot(view)
        headline = "".join(part.text for part in shown.headline)
        told = " ".join([headline, shown.shares_note, *(f"{f.what} {f.gain}" for f in shown.findings)])
        return told, " ".join(finding.advice for finding in shown.findings)

    (decode, decode_advice), (train, train_advice) = words(View()), words(View(stage="train"))
    assert ("token" in decode, "a step" in decode) == (False, True)
    assert ("gradients" in decode_advice, "gradients" in train_advice) == (False, True)
    assert decode == train
    assert steps_line(summarise(source)["steps"]).startswith("Over its 4 decode steps (median")


def test_the_headline_tells_the_same_error_as_the_summary_and_none_of_what_was_recorded_whole() -> None:
    def recorded(every: int) -> MemorySource:
        source = MemorySource()
        for rank in (0, 1):
            exposed = [200 + 37 * (at * at % 11) + 20 * rank for at in range(40)]
            source.add("windows", [window(1000 * at, 1000, rank=rank) for at in range(0, 40, every)])
            source.add("steps", [step(at, 1000 * at, 1000, rank, "train") for at in range(40)])
            source.add("kernels", [kernel(1000 * at, exposed[at], "comm", rank=rank) for at in range(40)])
            source.add("kernels", [kernel(1000 * at + exposed[at], 300, rank=rank) for at in range(40)])
        return source

    def headline(source: MemorySource) -> str:
        return _feed(source).snapshot(View()).headline[0].text

    part, whole = recorded(4), recorded(1)
    told = summarise(part)["steps"]
    share, error = told["exposed_comm_us"] / told["span_us"], told["errors"]["exposed_comm"]
    assert 0.01 < error < 0.1
    assert headline(part) == f"Exposed communication {100 * share:.1f} ± {error:.1%} of step"
    assert "±" not in headline(whole)
    assert "±" not in headline(recorded(20))  # two steps tell no scatter


def test_a_feed_for_one_rank_answers_for_it_unless_asked_for_another() -> None:
    source = MemorySource().add("windows", [window(0, 100), window(0, 100, rank=1)])
    source.add("kernels", [kernel(0, 100), kernel(0, 30, rank=1)])
    feed = LiveFeed(source, rank=1)
    feed.poll()
    assert feed.snapshot(View()).shares.compute_only_ns == 30
    assert feed.snapshot(View(rank=0)).shares.compute_only_ns == 100
    assert [lane.rank for lane in feed.timeline(TimelineView()).lanes] == [1]


def test_calls_that_only_issue_work_are_no_kernels() -> None:
    source = MemorySource().add("windows", [window(0, 100)])
    source.add("kernels", [kernel(0, 50), kernel(50, 50) | {"name": "c10d::allreduce_"}])
    shown = _feed(source).snapshot(View())
    assert [row.name for row in shown.kernels] == ["aten::mm"]
    assert shown.shares.idle_ns == 50


def test_a_long_kernel_of_an_earlier_batch_still_hides_what_comes_later() -> None:
    source = MemorySource("live").add("windows", [window(0, 1000)]).add("kernels", [kernel(0, 1000)])
    feed = _feed(source)
    for start in (400, 600):
        source.add("kernels", [kernel(start, 10, "comm", stream="gloo")])
        feed.poll()
    shares = feed.snapshot(View(window=(0, 1000))).shares
    assert (shares.overlapped_ns, shares.exposed_ns) == (20, 0)


def test_a_segment_that_vanishes_while_another_comes_leaves_nothing_behind() -> None:
    source = MemorySource("live", meta={"keep_ns": 1}).add("windows", [window(0, 1000)])
    source.add("kernels", [kernel(0, 100)]).add("kernels", [kernel(300, 100)])
    feed = _feed(source)
    source.forget("kernels", 0)
    source.add("kernels", [kernel(600, 50)])
    feed.poll()
    assert feed.snapshot(View(window=(0, 1000))).shares.compute_only_ns == 150


def test_quantiles_are_the_lower_median_and_the_nearest_rank() -> None:
    rows = [kernel(at * 100, dur) for at, dur in enumerate((40, 10, 30, 20))]
    (row,) = _feed(MemorySource().add("windows", [window(0, 1000)]).add("kernels", rows)).snapshot(View()).kernels
    assert (row.median_ns, row.p99_ns) == (20, 40)


def test_long_durations_are_within_a_ten_thousandth() -> None:
    second = 1_000_000_000
    rows = [kernel(0, 3 * second + 1)]
    (row,) = _feed(MemorySource().add("windows", [window(0, 9 * second)]).add("kernels", rows)).snapshot(View()).kernels
    assert row.median_ns == pytest.approx(3 * second, rel=1e-4)


def test_products_of_a_gpu_are_measured_against_its_own_peak_and_not_the_host_s() -> None:
    """The host's processor was calibrated; the GPU's peak stands in the hardware table."""
    peaks = {"bf16": {"flops_per_s": 1e9}, "copy_bytes_per_s": {"value": 1e9}}
    row = kernel(0, 1000, stream="7", grid="500,2,1") | {"device": "cuda:0", "flops": 989_500_000, "dtype": "bf16"}
    for gpu, share in (("NVIDIA H100 80GB HBM3", 1.0), ("Grace Kelly 9000", None)):
        source = MemorySource("trace", meta={"hardware": {"gpu": gpu, "peaks": peaks}})
        shown = _feed(source.add("kernels", [row])).snapshot(View())
        assert shown.ranks[0].matrix_use.value == (None if share is None else pytest.approx(share))
