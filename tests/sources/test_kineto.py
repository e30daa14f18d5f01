"""Kineto traces of every odd form: times stay exact, launches find their phase, broken files are named."""

import gzip
import json

import pytest

from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise


def event(cat, name, ts, dur, pid=0, tid=7, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": pid, "tid": tid, "ts": ts, "dur": dur, "args": args}


GPU = [
    event("user_annotation", "backward", 0, 50, pid=9, tid=9),
    event("user_annotation", "dispatch(B)", 10, 5, pid=9, tid=10),
    event("cuda_runtime", "cudaLaunchKernel", 11, 1, pid=9, tid=10, correlation=1),
    event("cuda_runtime", "cudaLaunchKernel", 20, 1, pid=9, tid=10, correlation=2),
    event("cuda_runtime", "cudaLaunchKernel", 90, 1, pid=9, tid=10, correlation=3),
    event("kernel", "ncclDevKernel_SendRecv(x)", 100.001, 9.999, stream=20, device=3, correlation=1, grid=[24, 1, 1]),
    event("Kernel", "nvjet_hsh_128", 105, 10, stream=7, device=3, correlation=2, grid=[256, 1, 1]),
    event("gpu_memset", "Memset (Device)", 130, 1, stream=7, device=3, correlation=3),
    event("cuda_sync", "Stream Sync", 0, 5000, stream=7, device=3),
    event("gpu_user_annotation", "backward", 100, 40, stream=7),
]


def write(path, events, **top):
    path.write_text(json.dumps({"traceEvents": events, **top}))
    return path


def test_launches_join_kernels_to_the_innermost_annotation_even_of_a_waiting_thread(tmp_path):
    source = open_source([write(tmp_path / "a.json", GPU, baseTimeNanoseconds=1_700_000_000_000_000_000)])
    phases = {row["id"]: row["name"] for row in source.table("phases").to_pylist()}
    rows = source.table("kernels").to_pylist()
    assert [phases.get(row["phase_id"]) for row in rows] == ["dispatch(B)", "backward", None]
    assert rows[0]["start_ns"] == 1_700_000_000_000_000_000 + 100_001
    assert (rows[0]["dur_ns"], rows[0]["device"], rows[0]["stream"], rows[0]["grid"]) == (
        9999,
        "cuda:3",
        "20",
        "24,1,1",
    )


LEGACY = """
{
  "schemaVersion": 1,

  "computeProperties": [

    {
      "id": 0, "name": "Tesla V100-DGXS-32GB", "multiProcessorCount": 80
    }
  ],
  "traceEvents": [

  {
    "ph": "X", "cat": "Operator",
    "name": "ProfilerStep#4", "pid": 24572, "tid": "24572",
    "ts": 1621401187223000, "dur": 9000,
    "args": {
       "Device": 24572, "External id": 2
    }
  },
  {
    "ph": "X", "cat": "user_annotation",
    "name": "forward", "pid": 24572, "tid": "24572",
    "ts": 1621401187232800, "dur": 300, "args": {}
  },
  {
    "ph": "X", "cat": "Kernel",
    "name": "volta_sgemm_128x32_nt", "pid": 0, "tid": "stream 7",
    "ts": 1621401187235025, "dur": 3,
    "args": {
      "queued": 0, "device": 0, "context": 1,
      "correlation": 570, "external id": 160,
      "registers per thread": 55,
      "shared memory": 16384,
      "grid": [1, 1, 1],
      "block": [256, 1, 1]
    }
  },
  {
    "ph": "f", "id": 570, "pid": 0, "tid": "stream 7", "ts": 1621401187235025,
    "cat": "async", "name": "launch", "bp": "e"
  },
  {
    "ph": "X", "cat": "Runtime",
    "name": "cudaLaunchKernel", "pid": 24572, "tid": "24572",
    "ts": 1621401187232901, "dur": 19,
    "args": {
      "cbid": 211, "correlation": 570,
      "external id": 130, "external ts": 1621401187232866
    }
  },
  {
    "ph": "X", "cat": "Memcpy",
    "name": "Memcpy HtoD (Pageable -> Device)", "pid": 0, "tid": "stream 7",
    "ts": 1621401187236000, "dur": 0,
    "args": {
      "device": 0, "stream": "stream 7", "correlation": 20002, "bytes": 200, "memory bandwidth (GB/s)": inf
    }
  }
]}
"""
"""As libkineto wrote before 2022: other names, integer µs, threads as text, numbers that JSON does not know."""


def test_traces_of_the_first_years_are_read_as_today_s(tmp_path):
    (tmp_path / "old.json").write_text(LEGACY)
    source = open_source([tmp_path / "old.json"])
    gemm, copy = source.table("kernels").to_pylist()
    assert (gemm["start_ns"], gemm["dur_ns"], gemm["stream"], gemm["grid"]) == (1621401187235025000, 3000, "7", "1,1,1")
    assert (copy["stream"], copy["bytes"], copy["dur_ns"]) == ("7", 200, 0)
    assert [row["step"] for row in source.table("steps").to_pylist()] == [4]
    assert [row["name"] for row in source.table("phases").to_pylist()] == ["forward"]
    assert gemm["phase_id"] == source.table("phases")["id"][0].as_py()
    assert summarise(source)["ranks"][0]["units"]["total"] == 80
    assert "no clean JSON" in source.table("log")["message"][0].as_py()


def test_rocm_traces_name_their_streams_by_queue_and_launch_through_hip(tmp_path):
    events = [
        event("user_annotation", "decode", 0, 50, pid=9, tid=9),
        event("cuda_runtime", "hipExtModuleLaunchKernel", 4, 1, pid=9, tid=9, cid=5, correlation=8, kernel="Cijk_Alik"),
        event("kernel", "Cijk_Alik_Bljk_BBS_BH_Bias_MT256x256x64", 60.25, 9.5, pid=2, tid=0, device=2, stream=0,
              correlation=8, kind="Dispatch Kernel", grid=[304, 1, 1], block=[256, 1, 1]),
        event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 80, 1, pid=2, tid=0, device=2, stream="0x55d0c0ffee",
              correlation=9, bytes=4096),
    ]  # fmt: skip
    first, second = open_source([write(tmp_path / "a.json", events)]).table("kernels").to_pylist()
    assert (first["device"], first["stream"], first["start_ns"], first["grid"]) == ("cuda:2", "0", 60_250, "304,1,1")
    assert first["phase_id"] is not None
    assert (second["stream"], second["bytes"], second["phase_id"]) == ("0x55d0c0ffee", 4096, None)


@pytest.mark.parametrize(
    "damage",
    [{"dur": -1}, {"dur": None}, {"ts": "soon"}, {"ts": 1e30}, {"dur": 1.8e19}, {"ph": "B"}, {"ts": [1]}],
)
def test_device_events_without_usable_times_are_left_out_aloud(tmp_path, damage):
    broken = event("kernel", "gemm", 300, 5, stream=7, device=3) | damage
    source = open_source([write(tmp_path / "a.json", [*GPU, broken])])
    assert source.table("kernels").num_rows == 3
    (row,) = source.table("log").to_pylist()
    assert "1 device events without a usable start and duration" in row["message"]
    assert summarise(source)["dropped_events"] == 1


def test_a_rank_without_device_events_does_not_count_its_operators_as_kernels(tmp_path):
    write(tmp_path / "rank0.json", GPU)
    write(tmp_path / "rank1.json", [event("cpu_op", "aten::mm", 0, 10, tid=1)])
    source = open_source([tmp_path])
    assert set(source.table("kernels")["rank"].to_pylist()) == {0}
    assert source.ranks() == [0, 1]
    assert any("no device events" in message for message in source.table("log")["message"].to_pylist())


def test_two_traces_of_one_rank_are_refused(tmp_path):
    for name in ("first", "second"):
        write(tmp_path / f"{name}.json", GPU, distributedInfo={"rank": 5, "world_size": 8})
    with pytest.raises(MoescopeError, match=r"first\.json and .*second\.json both say they were of rank 5"):
        open_source([tmp_path])


def test_ranks_of_a_merged_file_are_told_apart(tmp_path):
    events = [
        event("kernel", f"gemm_{rank}", 100 * rank, 10, pid=f"[TP-{rank}] 0", tid=7, device=0, stream=7)
        for rank in (1, 0)
    ]
    source = open_source([write(tmp_path / "merged.json", events, distributedInfo={"rank": 0})])
    assert [(row["rank"], row["name"]) for row in source.table("kernels").to_pylist()] == [(0, "gemm_0"), (1, "gemm_1")]


def test_worlds_of_different_sizes_are_noticed(tmp_path):
    for rank, world in ((0, 8), (1, 16)):
        write(tmp_path / f"{rank}.json", GPU, distributedInfo={"rank": rank, "world_size": world})
    assert "different world sizes (8, 16)" in open_source([tmp_path]).table("log")["message"][0].as_py()


def test_a_folder_a_rank_is_read_as_one_run(tmp_path):
    for rank in (2, 0, 1):
        (tmp_path / f"rank_{rank}").mkdir()
        write(tmp_path / f"rank_{rank}" / "trace.json", GPU)
    source = open_source([tmp_path])
    assert source.ranks() == [0, 1, 2]
    assert source.table("kernels").num_rows == 9


def test_synchronisation_is_no_kernel(tmp_path):
    (rank,) = summarise(open_source([write(tmp_path / "a.json", GPU)]))["ranks"]
    assert rank["kernels"] == 3
    assert (rank["span_us"], rank["overlapped_us"], rank["exposed_comm_us"]) == (30.999, 5, 4.999)


def test_gzip_and_bare_arrays_read_the_same(tmp_path):
    plain = open_source([write(tmp_path / "a.json", GPU)]).table("kernels")
    (tmp_path / "b.json.gz").write_bytes(gzip.compress((tmp_path / "a.json").read_bytes()))
    (tmp_path / "c.json").write_text(json.dumps(GPU))
    assert open_source([tmp_path / "b.json.gz"]).table("kernels").equals(plain)
    assert open_source([tmp_path / "c.json"]).table("kernels").equals(plain)


@pytest.mark.parametrize(
    ("names", "told", "expected"),
    [
        (["x.json", "y.json"], [1, 0], [0, 1]),
        (["rank3.json", "rank5.json"], [None, None], [3, 5]),
        (["a.json", "b.json"], [None, None], [0, 1]),
        (["TP-0.json", "TP-1.json"], [0, 0], [0, 1]),
    ],
)
def test_ranks_come_from_the_trace_then_the_file_name_then_the_order(tmp_path, names, told, expected):
    files = [
        write(tmp_path / name, GPU, distributedInfo={} if rank is None else {"rank": rank})
        for name, rank in zip(names, told, strict=True)
    ]
    assert open_source(files).ranks() == expected


def test_a_cpu_trace_gives_leaf_operators(tmp_path):
    events = [
        event("cpu_op", "aten::linear", 0, 10, tid=1),
        event("cpu_op", "aten::addmm", 1, 8, tid=1),
        event("cpu_op", "aten::sum", 20, 10, tid=1),
        event("cpu_op", "aten::fill_", 21, 1, tid=1),
        event("cpu_op", "c10d::allreduce_", 40, 1, tid=1),
        event("user_annotation", "gloo:all_reduce", 41, 20, tid=2),
    ]
    source = open_source([write(tmp_path / "cpu.json", events)])
    assert source.table("kernels").column("name").to_pylist() == ["aten::addmm", "aten::sum", "gloo:all_reduce"]
    (rank,) = summarise(source)["ranks"]
    assert (rank["device"], rank["compute_us"], rank["comm_us"]) == ("cpu", 18, 20)


def test_what_a_compiled_graph_does_itself_is_a_kernel_of_a_cpu_trace(tmp_path):
    graph = "## Call CompiledFxGraph fgr2mmq342ganwv25utqmkuuk6 ##"
    events = [
        event("cpu_op", "TorchDynamo Cache Lookup", 0, 10, tid=1),
        event("cpu_op", "Torch-Compiled Region: 0/0", 10, 100, tid=1),
        event("cpu_op", "CompiledFunction", 11, 98, tid=1),
        event("cpu_op", graph, 12, 96, tid=1),
        event("cpu_op", "aten::addmm", 20, 10, tid=1),
        event("cpu_op", "aten::mm", 30.5, 9.5, tid=1),
        event("cpu_op", "aten::mul", 50, 5, tid=2),
    ]
    rows = open_source([write(tmp_path / "cpu.json", events)]).table("kernels").to_pylist()
    base = min(row["start_ns"] for row in rows) - 12_000
    found = [(row["name"], (row["start_ns"] - base) / 1e3, row["dur_ns"] / 1e3, row["evidence"]) for row in rows]
    assert found == [
        ("compiled graph fgr2mmq342", 12, 8, "derived"),
        ("aten::addmm", 20, 10, "measured"),
        ("aten::mm", 30.5, 9.5, "measured"),
        ("compiled graph fgr2mmq342", 40, 68, "derived"),
        ("aten::mul", 50, 5, "measured"),
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"traceEvents": [{"ph": "X", "na', "byte 32"),
        (b"\x00\x01\x02binary", "byte 0"),
        (b'{"hello": 1}', "traceEvents"),
        (b'{"traceEvents": [{"ph": "X", "name": ["soon"]}]}', "event 0 of traceEvents"),
        (b'{"traceEvents": {}}', "trace"),
        (b'{"traceEvents": [}', "byte"),
        (gzip.compress(b'{"traceEvents": []}', mtime=0)[:-9], "gzip"),
        (b"\x1f\x8bnot gzip at all", "gzip"),
    ],
)
def test_broken_files_are_named_with_what_is_wrong(tmp_path, content, problem):
    file = tmp_path / "broken.json"
    file.write_bytes(content)
    with pytest.raises(MoescopeError, match=problem) as caught:
        open_source([file])
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"  \n", b'{"traceEvents": []}', b"[]"])
def test_files_without_events_hold_no_data(tmp_path, content):
    file = tmp_path / "empty.json"
    file.write_bytes(content)
    with pytest.raises(NoData, match="empty"):
        open_source([file])
