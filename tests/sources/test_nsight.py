"""Nsight Systems' SQLite exports of several versions: ranks, launches, names and times, and files that are none."""

import json
import re
import sqlite3
from contextlib import closing

import pytest

from moescope.profiler.commands.main import main
from moescope.profiler.errors import MoescopeError, NoData, UsageProblem
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise

SESSION_NS = 1_790_000_000_000_000_000
NAMES = {
    1: "nvjet_hsh_128", 2: "ncclDevKernel_SendRecv(x)", 3: "forward", 4: "dispatch(F)", 5: "pt_autograd", 6: "unused",
}  # fmt: skip
TODAY = """
CREATE TABLE StringIds (id INTEGER NOT NULL PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE ThreadNames (nameId INTEGER NOT NULL, priority INTEGER, globalTid INTEGER);
CREATE TABLE TARGET_INFO_SESSION_START_TIME (utcEpochNs INTEGER, utcTime TEXT, localTime TEXT);
CREATE TABLE TARGET_INFO_GPU (vmId INTEGER NOT NULL, id INTEGER NOT NULL, name TEXT, smCount INTEGER, uuid TEXT);
CREATE TABLE TARGET_INFO_CUDA_DEVICE (gpuId INTEGER, cudaId INTEGER NOT NULL, pid INTEGER NOT NULL, uuid TEXT,
    numMultiprocessors INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    contextId INTEGER NOT NULL, greenContextId INTEGER, streamId INTEGER NOT NULL, correlationId INTEGER,
    globalPid INTEGER, demangledName INTEGER NOT NULL, shortName INTEGER NOT NULL, mangledName INTEGER,
    registersPerThread INTEGER NOT NULL, gridX INTEGER NOT NULL, gridY INTEGER NOT NULL, gridZ INTEGER NOT NULL,
    blockX INTEGER NOT NULL, blockY INTEGER NOT NULL, blockZ INTEGER NOT NULL, staticSharedMemory INTEGER NOT NULL,
    dynamicSharedMemory INTEGER NOT NULL, graphNodeId INTEGER);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMCPY (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, bytes INTEGER NOT NULL,
    copyKind INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_MEMSET (start INTEGER NOT NULL, end INTEGER NOT NULL, deviceId INTEGER NOT NULL,
    streamId INTEGER NOT NULL, correlationId INTEGER, globalPid INTEGER, value INTEGER, bytes INTEGER NOT NULL);
CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INTEGER NOT NULL, end INTEGER NOT NULL, eventClass INTEGER NOT NULL,
    globalTid INTEGER, correlationId INTEGER, nameId INTEGER NOT NULL, returnValue INTEGER NOT NULL);
CREATE TABLE NVTX_EVENTS (start INTEGER NOT NULL, end INTEGER, eventType INTEGER NOT NULL, rangeId INTEGER,
    text TEXT, globalTid INTEGER, endGlobalTid INTEGER, textId INTEGER, domainId INTEGER);
"""
"""As Nsight Systems 2024 and later export it, without columns that nobody here reads."""


def gid(pid, tid=0):
    return 3 << 56 | 1 << 48 | pid << 24 | tid


def make(path, schema=TODAY, pids=(100, 200), **rows):
    """An export of processes that each launch a product in `forward` and a send-receive in `dispatch(F)` within it.

    The second one is launched from another thread while the first waits. Correlations count from 1 in each process.
    """
    everything = {
        "StringIds": [{"id": number, "value": text} for number, text in NAMES.items()],
        "TARGET_INFO_SESSION_START_TIME": [{"utcEpochNs": SESSION_NS}],
        "TARGET_INFO_GPU": [{"vmId": 0, "id": gpu, "name": "NVIDIA H800", "smCount": 132} for gpu in range(8)],
        "TARGET_INFO_CUDA_DEVICE": [
            {"gpuId": len(pids) - 1 - at, "cudaId": 0, "pid": pid} for at, pid in enumerate(pids)
        ],
    }
    for pid in pids:
        here, there, work = gid(pid, pid + 1), gid(pid, pid + 2), {"deviceId": 0, "contextId": 1, "globalPid": gid(pid)}
        kernel = work | dict.fromkeys(("gridY", "gridZ", "blockY", "blockZ"), 1) | {"blockX": 384, "shortName": 6}
        kernel |= {"registersPerThread": 168, "staticSharedMemory": 1024, "dynamicSharedMemory": 2048}
        gemm, send = {"demangledName": 1}, {"demangledName": 2}
        call = {"eventClass": 0, "nameId": 6, "returnValue": 0}
        for table, times, row in (
            ("KERNEL", (2000 + pid, 3001 + pid), kernel | {"streamId": 7, "correlationId": 1, "gridX": 132} | gemm),
            ("KERNEL", (2500 + pid, 3500 + pid), kernel | {"streamId": 20, "correlationId": 2, "gridX": 20} | send),
            ("MEMCPY", (4000, 4100), work | {"streamId": 7, "correlationId": 3, "bytes": 4096, "copyKind": 8}),
            ("MEMSET", (4200, 4210), work | {"streamId": 7, "correlationId": 4, "bytes": 64, "value": 0}),
            ("RUNTIME", (1000, 1010), call | {"globalTid": here, "correlationId": 1}),
            ("RUNTIME", (1100, 1110), call | {"globalTid": there, "correlationId": 2}),
            ("RUNTIME", (9000, 9010), call | {"globalTid": here, "correlationId": 3}),
            ("NVTX_EVENTS", (900, 8000), {"eventType": 59, "textId": 3, "globalTid": here}),
            ("NVTX_EVENTS", (1050, 1500), {"eventType": 59, "text": "dispatch(F)", "globalTid": here}),
            ("NVTX_EVENTS", (1099, 1200), {"eventType": 59, "text": "ncclGroupEnd", "globalTid": there, "domainId": 5}),
            ("NVTX_EVENTS", (1000, None), {"eventType": 34, "text": "a mark", "globalTid": here}),
            ("ThreadNames", (None, None), {"nameId": 5, "globalTid": here}),
        ):  # fmt: skip
            table = table if f"TABLE {table} (" in schema else f"CUPTI_ACTIVITY_KIND_{table}"
            row = dict(zip(("start", "end"), times, strict=True)) | row
            everything.setdefault(table, []).append(row)
    with closing(sqlite3.connect(path)) as database:
        database.executescript(schema)
        for table, found in (everything | rows).items():
            there = {row[1] for row in database.execute(f"PRAGMA table_info({table})")}
            for row in found:
                known = {name: value for name, value in row.items() if name in there}
                if known:
                    columns, marks = ", ".join(known), ", ".join("?" * len(known))
                    database.execute(f"INSERT INTO {table} ({columns}) VALUES ({marks})", tuple(known.values()))
        database.commit()
    return path


def rows_of(source, rank):
    phases = {row["id"]: row["name"] for row in source.table("phases").to_pylist() if row["rank"] == rank}
    return [
        (row["name"], row["start_ns"] - SESSION_NS, row["dur_ns"], row["stream"], phases.get(row["phase_id"]))
        for row in source.table("kernels").to_pylist()
        if row["rank"] == rank
    ]


def test_processes_are_ranks_in_the_order_of_their_gpus_and_launches_give_phases(tmp_path):
    source = open_source([make(tmp_path / "run.sqlite")])
    # The second process used the first GPU.
    for rank, pid in ((0, 200), (1, 100)):
        assert rows_of(source, rank) == [
            ("nvjet_hsh_128", 2_000 + pid, 1_001, "7", "forward"),
            ("ncclDevKernel_SendRecv(x)", 2_500 + pid, 1_000, "20", "dispatch(F)"),
            ("Memcpy DtoD", 4_000, 100, "7", None),
            ("Memset (Device)", 4_200, 10, "7", None),
        ]
    first = source.table("kernels").to_pylist()[0]
    shape = [first[name] for name in ("grid", "block", "registers", "shared_bytes")]
    assert shape == ["132,1,1", "384,1,1", 168, 3072]
    assert (first["device"], first["correlation"], first["evidence"]) == ("cuda:0", 1, "measured")
    assert "process 200 is rank 0, process 100 is rank 1" in source.table("log")["message"][0].as_py()
    assert source.table("phases")["thread"][0].as_py() == "pt_autograd 201"
    (rank, _) = summarise(source)["ranks"]
    assert (rank["comm_us"], rank["overlapped_us"], rank["units"]["total"]) == (1.0, 0.501, 132)


def test_the_oldest_exports_are_read_without_what_they_lack(tmp_path):
    schema = """
    CREATE TABLE StringIds (id INTEGER PRIMARY KEY, value TEXT NOT NULL);
    CREATE TABLE CUPTI_ACTIVITY_KIND_KERNEL (start INT NOT NULL, end INT NOT NULL, deviceId INT NOT NULL,
        streamId INT NOT NULL, correlationId INT NOT NULL, shortName INT NOT NULL);
    CREATE TABLE CUPTI_ACTIVITY_KIND_RUNTIME (start INT NOT NULL, end INT NOT NULL, globalTid INT NOT NULL,
        correlationId INT NOT NULL, nameId INT NOT NULL);
    CREATE TABLE NVTX_EVENTS (start INT NOT NULL, end INT, textId INT, globalTid INT NOT NULL);
    """
    source = open_source([make(tmp_path / "old.sqlite", schema, pids=(100,))])
    found = rows_of(source, 0)
    assert [(name, start + SESSION_NS, phase) for name, start, _, _, phase in found] == [
        ("unused", 2_100, "forward"),
        ("unused", 2_600, "forward"),
    ]
    assert source.table("kernels")["grid"].null_count == 2
    assert ["time of day" in message for message in source.table("log")["message"].to_pylist()] == [True]


def test_ranks_of_mpi_and_of_file_names_come_before_the_order(tmp_path):
    ranks = [{"globalTid": gid(100, 101), "rank": 6}, {"globalTid": gid(200, 201), "rank": 5}]
    schema = TODAY + "CREATE TABLE MPI_RANKS (globalTid INTEGER NOT NULL, rank INTEGER NOT NULL);"
    assert open_source([make(tmp_path / "mpi.sqlite", schema, MPI_RANKS=ranks)]).ranks() == [5, 6]
    files = [make(tmp_path / f"report_rank{rank}.sqlite", pids=(pid,)) for rank, pid in ((3, 7), (2, 8))]
    assert open_source(files).ranks() == [2, 3]


def test_graphs_recorded_as_a_whole_are_busy_time_of_no_known_kind(tmp_path):
    schema = TODAY + (
        "CREATE TABLE CUPTI_ACTIVITY_KIND_GRAPH_TRACE (start INTEGER, end INTEGER, deviceId INTEGER, streamId INTEGER, "
        "correlationId INTEGER, globalPid INTEGER, graphId INTEGER, graphExecId INTEGER);"
    )
    graph = {"start": 6_000, "end": 7_000, "deviceId": 0, "streamId": 7, "globalPid": gid(100), "graphId": 4}
    source = open_source([make(tmp_path / "a.sqlite", schema, pids=(100,), CUPTI_ACTIVITY_KIND_GRAPH_TRACE=[graph])])
    assert source.table("kernels")["name"].to_pylist()[-1] == "CUDA graph 4"
    assert "--cuda-graph-trace=node" in source.table("log")["message"][0].as_py()
    assert summarise(source)["ranks"][0]["unknown_us"] == 1


def test_rows_that_are_nonsense_are_left_out_aloud(tmp_path):
    required = re.findall(r"(\w+) INTEGER NOT NULL", TODAY[TODAY.index("_KERNEL") : TODAY.index("_MEMCPY")])
    good = dict.fromkeys(required, 1) | {"start": 10, "end": 20, "globalPid": gid(100)}
    late = {"start": 2**62, "end": 2**62 + 1}
    odd = [{"start": 0, "end": 0}, {"end": 9}, {"start": "soon"}, late, {"start": b"\xff"}]
    strange = {"deviceId": -5, "gridX": "x", "registersPerThread": 2**40, "demangledName": 77, "streamId": "\x1b[31m"}
    kernels = [good | change for change in (*odd, strange)]
    source = open_source([make(tmp_path / "a.sqlite", pids=(100,), CUPTI_ACTIVITY_KIND_KERNEL=kernels)])
    kernel = source.table("kernels").to_pylist()[0]
    assert (kernel["device"], kernel["grid"], kernel["registers"], kernel["name"]) == ("cuda:0", None, None, "")
    assert source.table("kernels").num_rows == 3
    assert "5 rows without usable times" in source.table("log")["message"][0].as_py()
    assert summarise(source)["dropped_events"] == 5


def test_files_that_are_no_export_are_named(tmp_path):
    path = make(tmp_path / "whole.sqlite")
    data = path.read_bytes()
    for content in (data[:5000], data[:100] + b"\0" * 3000, data[:16], data.replace(b"CREATE TABLE", b"CREATE TALBE")):
        (tmp_path / "torn.sqlite").write_bytes(content)
        with pytest.raises(MoescopeError, match=r"torn\.sqlite: .*(SQLite|Nsight)"):
            open_source([tmp_path / "torn.sqlite"])
    with closing(sqlite3.connect(tmp_path / "other.sqlite")) as database:
        database.execute("CREATE VIEW CUPTI_ACTIVITY_KIND_KERNEL AS SELECT 1 AS start, 2 AS end")
        database.execute("CREATE TABLE t (x)")
        database.commit()
    with pytest.raises(MoescopeError, match="no export of Nsight Systems"):
        open_source([tmp_path / "other.sqlite"])
    with pytest.raises(NoData, match="no device work"):
        open_source([make(tmp_path / "idle.sqlite", pids=())])
    (tmp_path / "run.nsys-rep").write_bytes(b"report")
    with pytest.raises(UsageProblem, match=r"nsys export --type sqlite run\.nsys-rep"):
        open_source([tmp_path / "run.nsys-rep"])
    (tmp_path / "whole.sqlite-wal").write_bytes(b"half of the rows")
    with pytest.raises(MoescopeError, match=r"whole\.sqlite-wal holds a part of it"):
        open_source([path])


def test_an_imported_export_gives_the_same_summary(tmp_path, capsys):
    def run(*args):
        with pytest.raises(SystemExit) as ended:
            main([str(arg) for arg in args])
        assert ended.value.code == 0
        return capsys.readouterr().out

    path = make(tmp_path / "run.sqlite")
    run("import", path, "-o", tmp_path / "rec")
    imported, direct = (json.loads(run("summary", one, "--json")) for one in (tmp_path / "rec", path))
    for key in ("ranks", "total", "dropped_events", "findings"):
        assert imported[key] == direct[key]
