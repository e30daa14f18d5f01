"""The ring: what a target writes is read whole, once, in order; a full ring drops and counts."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from moescope.collectors.native import library_path
from moescope.collectors.ring_reader import BETWEEN, BLOB, OPERATOR, PHASE, Ring, RingError, blob_heads, blob_payload

LIBRARY = library_path()
needs_library = pytest.mark.skipif(LIBRARY is None, reason="built without a compiler")

# The library keeps one ring a process, so each writer is a process of its own.
WRITER = """
import ctypes, sys, threading
from moescope.collectors.agent.ring import NativeRing, STEP
library, path, chunks, script = sys.argv[1:]
ring = NativeRing(library, path, int(chunks))
lib = ctypes.PyDLL(library)
lib.moescope_burst.argtypes = (ctypes.c_char_p, ctypes.c_uint64)
exec(script)
"""


def write(tmp_path: Path, script: str, chunks: int = 16) -> Ring:
    path = tmp_path / "1-1.ring"
    subprocess.run([sys.executable, "-c", WRITER, str(LIBRARY), str(path), str(chunks), script], check=True)
    return Ring(path)


@needs_library
def test_operators_are_read_back_whole_with_their_names(tmp_path: Path) -> None:
    ring = write(tmp_path, "lib.moescope_burst(b'aten::mm', 5000)")
    (thread,) = ring.take()
    assert len(thread.records) == 5000
    assert set(thread.records["type"].tolist()) == {OPERATOR}
    assert {ring.names()[n] for n in np.unique(thread.records["name"])} == {"aten::mm"}
    assert (thread.records["dur_ns"] >= 0).all()
    assert (np.diff(thread.records["start_ns"]) >= 0).all()


@needs_library
def test_what_is_committed_is_not_handed_out_again_and_the_rest_is(tmp_path: Path) -> None:
    ring = write(tmp_path, "lib.moescope_burst(b'aten::mm', 3000)")
    (thread,) = ring.take()
    ring.commit(thread, 2000)
    (again,) = Ring(ring.path).take()
    assert again.records.tobytes() == thread.records[2000:].tobytes()
    ring.commit(again, 1000)
    assert ring.take() == []


@needs_library
def test_a_full_ring_drops_the_newest_and_counts_them(tmp_path: Path) -> None:
    ring = write(tmp_path, "lib.moescope_burst(b'aten::mm', 5000)", chunks=2)
    kept = sum(len(t.records) for t in ring.take())
    assert kept == 2 * 1364
    assert kept + ring.dropped == 5000


@needs_library
def test_threads_are_told_apart(tmp_path: Path) -> None:
    script = """
threads = [threading.Thread(target=lib.moescope_burst, args=(f"aten::t{i}".encode(), 1500)) for i in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    ring = write(tmp_path, script)
    taken = ring.take()
    names = ring.names()
    assert sorted({names[n] for t in taken for n in np.unique(t.records["name"])}) == [f"aten::t{i}" for i in range(4)]
    assert all(len(np.unique(t.records["name"])) == 1 and len(t.records) == 1500 for t in taken)


@needs_library
def test_phases_nest_and_carry_their_context(tmp_path: Path) -> None:
    script = """
a = ring.phase_begin("step", 0); b = ring.phase_begin("attn(F)", 7)
lib.moescope_burst(b"aten::mm", 1)
ring.phase_end(b); ring.phase_end(a)
"""
    ring = write(tmp_path, script)
    (thread,) = ring.take()
    operator, inner, outer = thread.records
    assert [r["type"] for r in (operator, inner, outer)] == [OPERATOR, PHASE, PHASE]
    assert operator["a"] == inner["a"]
    assert (inner["b"], inner["c"], outer["b"]) == (outer["a"], 7, 0)
    assert outer["start_ns"] <= inner["start_ns"] <= operator["start_ns"]


GRAPHS = """
import time
def loop():
    until = time.perf_counter() + 0.002
    while time.perf_counter() < until: pass
def operator(): lib.moescope_burst(b"aten::mm", 1)
def graph(name, *parts):
    outer = ring.graph_begin(name)
    try:
        for part in parts: part()
    finally:
        ring.graph_end(outer)
"""


@needs_library
@pytest.mark.parametrize(
    ("script", "told"),
    [
        ("graph('a', loop, operator, loop)", []),
        ("ring.window(1); loop(); graph('a', loop, operator, operator, loop)", ["a", "mm", "mm", "a"]),
        ("ring.window(1); graph('a', loop, lambda: graph('b', loop), loop); loop()", ["a", "b", "a"]),
        # One that raises, and what comes after it.
        (
            "ring.window(1)\ntry: graph('a', loop, lambda: 1 / 0)\nexcept ZeroDivisionError: loop()\noperator()",
            ["a", "mm"],
        ),
        # A window that opens and closes while it runs.
        ("graph('a', loop, operator, lambda: ring.window(1), loop, operator, loop)", ["a", "mm", "a"]),
        ("ring.window(1); graph('a', loop, lambda: ring.window(0), loop, operator, loop)", ["a", "mm"]),
        # What this thread does not write, and another thread that has no window.
        ("ring.window(1); ring.mute(1); graph('a', loop, operator, loop)", []),
        (
            "ring.window(1); t = threading.Thread(target=graph, args=('a', loop, operator)); t.start(); t.join()",
            ["mm"],
        ),
    ],
)
def test_a_graph_tells_what_it_does_between_operators_inside_windows(
    tmp_path: Path, script: str, told: list[str]
) -> None:
    # Without a window operators are written as well here: nobody but torch decides whether they are told.
    ring = write(tmp_path, GRAPHS + script)
    taken = ring.take()
    names = ring.names()
    # Calling an operator takes a microsecond or two by itself.
    records = [
        record
        for thread in taken
        for record in thread.records
        if record["type"] == OPERATOR and not (record["flags"] & BETWEEN and record["dur_ns"] < 500_000)
    ]
    found = [names[record["name"]].removeprefix("aten::") for record in records]
    loops = [record for record in records if record["flags"] & BETWEEN]
    assert [name for name in found if name != "mm"] == [name for name in told if name != "mm"]
    if "mm" in told:
        assert found[-len(told) :] == told
    assert all(record["dur_ns"] >= 1_900_000 for record in loops)
    ends = sorted((int(record["start_ns"]), int(record["start_ns"] + record["dur_ns"])) for record in records)
    assert all(begin >= end for (_, end), (begin, _) in pairwise(ends))


@needs_library
def test_a_thread_tells_its_own_name(tmp_path: Path) -> None:
    script = """
import threading
def work():
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file: file.write("pt_gloo_runloop")
    lib.moescope_burst(b"aten::mm", 1)
t = threading.Thread(target=work); t.start(); t.join()
"""
    (thread,) = write(tmp_path, script).take()
    assert thread.name == "pt_gloo_runloop"


@needs_library
@pytest.mark.parametrize("fast", [True, False])
def test_a_phase_with_an_odd_place_is_recorded_without_one(tmp_path: Path, fast: bool) -> None:
    script = f"""
from moescope.collectors.agent.ring import Phase
make = ring.phase if {fast} else lambda *a: Phase(ring, *a)
ring.context(5 << 32 | 1)
for layer, micro_batch in ((3, 1), (None, 1.5), ("x", -1), (2**70, 0)):
    with make("p", layer, micro_batch):
        pass
"""
    (thread,) = write(tmp_path, script).take()
    assert [int(r["c"]) & 0xFFFFFFFF for r in thread.records] == [4 << 16 | 2 << 8 | 1, 1, 1, 1 << 16 | 1 << 8 | 1]
    assert {int(r["c"]) >> 32 for r in thread.records} == {5}


@needs_library
def test_ending_an_outer_range_ends_what_was_left_open_in_it(tmp_path: Path) -> None:
    ring = write(
        tmp_path, "a = ring.phase_begin('a', 0); ring.phase_begin('b', 0); ring.phase_end(a); ring.phase_end(99)"
    )
    (thread,) = ring.take()
    assert [ring.names()[n] for n in thread.records["name"]] == ["b", "a"]


@needs_library
def test_blobs_of_any_size_come_back_and_their_payload_is_no_record(tmp_path: Path) -> None:
    # The payload's bytes read as a record would be a blob themselves.
    script = """
for size in (0, 1, 47, 48, 49, 5000):
    ring.blob("k", "\\u0004" * size); lib.moescope_burst(b"aten::mm", 1)
"""
    ring = write(tmp_path, script)
    (thread,) = ring.take()
    heads, is_record = blob_heads(thread.records)
    assert [len(blob_payload(thread.records, at)) for at in heads] == [0, 1, 47, 48, 49, 5000]
    assert (thread.records["type"][is_record] == OPERATOR).sum() == 6
    assert is_record.sum() == 12
    assert (thread.records["type"][heads] == BLOB).all()


@needs_library
def test_a_blob_that_the_full_table_of_names_has_no_room_for_is_dropped_and_counted(tmp_path: Path) -> None:
    script = """
for i in range(20000):
    lib.moescope_name(b"name %d" % i)
ring.blob("a kind of its own", 1)
lib.moescope_burst(b"aten::mm", 1)
"""
    ring = write(tmp_path, script)
    (thread,) = ring.take()
    heads, is_record = blob_heads(thread.records)
    assert (len(heads), is_record.sum(), ring.dropped) == (0, 1, 1)


@needs_library
def test_identity_and_normal_end_are_told(tmp_path: Path) -> None:
    ring = write(tmp_path, "ring.identity({'rank': 3}); ring.identity({'rank': 4})")
    assert ring.identity() == {"rank": 4}
    assert not ring.closed
    assert write_closed(tmp_path / "b").closed


def write_closed(folder: Path) -> Ring:
    folder.mkdir()
    return write(folder, "ring.close()")


@needs_library
def test_a_forked_child_does_not_write_into_its_parents_ring(tmp_path: Path) -> None:
    script = """
import os
lib.moescope_burst(b"aten::parent", 1)
pid = os.fork()
lib.moescope_burst(b"aten::child" if pid == 0 else b"aten::parent", 1)
if pid == 0: os._exit(0)
os.waitpid(pid, 0)
"""
    ring = write(tmp_path, script)
    (thread,) = ring.take()
    assert [ring.names()[n] for n in thread.records["name"]] == ["aten::parent"] * 2


@needs_library
def test_space_that_cannot_be_had_is_an_error_and_no_signal(tmp_path: Path) -> None:
    lib = ctypes.PyDLL(str(LIBRARY))
    assert lib.moescope_open(str(tmp_path / "nowhere" / "x.ring").encode(), 4) == 2
    assert lib.moescope_blob(b"k", b"x", 1) != 0  # no ring is open: refused, not crashed


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"x" * 5000, b"MOESRING" + b"\xff" * 5000])
def test_a_file_that_is_no_ring_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "1-1.ring"
    path.write_bytes(content)
    with pytest.raises(RingError):
        Ring(path)


def test_the_event_file_speaks_the_rings_language(tmp_path: Path) -> None:
    from moescope.collectors.agent.file_ring import FileRing as Writer
    from moescope.collectors.sidecar.file_reader import FileRing

    path = tmp_path / f"{os.getpid()}-1.events"
    writer = Writer(str(path))
    writer.identity({"rank": 1})
    phase = writer.phase_begin("mlp(F)", 9)
    writer.record(OPERATOR, "aten::mm", 5, 7, flags=1, depth=2)
    writer.phase_end(phase)
    writer.blob("log", {"level": "info"})
    with open(path, "ab") as file:
        file.write(b'[1,0,0,"torn')
    reader = FileRing(path)
    (thread,) = reader.take()
    names = reader.names()
    assert reader.identity() == {"rank": 1}
    assert [names[n] for n in thread.records["name"][:2]] == ["aten::mm", "mlp(F)"]
    assert (thread.records["flags"][0], thread.records["depth"][0], thread.records["c"][1]) == (1, 2, 9)
    heads, _ = blob_heads(thread.records)
    assert [blob_payload(thread.records, at) for at in heads] == [json.loads('{"level": "info"}')]
    reader.commit(thread, 1)
    assert len(reader.take()[0].records) == len(thread.records) - 1
    reader.close()
