"""Rows of a rank whose kernels are a GPU's: NCCL's calls, PyTorch's profiler as the source, and whose windows count."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moescope.collectors.agent.file_ring import FileRing as Writer
from moescope.collectors.agent.kineto import write_device_events
from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import DONE, EXECUTION, RECORD
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.call_columns import Call
from moescope.collectors.sidecar.calls import LOST_NS, Calls
from moescope.collectors.sidecar.device import _dimensions
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.file_reader import FileRing as Reader
from moescope.collectors.sidecar.names import Names
from moescope.profiler.overlap.sweep import recorded_windows
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, kernel, window

Row = dict[str, Any]


def stored(batch: Batch, table: str) -> list[Row]:
    found = [row for part in batch.tables.get(table, []) for row in part.to_pylist()]
    return found + batch.rows.get(table, [])


@pytest.mark.parametrize(("backend", "known"), [("nccl", False), ("gloo", True)])
def test_a_call_that_ends_on_the_gpu_is_told_by_its_kernel_alone(backend: str, known: bool) -> None:
    calls = Calls(Origin(1, Clock(0, 0), rank=0, kernels_told=True))
    calls.group({"name": "world", "ranks": [0, 1], "backend": backend})
    calls.issued(1, Call("all_to_all", "world", 100, [0, 64], [0, 64], "float32", 0))
    calls.issued(2, Call("all_to_all", "world", 300, [0, 64], [0, 64], "float32", 0))
    done = np.zeros(1, RECORD)
    done["type"], done["start_ns"], done["a"] = DONE, 150, 1
    calls.executed(2, done, Names(lambda: [""]))
    batch = Batch()
    calls.store(batch, final=True)
    assert [(row["call"], row["dur_ns"]) for row in stored(batch, "collectives")] == [(1, 50)] * known + [(2, None)]
    assert [(row["bytes"], row["dur_ns"]) for row in stored(batch, "transfers")] == [
        (64, 50 if known else None),
        (64, None),
    ]
    assert stored(batch, "kernels") == []


def test_a_call_whose_kernels_record_was_lost_is_not_taken_for_one_that_hangs() -> None:
    calls = Calls(Origin(1, Clock(0, 0), rank=0, kernels_told=True))
    names = Names(lambda: ["", "ncclDevKernel_AllReduce"])
    names.update()
    for name in ("world", "pair"):
        calls.group({"name": name, "ranks": [0, 1], "backend": "nccl"})
    calls.issued(1, Call("all_to_all", "world", 0, [0, 64], [0, 64], "float32", 0))
    calls.issued(2, Call("send", "pair", 0, [0, 32], [0, 0], "float32", 0))
    calls.issued(3, Call("all_to_all", "world", LOST_NS - 10, [0, 16], [0, 16], "float32", 0))
    calls.issued(4, Call("all_to_all", "world", LOST_NS, [0, 16], [0, 16], "float32", 0))
    for number, start in ((3, LOST_NS), (4, LOST_NS + 5)):
        span = np.zeros(1, RECORD)
        span["type"], span["b"], span["start_ns"], span["dur_ns"], span["name"] = EXECUTION, number, start, 5, 1
        calls.executed_on_gpu(span, names)
        batch = Batch()
        calls.store(batch)
        assert [row["call"] for row in stored(batch, "collectives")] == [number]
        # Of the first no more is known than its bytes, once a later call of its group is a minute past it.
        untimed = [row["bytes"] for row in stored(batch, "transfers") if row["dur_ns"] is None]
        assert untimed == ([] if number == 3 else [64])
    last = Batch()
    calls.store(last, final=True)
    assert [(row["op"], row["dur_ns"]) for row in stored(last, "collectives")] == [("send", None)]


def test_kernels_of_pytorchs_profiler_come_back_however_many_and_long(tmp_path: Path) -> None:
    told = [[i % 2, 7 + i % 3, f'kernel<{i}, "ü\x1b">' + "x" * 900, 1000 * i, 10 + i, i] for i in range(120)]
    path = tmp_path / "4711-1.events"
    write_device_events(Writer(str(path)), told)
    drain = ProcessDrain(Reader(path), Clock(5, 0))
    drain.origin.rank = 3
    rows = stored(drain.drain(0, final=True), "kernels")
    keys = ("device", "stream", "name", "start_ns", "dur_ns", "correlation")
    want = [(f"cuda:{device}", str(stream), name, start + 5, dur, i) for device, stream, name, start, dur, i in told]
    assert [tuple(row[key] for key in keys) for row in rows] == want
    drain.ring.close()
    assert drain.at_work
    assert drain.origin.devices == {"cuda:0", "cuda:1"}


def test_windows_of_a_gpu_say_nothing_of_the_host_and_the_other_way_round() -> None:
    source = MemorySource()
    source.add("windows", [window(0, 100), window(1000, 500) | {"source": "cupti"}, window(0, 70, rank=1)])
    source.add("kernels", [kernel(10, 50), kernel(1100, 100) | {"device": "cuda:0"}])
    assert [(a.tolist(), b.tolist()) for a, b in [recorded_windows(source, "cpu")[0]]] == [([0], [100])]
    assert [(a.tolist(), b.tolist()) for a, b in [recorded_windows(source, "cuda:0")[0]]] == [([1000], [1500])]
    assert recorded_windows(source, "cpu")[1][1].tolist() == recorded_windows(source, "cuda:0")[1][1].tolist() == [70]
    spans = {row["device"]: (row["span_us"], row["busy_us"]) for row in summarise(source)["ranks"] if row["rank"] == 0}
    assert spans == {"cpu": (0.1, 0.05), "cuda:0": (0.5, 0.1)}


def test_launch_sizes_are_told_as_they_are() -> None:
    sizes = np.array([[2**31 - 1, 65535, 65535], [1, 2, 3], [3, 2, 1], [1, 2, 3], [0, 0, 0], [65536, 0, 1]], np.uint32)
    known = np.array([True, True, True, False, False, True])
    told = ["2147483647,65535,65535", "1,2,3", "3,2,1", None, None, "65536,0,1"]
    assert _dimensions(sizes, known).to_pylist() == told
