"""What is taken out of a process's ring before and after the process is at work."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.collectors.agent.file_ring import FileRing as Writer
from moescope.collectors.agent.packed import pack_comm
from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import OPERATOR, PHASE, RECORD, STEP
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.calls import Calls
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.file_reader import FileRing as Reader
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

ROUTED = {"layer": 1, "first_expert": 0, "tokens": [3, 1]}

WORK: dict[str, Callable[[Writer], None]] = {
    "an operator": lambda ring: ring.record(OPERATOR, "aten::mm", 10, 5),
    "a phase": lambda ring: ring.record(PHASE, "mlp(F)", 10, 5, 1),
    "a step": lambda ring: ring.record(STEP, "", 10, 5, 0),
    "a row of the model": lambda ring: ring.blob("experts", ROUTED),
    "a call that never ended": lambda ring: ring.comm(1, "all_to_all", "0", 10, [0, 8], [0, 8], "float32"),
}


@pytest.fixture
def drain(tmp_path: Path) -> tuple[Writer, ProcessDrain]:
    path = tmp_path / "4711-1.events"
    writer = Writer(str(path))
    drain = ProcessDrain(Reader(path), Clock(0, 0))
    drain.origin.rank = 0
    writer.blob("log", {"level": "info", "source": "kernels", "message": "chosen"})
    writer.blob("group", {"name": "0", "ranks": [0, 1], "backend": "gloo", "hop": "direct"})
    return writer, drain


@pytest.mark.parametrize("work", WORK)
def test_what_was_told_before_the_work_began_is_taken_with_it(work: str, drain: tuple[Writer, ProcessDrain]) -> None:
    writer, ring = drain
    for _ in range(3):
        before = ring.drain(0)
        ring.commit(before)
        assert (ring.at_work, before.rows, before.tables, before.commits) == (False, {}, {}, [])
    WORK[work](writer)
    batch = ring.drain(10**10)
    assert ring.at_work
    assert [row["message"] for row in batch.rows["log"]] == ["chosen"]
    ring.commit(batch)
    assert not ring.drain(10**10).rows
    ring.ring.close()


def test_an_idle_process_leaves_what_it_told_to_the_last_drain(drain: tuple[Writer, ProcessDrain]) -> None:
    _, ring = drain
    assert [row["message"] for row in ring.drain(0, final=True).rows["log"]] == ["chosen"]
    assert not ring.at_work
    ring.ring.close()


def test_calls_of_one_length_keep_what_was_told_of_each_way() -> None:
    """Packed as many words, and yet with other sizes each way, or the same and none told beside none there are."""
    both, none = [8, 16], list[int]()
    told: list[tuple[Any, Any]] = [(both, None), (both, none), (None, both), ([8], [16]), (8, [16]), (none, both)]
    blobs = [np.frombuffer(pack_comm(number, 5, *sizes), np.uint8) for number, sizes in enumerate(told, 1)]
    (length,) = {len(blob) for blob in blobs}
    each = 1 - (-length // RECORD.itemsize)
    records = np.zeros(each * len(blobs), RECORD)
    for i, blob in enumerate(blobs):
        records["dur_ns"][i * each] = length
        records[i * each + 1 : (i + 1) * each].view(np.uint8)[:length] = blob
    calls, batch = Calls(Origin(1, Clock(0, 0), rank=0)), Batch()
    calls.group({"name": "g", "ranks": [0, 1], "backend": "gloo", "hop": "direct"})
    calls.issued_packed(np.arange(len(blobs)) * each, "=comm all_to_all float32 g", records)
    calls.store(batch, final=True)
    (rows,) = batch.tables["collectives"]
    found = {row["call"]: (row["bytes"], row["sent_bytes"], row["received_bytes"]) for row in rows.to_pylist()}
    assert [found[number][0] for number in (1, 2, 3, 4, 5)] == [None, None, None, None, 8]
    assert [found[number][1] for number in (1, 2, 3, 6)] == [16, 16, None, 0]
    assert [found[number][2] for number in (1, 2, 3, 6)] == [None, 0, 16, 16]


TARGET = """
import os
os.environ["RANK"] = "0"
{imports}
import time
emit.note("target", "said at the start")
time.sleep({idle_s})
for layer in range(5):
    emit.experts(layer=layer, tokens=[3, 1])
    time.sleep(0.1)
"""


# A recorder is there once torch is imported: `emit` looks for it when it is imported itself, and again then.
IMPORTS = ("import torch\nfrom moescope.collectors import emit", "from moescope.collectors import emit\nimport torch")


@pytest.mark.parametrize(("idle_s", "imports"), [(0, IMPORTS[1]), (1.5, IMPORTS[0])], ids=["at once", "later"])
def test_a_process_that_tells_rows_alone_is_recorded_with_all_it_said(
    idle_s: float, imports: str, moescope: Moescope, tmp_path: Path
) -> None:
    (tmp_path / "target.py").write_text(TARGET.format(idle_s=idle_s, imports=imports))
    done = moescope("run", "--keep", "4s", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    recording = tmp_path / "rec"
    assert [row["rank"] for row in meta(recording)["ranks"]] == [0]
    assert {row["layer"] for row in rows(recording, "experts")} == set(range(5))
    assert "said at the start" in [row["message"] for row in rows(recording, "log")]
