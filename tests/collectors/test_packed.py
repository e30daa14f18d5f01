"""Rows that go packed through the ring are the rows that were emitted: the same as those of the event file, in JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from moescope.collectors.clock import Clock
from moescope.collectors.native import library_path
from moescope.collectors.ring_reader import Ring, blob_heads, blob_payload
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.file_reader import FileRing

LIBRARY = library_path()

# The library keeps one ring a process, so the writer is a process of its own.
WRITER = """
import json, sys
from moescope.collectors.agent.recorder import Recorder
from moescope.collectors.agent.file_ring import FileRing
from moescope.collectors.agent.ring import NativeRing
library, path, rows = sys.argv[1:]
recorder = Recorder(NativeRing(library, path, 16) if library else FileRing(path))
recorder.ring.blob("group", {"name": "g h", "ranks": [4, 3, 5], "backend": "gloo", "hop": "internode"})
recorder.stage("train")
recorder.set_step(7)
with recorder.phase("mlp(F)", 2, 1):
    for kind, row in json.loads(rows):
        if kind == "comm":
            recorder.ring.comm(*row)
            recorder.ring.done(row[0])
        else:
            recorder.emit(kind, row)
"""

KERNEL = {"name": "link", "start_ns": 10, "dur_ns": 5, "kind": "comm", "flops": None, "bytes": 1 << 40, "dtype": None}
QUANTISATION = {"tensor": "mlp.x", "format": "e4m3 1x128", "amax": 1.5, "scale_min": 1e-30, "scale_max": 2.0}
COUNTS = {"saturated": 1, "flushed": 0, "nonfinite": 3, "elements": 4096}
ROWS: list[tuple[str, Any]] = [
    ("work", {"flops": 2**62, "bytes": 0, "dtype": "bf16"}),
    ("work", {"flops": 3, "bytes": 12, "dtype": "fp8_e4m3"}),
    ("work", {"flops": 3, "bytes": 12, "dtype": "ü" * 300}),
    ("quantisation", QUANTISATION | COUNTS),
    ("quantisation", QUANTISATION | COUNTS | {"tensor": "other", "amax": 3}),
    ("transfers", {"op": "put", "src": 3, "dst": 4, "bytes": 9, "start_ns": 11, "dur_ns": None, "hop": "direct"}),
    ("kernel", KERNEL | {"evidence": "modelled"}),
    ("kernel", KERNEL | {"evidence": "measured", "kind": None, "flops": 8, "dtype": "bf16"}),
    ("comm", [1, "all_to_all", "g h", 100, [8, 0, 24], [1, 2, 3], "bfloat16"]),
    ("comm", [2, "all_reduce", "g h", 200, None, None, ""]),
    ("comm", [3, "broadcast", "g" * 450, 300, [1], None, "int8"]),
    ("experts", {"layer": 3, "first_expert": 4, "tokens": [5, 0, 7]}),
    ("experts", {"layer": 4, "first_expert": 0, "tokens": list(range(256))}),
    ("experts", {"layer": 5, "first_expert": 0, "tokens": []}),
    *(("experts", {"layer": None, "first_expert": 1, "tokens": tokens}) for tokens in ([2, 3], [2.0, 3])),
    ("experts", {"layer": 6, "first_expert": 0, "tokens": [1] * 5000}),
]


def rows_of(tmp_path: Path, library: str, rows: list[tuple[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    path = tmp_path / f"{os.getpid()}-{bool(library)}"
    subprocess.run([sys.executable, "-c", WRITER, library, str(path), json.dumps(rows)], check=True)
    ring = Ring(path) if library else FileRing(path)
    drain = ProcessDrain(ring, Clock(1000, 0))
    drain.origin.rank = 3
    batch = drain.drain(0, final=True)
    found = {table: [row for part in parts for row in part.to_pylist()] for table, parts in batch.tables.items()}
    for table, plain in batch.rows.items():
        found.setdefault(table, []).extend(plain)
    del batch
    if isinstance(ring, FileRing):
        ring.close()
    return found


def told(rows: list[dict[str, Any]]) -> list[list[tuple[str, str]]]:
    """What of each row is the same whenever and wherever it is told."""
    skip = {"t_ns", "stream", "thread", "start_ns" if any("call" in row or "id" in row for row in rows) else ""}
    skip |= {"dur_ns"} if any("call" in row or "id" in row for row in rows) else set()
    return sorted(
        sorted(
            (k, str(float(v) if isinstance(v, int) else v)) for k, v in row.items() if v is not None and k not in skip
        )
        for row in rows
    )


@pytest.mark.skipif(LIBRARY is None, reason="built without a compiler")
def test_packed_rows_are_those_of_the_event_file(tmp_path: Path) -> None:
    packed, plain = rows_of(tmp_path, str(LIBRARY), ROWS), rows_of(tmp_path, "", ROWS)
    assert packed.keys() == plain.keys() >= {"work", "quantisation", "transfers", "kernels", "collectives", "experts"}
    for table in ("work", "quantisation", "collectives", "experts", "phases"):
        assert told(packed[table]) == told(plain[table]), table
    assert [row["flops"] for row in packed["work"]] == [2**62, 3, 3]
    modelled = next(row for row in packed["kernels"] if row["evidence"] == "modelled")
    assert (modelled["start_ns"], modelled["flops"], modelled["bytes"], modelled["kind"]) == (
        1010,
        None,
        1 << 40,
        "comm",
    )
    put = next(row for row in packed["transfers"] if row["op"] == "put")
    assert (put["start_ns"], put["dur_ns"], put["src"], put["dst"], put["evidence"]) == (1011, None, 3, 4, "measured")
    sent = {(row["src"], row["dst"], row["hop"], row["bytes"]) for row in packed["transfers"] if row["op"] != "put"}
    assert sent == {(3, 4, "internode", 8), (3, 5, "internode", 24)}


@pytest.mark.skipif(LIBRARY is None, reason="built without a compiler")
@pytest.mark.parametrize("value", [2.5, 2**64, "many"])
def test_what_does_not_fit_into_words_is_kept_as_it_was_told(tmp_path: Path, value: Any) -> None:
    found = rows_of(tmp_path, str(LIBRARY), [("work", {"flops": value, "bytes": 1, "dtype": "bf16"})])
    assert [row["flops"] for row in found["work"]] == [value]


UNEVEN = """
import json, sys
from collections import namedtuple
from moescope.collectors.agent.operations import all_to_all_base
from moescope.collectors.agent.ring import NativeRing
library, path, cases = sys.argv[1:]
Tensor = namedtuple("Tensor", "nbytes shape")
ring = NativeRing(library, path, 16)
for number, (n, output, input, outs, ins) in enumerate(json.loads(cases)):
    output, input = Tensor(*output), Tensor(*input)
    fast = ring.uneven(ring.comm_kind("all_to_all", "fast", "int8"), number, 7, n, input, ins, output, outs)
    try:
        ring.comm(number, "all_to_all", "slow", 7, *all_to_all_base(0, n, output, input, outs, ins), "int8")
    except (TypeError, ValueError, OverflowError, ZeroDivisionError):
        assert not fast, number
"""

sizes = st.one_of(st.integers(0, 1 << 50), st.integers(0, 2))
tensors = st.tuples(sizes, st.lists(st.integers(0, 1 << 20), max_size=3))
splits = st.one_of(st.none(), st.lists(st.integers(0, 1 << 10), max_size=5), st.just([1.5]))


@pytest.mark.skipif(LIBRARY is None, reason="built without the library")
@given(st.lists(st.tuples(st.integers(1, 5), tensors, tensors, splits, splits), min_size=20, max_size=60))
@settings(max_examples=12, deadline=None, phases=[Phase.generate])
def test_an_all_to_all_is_packed_as_it_would_be_told_one_by_one(cases: list[Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "1-1.ring")
        subprocess.run([sys.executable, "-c", UNEVEN, str(LIBRARY), str(path), json.dumps(cases)], check=True)
        ring = Ring(path)
        names = ring.names()
        (thread,) = ring.take()
        heads, _ = blob_heads(thread.records)
        found: dict[str, dict[int, bytes]] = {"fast": {}, "slow": {}}
        for at in heads.tolist():
            payload = blob_payload(thread.records, at, raw=True)
            found[names[thread.records["name"][at]].split()[-1]][int.from_bytes(payload[:8], "little")] = payload
        # What the library leaves to the slow way it leaves whole.
        assert found["fast"] == {number: found["slow"][number] for number in found["fast"]}
        whole = [1.5 not in (*(outs or ()), *(ins or ())) for *_, outs, ins in cases]
        assert set(found["fast"]) == {number for number, fits in enumerate(whole) if fits}
