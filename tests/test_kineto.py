"""Kineto traces of every odd form: times stay exact, launches find their phase, broken files are named."""

import gzip
import json
from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.kineto_file import to_ns
from moescope.profiler.nesting import Nest, leaves
from moescope.profiler.source import open_source
from moescope.profiler.summary import summarise


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


@given(st.integers(0, 2 * 10**15), st.integers(0, 999))
def test_three_decimals_of_a_microsecond_are_exact_nanoseconds(whole, rest):
    assert to_ns(Decimal(f"{whole}.{rest:03d}")) == whole * 1000 + rest


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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"traceEvents": [{"ph": "X", "na', "byte 32"),
        (b"\x00\x01\x02binary", "byte 0"),
        (b'{"hello": 1}', "traceEvents"),
        (b'{"traceEvents": [{"ph": "X", "ts": "soon"}]}', "trace"),
        (b'{"traceEvents": {}}', "trace"),
        (b'{"traceEvents": [}', "byte"),
        (gzip.compress(b'{"traceEvents": []}')[:-9], "gzip"),
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


BYTES = json.dumps({"traceEvents": GPU, "distributedInfo": {"rank": 0}, "baseTimeNanoseconds": 7}).encode()


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, len(BYTES) - 1), st.binary(max_size=3)), max_size=4), st.integers(0, len(BYTES))
)
def test_any_damage_gives_an_answer_or_a_clear_error(tmp_path_factory, edits, cut):
    data = BYTES
    for at, piece in edits:
        data = data[:at] + piece + data[at + len(piece) :]
    file = tmp_path_factory.mktemp("damaged") / "trace.json"
    for content in (
        data,
        data[:cut],
        data.replace(b"11", b"1" * 30),
        data.replace(b"7", b"1e999"),
        data.replace(b"105,", b'"NaN",'),
    ):
        file.write_bytes(content)
        problem = str(file)
        try:
            open_source([file]).table("kernels").validate(full=True)
        except MoescopeError as caught:
            problem = str(caught)
        assert str(file) in problem


@st.composite
def nested(draw, low=0, high=60, depth=3):
    ranges, at = [], low
    while at < high and len(ranges) < 6 and draw(st.booleans()):
        start = draw(st.integers(at, high - 1))
        end = draw(st.integers(start + 1, high))
        ranges.append((start, end, f"r{start}-{end}"))
        if depth:
            ranges += draw(nested(start, end, depth - 1))
        at = end
    return ranges


@given(nested())
def test_innermost_is_the_shortest_range_around_a_time(ranges):
    nest = Nest(ranges, first_id=1)
    for time in range(61):
        around = [end - start for start, end, _ in ranges if start <= time < end]
        found = nest.innermost(time)
        length = None if found is None else int(nest.ends[found - 1] - nest.starts[found - 1])
        assert length == min(around, default=None)


@given(nested())
def test_leaves_never_lie_in_one_another(ranges):
    found = leaves(ranges)
    for at, (start, end, _) in enumerate(found):
        assert all(other_end <= start or end <= other_start for other_start, other_end, _ in found[:at])
