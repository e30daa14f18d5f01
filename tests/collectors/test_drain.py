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
from moescope.collectors.ring_reader import EXECUTION, OPERATOR, PHASE, RECORD, STEP
from moescope.collectors.sidecar.batch import MANY, SHORT, Batch, Origin
from moescope.collectors.sidecar.call_columns import Among, Call, Same, _joined
from moescope.collectors.sidecar.calls import Calls
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.file_reader import FileRing as Reader
from moescope.collectors.sidecar.names import Names
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


def test_calls_that_met_their_ranges_and_calls_that_did_not_fill_the_same_columns() -> None:
    names = Names(lambda: ["", "gloo:send", "gloo:all_to_all"])
    names.update()
    calls, batch = Calls(Origin(1, Clock(100, 0), rank=0)), Batch()
    calls.group({"name": "g", "ranks": [0, 1], "backend": "gloo", "hop": "direct"})
    for number in (1, 2, 3):
        calls.issued(number, Call("all_to_all", "g", 5 * number, [0, 8], [0, 8], "float32", 7))
    words = np.array([[number, 5 * number, 2, 2, 0, 8, 0, 8] for number in (4, 5, 6)], np.int64)
    records = np.zeros(9, RECORD)
    records["dur_ns"], records["a"] = 64, 7
    for i, row in enumerate(words):
        records[3 * i + 1 : 3 * i + 3].view(np.int64)[:8] = row
    calls.issued_packed(np.array([0, 3, 6]), "=comm all_to_all float32 g", records)
    executed = np.zeros(4, RECORD)
    executed["type"], executed["name"], executed["dur_ns"] = EXECUTION, 2, 3
    executed["b"], executed["start_ns"] = (1, 2, 4, 5), (50, 60, 70, 80)
    calls.executed(9, executed, names)
    calls.store(batch, final=True)
    (rows,) = batch.tables["collectives"]
    told = {row.pop("call"): row for row in rows.to_pylist()}
    alike = {"rank": 0, "op": "all_to_all", "group": "g", "group_ranks": "0,1", "backend": "gloo", "dtype": "float32"}
    alike |= {"sequence": None, "peer": None, "bytes": None, "sent_bytes": 8, "received_bytes": 8, "phase_id": 7}
    starts = {1: 150, 2: 160, 4: 170, 5: 180}
    for number in range(1, 7):
        seen = number in starts
        times = {"issue_ns": 100 + 5 * number, "start_ns": starts.get(number, 100 + 5 * number)}
        label = "measured" if seen else "derived"
        assert told[number] == alike | times | {"dur_ns": 3 if seen else None, "evidence": label}, number
    (kernels,) = batch.tables["kernels"]
    assert {(row["name"], row["stream"], row["kind"]) for row in kernels.to_pylist()} == {
        ("gloo:all_to_all", "thread 9", "comm")
    }
    assert sorted(row["start_ns"] for row in kernels.to_pylist()) == sorted(starts.values())


def test_parts_of_a_column_are_joined_whatever_they_come_as() -> None:
    few, three = Among(["b", "c"], np.array([1, 0, 1])), ["c", "b", "c"]
    assert _joined([Same("a"), few, Same(None), few], [2, 3, 1, 3]).to_pylist() == ["a", "a", *three, None, *three]
    assert _joined([Same("a"), few, ("d",)], [2, 3, 1]) == ["a", "a", *three, "d"]
    assert (_joined([Same("a"), Same("a")], [2, 3]), _joined([Same(None)], [2])) == ("a", None)
    assert _joined([np.array([1, 2]), np.array([3])], [2, 1]).tolist() == [1, 2, 3]
    assert _joined([np.array([1, 2]), Same(None), (4,)], [2, 1, 1]) == [1, 2, None, 4]


@pytest.mark.parametrize("value", ["g", "x" * (SHORT + 1), 3, None])
@pytest.mark.parametrize("count", [1, MANY, MANY + 1])
def test_a_column_of_one_value_has_it_in_every_row(value: str | int | None, count: int) -> None:
    batch = Batch()
    name = "group" if isinstance(value, str) else "bytes"
    batch.add_columns("collectives", count, {name: value})
    (rows,) = batch.tables["collectives"]
    assert rows[name].to_pylist() == [value] * count
    assert rows["op"].null_count == count == rows.num_rows


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
