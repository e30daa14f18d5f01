"""Inputs that nobody meant to write: traces of every layout and exports, cut, bent, spliced and stuffed, by a seed.

`python -m tests.sources.damage 20000` runs that many and says what came of them.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import resource
import sqlite3
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from moescope.profiler.errors import MoescopeError
from moescope.profiler.source import open_source
from moescope.profiler.sources.kineto_columns import KinetoColumns
from moescope.profiler.sources.kineto_scan import Uncertain, scan
from moescope.profiler.sources.kineto_whole import read_whole
from moescope.profiler.summary.answer import summarise
from tests.sources.test_kineto import GPU, LEGACY, event
from tests.sources.test_nsight import make

DATA = Path(__file__).resolve().parents[1] / "data"
TOKENS = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\x00", b"\xff\xfe", b"null", b"NaN", b"-Infinity", b"inf",
    b"1e999", b"-1", b"0", b"9" * 30, b"1" * 400, b"0.0000000001", b"true", b'"traceEvents": [', b'"traceEvents": []',
    b'"ph": "X"', b'"ts": "soon"', b'"dur": -5', b'"ts": 0', b'"cat": "kernel"', b'"cat": "Kernel"', b'"args": {}',
    b'"args": [1]', b"[" * 300, b'{"a":' * 300, b'"baseTimeNanoseconds": 9e30', b'"distributedInfo": {"rank": -1}',
    b'"pid": [[]]', b'"stream": {"x": 1}', b'"correlation": "1"', b'"grid": [1, "x", null]', b"\\ud800",
    b"\xef\xbb\xbf", b"\x1f\x8b", b"  \n", b'"deviceProperties": {"numSms": -1}', b'"name": "\x1b[31m"', b'"tid": 1.5',
    b"}, {", b'"dur": 1e15',
)  # fmt: skip
Mutation = Callable[[random.Random, bytes, list[bytes]], bytes]


def _cut(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    return data[: draw.randrange(len(data) + 1)]


def _flip(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    changed = bytearray(data)
    for _number in range(draw.choice((1, 1, 2, 8))):
        if changed:
            changed[draw.randrange(len(changed))] = draw.randrange(256)
    return bytes(changed)


def _put(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + draw.choice(TOKENS) + data[at + draw.choice((0, 0, 1, 5)) :]


def _replace_number(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    starts = [at for at in range(1, len(data)) if data[at : at + 1].isdigit() and not data[at - 1 : at].isdigit()]
    if not starts:
        return data
    at = draw.choice(starts)
    end = at
    while data[end : end + 1].isdigit():
        end += 1
    return data[:at] + draw.choice((b"0", b"-7", b"1e40", b"9" * 25, b"null", b'"12"', b"2.5e-9", b"[]")) + data[end:]


def _drop(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    return data[:at] + data[at + draw.choice((1, 10, 100, 1000)) :]


def _repeat(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    at = draw.randrange(len(data) + 1)
    piece = data[at : at + draw.choice((10, 100, 1000))]
    return data[:at] + piece * draw.choice((2, 3, 30)) + data[at:]


def _splice(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    other = draw.choice(others)
    return data[: draw.randrange(len(data) + 1)] + other[draw.randrange(len(other) + 1) :]


def _pack(draw: random.Random, data: bytes, others: list[bytes]) -> bytes:
    packed = gzip.compress(data, draw.choice((1, 6)), mtime=0)
    return draw.choice((_cut, _flip, _drop, _put, lambda draw, packed, _: packed))(draw, packed, others)


def _bend(draw: random.Random, data: bytes, _: list[bytes]) -> bytes:
    """A value in its place that the format allows and nobody expects."""
    with contextlib.suppress(ValueError, RecursionError, sqlite3.Error, LookupError, TypeError, AttributeError):
        return _bent_rows(draw, data) if data[:6] == b"SQLite" else _bent_events(draw, data)
    return data


def _bent_events(draw: random.Random, data: bytes) -> bytes:
    trace = json.loads(data)
    for _number in range(draw.choice((1, 3, 20))):
        place = draw.choice(trace["traceEvents"] if isinstance(trace, dict) else trace)
        if draw.random() < 0.1 and isinstance(trace, dict):
            place = trace
        if draw.random() < 0.4 and isinstance(place.get("args"), dict):
            place = place["args"]
        place[draw.choice([*place, "ts", "dur", "pid"])] = draw.choice(ODD)
    return json.dumps(trace).encode()


def _bent_rows(draw: random.Random, data: bytes) -> bytes:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        database.deserialize(data)
        tables = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for _number in range(draw.choice((1, 3, 20))):
            table = draw.choice(tables)
            column = draw.choice([row[1] for row in database.execute(f"PRAGMA table_info({table})")])
            scalars = [odd for odd in ODD if not isinstance(odd, (list, dict))]
            value = draw.choice([*scalars, b"\xff", 2**63 - 1, -1])
            every = draw.choice(("1", "rowid % 2", "rowid = 1"))
            with contextlib.suppress(sqlite3.Error, OverflowError):
                database.execute(f"UPDATE {table} SET {column} = ? WHERE {every}", (value,))
        if draw.random() < 0.2:
            database.execute(f"DROP TABLE {draw.choice(tables)}")
        database.commit()
        return database.serialize()


MUTATIONS: tuple[Mutation, ...] = (
    _cut, _flip, _put, _put, _replace_number, _replace_number, _drop, _repeat, _splice, *[_bend] * 8,
)  # fmt: skip
ODD = (
    None, True, 0, -1, 1, 2**31, 2**53 + 1, -(2**40), 1.5, -0.0, 1e300, 1e-300, 5e15, "", "7", "stream 7", "X",
    "kernel", "cpu_op", "user_annotation", "gpu_user_annotation", "cuda_runtime", "ncclDevKernel", "ProfilerStep#3",
    "é\x1b[31m\n", "ProfilerStep#99999999999999999999", "x" * 3000, [], [1, 2, 3], [[1, 2], [3]], ["a"], {}, {"a": 1},
    "[0, 1]",
)  # fmt: skip
"""Values of any kind for any key."""


def corpus(folder: Path) -> list[bytes]:
    """Small files of every layout and tool."""
    cpu = [
        event("cpu_op", f"aten::op{at % 3}", 10 * at, 8, tid=at % 2, **{"Input Dims": [[4, 4], []]}) for at in range(9)
    ]
    merged = [event("kernel", "gemm", 10 * at, 5, pid=f"[TP-{at % 2}] 0", tid=7, device=0) for at in range(6)]
    nccl = event("kernel", "ncclDevKernel_AllReduce", 7.001, 2, stream=20, **{
        "Collective name": "allreduce", "In msg nelems": 4096, "dtype": "BFloat16", "Process Group Ranks": "[0, 1]",
    })  # fmt: skip
    whole = {"schemaVersion": 1, "distributedInfo": {"rank": 1, "world_size": 2}, "baseTimeNanoseconds": 17}
    devices = {"deviceProperties": [{"id": 3, "name": "NVIDIA H800", "numSms": 132}]}
    with gzip.open(DATA / "tracelens_sglang_moe_decode_b300" / "1782799835.6885648-TP-0-DECODE.trace.json.gz") as file:
        real = json.load(file)
    real["traceEvents"] = real["traceEvents"][::90]
    found = [
        json.dumps(whole | devices | {"traceEvents": [*GPU, nccl]}).encode(),
        json.dumps({"traceEvents": [*GPU, nccl]} | whole, indent=2).encode(),
        json.dumps(GPU, separators=(",", ":")).encode(),
        json.dumps({"traceEvents": cpu, "traceName": "[x]}, {"}).encode(),
        json.dumps({"traceEvents": merged}).encode(),
        LEGACY.encode(),
        json.dumps(real, indent=1).encode(),
    ]
    for pids in ((100, 200), (7,)):
        path = folder / f"{len(pids)}.sqlite"
        path.unlink(missing_ok=True)
        found.append(make(path, pids=pids).read_bytes())
    return found


def damaged(draw: random.Random, files: list[bytes]) -> bytes:
    """One file, changed up to four times."""
    data = draw.choice(files)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        data = draw.choice(MUTATIONS)(draw, data, files)
    return _pack(draw, data, files) if draw.random() < 0.15 else data


def examine(path: Path) -> str:
    """What reading a file comes to: `answer`, or the error's class. Raises AssertionError for what must not be."""
    by_blocks, at_once = _columns(path, scan), _columns(path, read_whole)
    assert by_blocks in (at_once, "Uncertain"), (by_blocks, at_once)
    try:
        source = open_source([path])
        for table in ("kernels", "phases", "steps", "collectives", "log"):
            source.table(table).validate(full=True)
        answer = summarise(source)
    except MoescopeError as problem:
        came_to = str(problem)
        if str(path) not in came_to or len(came_to) > len(str(path)) * 2 + 500:
            raise AssertionError(f"no clear error: {came_to}") from problem
        return type(problem).__name__
    for rank in answer["ranks"]:
        assert abs(rank["busy_us"] + rank["idle_us"] - rank["span_us"]) < 0.01, rank
        assert abs(rank["overlapped_us"] + rank["exposed_comm_us"] - rank["comm_us"]) < 0.01, rank
    json.dumps(answer, allow_nan=False)
    return "answer"


def _columns(path: Path, read: Callable[..., object]) -> object:
    """Device work as a reader takes it in, or the error's class; nothing for what is no JSON."""
    if path.read_bytes()[:6] == b"SQLite":
        return None
    columns = KinetoColumns()
    try:
        read(path, columns.take)
    except (MoescopeError, Uncertain) as problem:
        return type(problem).__name__
    done = columns.done(0)
    texts = [*done.texts, None]
    work = [
        [texts[value] for value in values.tolist()] if values.dtype == np.int32 else values.tolist()
        for name, values in done.work.items()
        if name not in ("thread", "message")
    ]
    messages = [*done.messages, None]
    told = [messages[message] for message in done.work["message"]]
    return work, [done.threads[thread] for thread in done.work["thread"]], told, done.notes


def run(number: int, seed: int, folder: Path) -> Counter[str]:
    """Examine that many damaged files."""
    draw = random.Random(seed)
    files = corpus(folder)
    path = folder / "damaged.json"
    came_to: Counter[str] = Counter()
    for _ in range(number):
        data = damaged(draw, files)
        path.write_bytes(data)
        try:
            came_to[examine(path)] += 1
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"moescope-damaged-{zlib.crc32(data):08x}"
            kept.write_bytes(data)
            print(f"kept in {kept}", file=sys.stderr)
            raise
    return came_to


if __name__ == "__main__":
    warnings.simplefilter("error")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as name:
        outcomes = run(int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, Path(name))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(f"{sum(outcomes.values())} inputs in {time.perf_counter() - begin:.0f} s, peak {peak} MiB: {dict(outcomes)}")
