"""A recording that grows, rotates, tears and lacks columns is read to its last whole batch."""

import json

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moescope.collectors.schema import arrow_schema
from moescope.profiler.errors import MoescopeError, NoData, UsageProblem
from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows, sweep
from moescope.profiler.source import open_source
from moescope.profiler.sources.recording import Recording
from moescope.profiler.summary.answer import summarise

START = 1_795_492_871_004_900_011


def kernels(*rows):
    return [
        {
            "rank": 0,
            "device": "cpu",
            "stream": "main",
            "name": name,
            "start_ns": START + start,
            "dur_ns": dur,
            "evidence": "measured",
        }
        for name, start, dur in rows
    ]


def stream_bytes(table, *batches):
    sink = pa.BufferOutputStream()
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(sink, arrow_schema(table), options=options) as writer:
        for rows in batches:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=arrow_schema(table)))
    return sink.getvalue().to_pybytes()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rank-00000").mkdir()
    set_meta(tmp_path, "live")
    return tmp_path


def set_meta(folder, state):
    part = folder / "meta.json.part"
    part.write_text(json.dumps({"state": state, "ranks": [{"rank": 0}]}))
    part.replace(folder / "meta.json")


TWO_BATCHES = stream_bytes("kernels", kernels(("aten::mm", 0, 5)), kernels(("gloo:send", 3, 9), ("aten::mm", 20, 1)))


@given(st.lists(st.integers(0, len(TWO_BATCHES)), max_size=8).map(sorted))
def test_any_growth_gives_whole_batches_only_and_in_the_end_all(tmp_path_factory, cuts):
    folder = tmp_path_factory.mktemp("rec")
    (folder / "rank-00000").mkdir()
    set_meta(folder, "live")
    file = folder / "rank-00000" / "kernels-000000.arrows"
    recording = Recording(folder)
    for cut in cuts:
        file.write_bytes(TWO_BATCHES[:cut])
        recording.poll()
        assert recording.table("kernels").num_rows in (0, 1, 3)
        assert recording.torn == []
    file.write_bytes(TWO_BATCHES)
    recording.poll()
    assert recording.table("kernels").column("name").to_pylist() == ["aten::mm", "gloo:send", "aten::mm"]
    assert not recording.poll()


def test_a_torn_tail_of_a_finished_recording_is_reported_and_the_rest_is_read(folder):
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(TWO_BATCHES[:-40])
    set_meta(folder, "finished")
    source = open_source([folder])
    assert source.state == "torn"
    assert source.torn == ["rank-00000/kernels-000000.arrows"]
    assert source.table("kernels").num_rows == 1


def test_segments_come_and_go(folder):
    first, second = (folder / "rank-00000" / f"kernels-00000{number}.arrows" for number in (0, 1))
    first.write_bytes(stream_bytes("kernels", kernels(("aten::mm", 0, 5))))
    recording = Recording(folder)
    assert recording.poll()
    second.write_bytes(stream_bytes("kernels", kernels(("aten::add", 7, 5))))
    assert recording.poll()
    assert recording.table("kernels").num_rows == 2
    first.unlink()
    assert recording.poll()
    assert recording.table("kernels").column("name").to_pylist() == ["aten::add"]


def test_meta_that_is_replaced_is_read_again(folder):
    recording = Recording(folder)
    recording.poll()
    assert recording.state == "live"
    set_meta(folder, "finished")
    assert recording.poll()
    assert recording.state == "finished"


def test_other_versions_columns_become_null_or_are_ignored(folder):
    table = pa.table({"name": ["aten::mm"], "start_ns": pa.array([START], pa.int64()), "colour": ["red"]})
    with pa.ipc.new_stream(folder / "rank-00000" / "kernels-000000.arrows", table.schema) as writer:
        writer.write_table(table)
    read = open_source([folder]).table("kernels")
    assert read.schema.equals(arrow_schema("kernels"))
    assert read.column("name").to_pylist() == ["aten::mm"]
    assert read.column("dur_ns").null_count == 1


def test_calls_that_only_issue_collectives_are_left_out(folder):
    rows = kernels(("c10d::allreduce_", 0, 5), ("gloo:all_reduce", 1, 5))
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(stream_bytes("kernels", rows))
    assert open_source([folder]).table("kernels").column("name").to_pylist() == ["gloo:all_reduce"]


def test_figures_count_time_inside_windows_only_and_state_the_coverage(folder):
    rows = kernels(("aten::mm", 0, 100), ("gloo:send", 50, 100), ("aten::mm", 300, 50), ("gloo:send", 1000, 100))
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(stream_bytes("kernels", rows))
    windows = [{"rank": 0, "source": "itt", "start_ns": START + start, "dur_ns": 200} for start in (0, 1000)]
    (folder / "rank-00000" / "windows-000000.arrows").write_bytes(stream_bytes("windows", windows))
    set_meta(folder, "finished")
    summary = summarise(open_source([folder]))
    (rank,) = summary["ranks"]
    assert (rank["span_us"], rank["compute_us"], rank["comm_us"], rank["overlapped_us"]) == (0.4, 0.1, 0.2, 0.05)
    assert rank["kernels"] == 3
    assert summary["coverage"] == pytest.approx(400 / 1200)


def test_phases_take_their_kernels_by_id_and_cpu_kernels_without_one_by_time(folder):
    rows = kernels(("gloo:send", 0, 10), ("gloo:send", 20, 10), ("gloo:send", 40, 10), ("aten::mm", 45, 10))
    rows[0]["phase_id"] = 2
    phases = [
        {"rank": 0, "id": number, "name": name, "start_ns": START + start, "dur_ns": 15, "thread": "main"}
        for number, name, start in ((1, "combine(F)", 18), (2, "dispatch(F)", 100))
    ]
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(stream_bytes("kernels", rows))
    (folder / "rank-00000" / "phases-000000.arrows").write_bytes(stream_bytes("phases", phases))
    (rank,) = summarise(open_source([folder]))["ranks"]
    found = {phase["name"]: (phase["count"], phase["comm_us"], phase["exposed_comm_us"]) for phase in rank["phases"]}
    assert found == {"combine(F)": (1, 0.01, 0.01), "dispatch(F)": (1, 0.01, 0.01), "(no phase)": (2, 0.01, 0.005)}


def test_fused_kernels_are_overlapped_by_themselves(folder):
    rows = kernels(("ag_gemm_kernel", 0, 10), ("gloo:send", 10, 10))
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(stream_bytes("kernels", rows))
    source = open_source([folder])
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device, recorded_windows(source).get(0))
    assert swept.overlap_fraction == 0.5
    assert np.diff(swept.exposed, axis=0).tolist() == [[10]]


def test_cores_are_counted_once_however_many_threads_share_them(folder):
    units = [
        {
            "rank": 0,
            "launch": launch,
            "unit": unit,
            "role": role,
            "start_ns": START + start,
            "end_ns": START + end,
            "evidence": "measured",
        }
        for launch, unit, role, start, end in (
            (1, 0, "comm", 0, 60),
            (2, 0, "comm", 30, 100),
            (3, 1, "comm", 90, 100),
            (4, 1, "compute", 0, 50),
        )
    ]
    (folder / "rank-00000" / "kernels-000000.arrows").write_bytes(
        stream_bytes("kernels", kernels(("gloo:send", 0, 100)))
    )
    (folder / "rank-00000" / "unit_intervals-000000.arrows").write_bytes(stream_bytes("unit_intervals", units))
    (folder / "meta.json").write_text(json.dumps({"state": "finished", "hardware": {"cores": 2}}))
    (rank,) = summarise(open_source([folder]))["ranks"]
    units = rank["units"]
    assert (units["kind"], units["total"], units["evidence"]) == ("core", 2, "measured")
    assert (units["comm_typical"], units["comm_peak"], units["compute_typical"]) == (1, 2, 1)
    assert units["comm_time_share"] == pytest.approx(110 / 200)


def test_a_source_without_data_says_so(folder, tmp_path):
    with pytest.raises(NoData):
        summarise(open_source([folder]))
    with pytest.raises(UsageProblem):
        open_source([tmp_path / "nothing"])
    (folder / "meta.json").write_text("{")
    with pytest.raises(MoescopeError, match=r"meta\.json"):
        open_source([folder])
