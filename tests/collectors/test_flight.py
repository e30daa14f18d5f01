"""Calls that C++ issues: numbered by the C library, named by torch's flight recorder, told apart from Python's."""

from __future__ import annotations

import pickle
import random
import sys
import time
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.agent import flight
from moescope.collectors.agent.flight import FlightReader
from moescope.collectors.sidecar.flight import CLOCK_NS, Flights
from tests.collectors.reading import rows
from tests.collectors.test_communication import record
from tests.conftest import Moescope

BY_CPP = """
import time, torch, torch.distributed as dist
import torch.distributed._functional_collectives as functional
from torch.nn.parallel import DistributedDataParallel

dist.init_process_group("gloo")
rank, pair = dist.get_rank(), dist.new_group([0, 1], group_desc="pair")
model = DistributedDataParallel(torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64)))
optimizer = torch.optim.SGD(model.parameters(), 0.1)
for step in range(60):
    loss = model(torch.randn(8, 64)).square().mean()
    if rank == 1:
        time.sleep(0.02)  # the last to arrive
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    dist.all_reduce(loss.detach())
    x = functional.all_gather_single(torch.ones(256), 0, pair) + 1
    x = functional.reduce_scatter_single(torch.ones(256), "sum", 0, pair) + 1
    dist.broadcast(torch.ones(16), 0, group=pair)
    out = torch.empty(64)
    dist.reduce_scatter_single(out, torch.ones(128), group=pair)
dist.destroy_process_group()
"""


def test_calls_of_ddp_and_functional_collectives_have_group_place_and_time(moescope: Moescope, tmp_path: Path) -> None:
    recording = record(moescope, tmp_path, BY_CPP)
    calls = rows(recording, "collectives")
    of_cpp = [call for call in calls if call["sequence"] is not None]
    of_python = [call for call in calls if call["sequence"] is None]
    assert {(c["op"], c["group_ranks"]) for c in of_cpp} >= {
        ("all_reduce", "0,1"),
        ("all_gather", "0,1"),
        ("reduce_scatter", "0,1"),
    }
    assert {call["op"] for call in of_python} == {"all_reduce", "broadcast", "reduce_scatter"}
    assert {op: sum(c["op"] == op for c in of_python) for op in ("all_reduce", "broadcast", "reduce_scatter")} == {
        "all_reduce": 120,
        "broadcast": 120,
        "reduce_scatter": 120,
    }
    # One bucket of gradients a step: weights and biases of both layers.
    buckets = [c for c in of_cpp if c["op"] == "all_reduce"]
    assert len(buckets) >= 80
    assert {c["bytes"] for c in buckets} == {2 * (64 * 64 + 64) * 4}
    assert {c["dtype"] for c in buckets} == {"float32"}
    assert {(c["op"], c["sent_bytes"]) for c in of_cpp if c["op"] != "all_reduce" and c["group"] != "0"} == {
        ("all_gather", 1024),
        ("reduce_scatter", 512),
    }
    assert all(c["evidence"] == "measured" and c["start_ns"] >= c["issue_ns"] for c in of_cpp)
    kernels = {(k["rank"], k["correlation"]): k for k in rows(recording, "kernels") if k["kind"] == "comm"}
    for call in of_cpp:
        kernel = kernels[call["rank"], call["call"]]
        assert (kernel["start_ns"], kernel["dur_ns"]) == (call["start_ns"], call["dur_ns"])
        assert kernel["name"] == f"gloo:{call['op']}"
    assert not [call for call in calls if call["dur_ns"] is None]
    phases = {(row["rank"], row["id"]): row["name"] for row in rows(recording, "phases")}
    assert {phases.get((c["rank"], c["phase_id"])) for c in buckets} == {"backward"}
    # One place of a group is one collective: it ends in both ranks at once, and rank 0 waits in it for rank 1.
    met: dict[tuple[str, int], dict[int, Any]] = {}
    for call in of_cpp:
        assert call["rank"] not in met.setdefault((call["group"], call["sequence"]), {})
        met[call["group"], call["sequence"]][call["rank"]] = call
    both = [pair for pair in met.values() if len(pair) == 2]
    assert len(both) >= 100
    assert all(pair[0]["op"] == pair[1]["op"] for pair in both)
    apart = sorted(abs(_end(pair[0]) - _end(pair[1])) for pair in both)
    assert apart[len(apart) * 9 // 10] < 10e6
    waits = sorted(pair[0]["dur_ns"] - pair[1]["dur_ns"] for pair in both if pair[0]["op"] == "all_reduce")
    assert waits[len(waits) // 2] > 10e6


def _end(call: dict[str, Any]) -> int:
    return int(call["start_ns"] + call["dur_ns"])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5))
def test_what_is_told_meets_the_issue_around_it_however_the_two_arrive(seed: int, count: int, batches: int) -> None:
    draw = random.Random(seed)
    ops = {"all_reduce": "c10d::allreduce_", "all_gather": "c10d::allgather_"}
    truth: dict[int, tuple[str, int]] = {}
    issues, told = [], []
    now = 10**12
    for place in range(count):
        now += draw.randint(3 * CLOCK_NS, 10_000_000)
        op = draw.choice(list(ops))
        start, issued, end = now, now + draw.randint(0, 20_000), now + 20_000 + draw.randint(0, 80_000)
        told.append((op, (issued, place, 64)))
        if draw.random() < 0.7:  # else no range was on
            issues.append((ops[op], place + 1, start, end))
            truth[place + 1] = (op, place)
    flights, found = Flights(), {}
    for batch in range(batches):
        for one in issues[batch::batches]:
            flights.issued(*one)
        for op, call in told[batch::batches]:
            flights.told({"op": op, "group": "g", "dtype": "float32", "calls": [call]})
        met, lost = flights.met()
        assert not lost
        found |= {issue.number: (issue.op, one.sequence) for issue, one in met}
    assert found == truth


def test_issues_that_nobody_tells_of_are_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.collectors.sidecar.flight.ISSUES_KEPT", 10)
    flights = Flights()
    for number in range(1, 31):
        flights.issued("c10d::allreduce_", number, number * 1000, number * 1000 + 10)
    assert flights.met() == ([], list(range(1, 21)))
    assert flights.met() == ([], [])


class _Torch:
    """A torch whose flight recorder holds what a test puts into it, in a ring of ten."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.groups: dict[object, str] = {}
        self.readings = 0
        c10d = SimpleNamespace(_world=SimpleNamespace(pg_names=self.groups))
        self.distributed = SimpleNamespace(is_initialized=lambda: True, distributed_c10d=c10d)
        self._C = SimpleNamespace(_distributed_c10d=SimpleNamespace(_dump_fr_trace=self._dump))
        self.dtype = str
        self.float32 = _Float("float32")

    def made(self, group: str, *, issued_ns: int, op: str = "all_reduce") -> None:
        place = sum(one["process_group"][0] == group for one in self.entries)
        entry = {"record_id": len(self.entries), "profiling_name": f"gloo:{op}", "is_p2p": False}
        entry |= {"process_group": (group, ""), "collective_seq_id": place + 1, "input_sizes": [[3, 2]]}
        entry |= {"input_dtypes": ["Float"], "time_created_ns": issued_ns + time.time_ns() - time.monotonic_ns()}
        self.entries.append(entry)

    def _dump(self, *, includeCollectives: bool, includeStackTraces: bool, onlyActive: bool) -> bytes:
        assert not includeStackTraces
        assert not onlyActive
        names = {entry["process_group"][0] for entry in self.entries}
        last = {n: sum(entry["process_group"][0] == n for entry in self.entries) for n in names}
        held: dict[str, Any] = {"pg_status": {n: {"last_enqueued_collective": str(count)} for n, count in last.items()}}
        if includeCollectives:
            self.readings += 1
            held["entries"] = self.entries[-10:]
        return pickle.dumps(held)


class _Float(str):
    itemsize = 4


def _reader(torch: _Torch, monkeypatch: pytest.MonkeyPatch) -> tuple[FlightReader, Any, list[str], deque[Any]]:
    """The reader; a ring that keeps what is told and says how many calls were numbered; the log; what Python made."""
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", "10")
    logged: list[str] = []
    ring: Any = SimpleNamespace(told=[], numbered=0, switched=[])
    ring.blob, ring.follow_calls = lambda kind, row: ring.told.append(row), ring.switched.append
    ring.followed = lambda: ring.numbered
    recorder = SimpleNamespace(events_cost_ns=0, log=lambda level, source, text: logged.append(text))
    calls: Any = SimpleNamespace(made=deque[Any](), meet=lambda group, name: None, on_gloo_alone=lambda: True)
    session: Any = SimpleNamespace(torch=torch, ring=ring, recorder=recorder)
    return FlightReader(session, calls), ring, logged, calls.made


def test_what_python_issues_is_not_read_and_nothing_is_told_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = _Torch()
    reader, ring, logged, made = _reader(torch, monkeypatch)
    at = time.monotonic_ns()
    for number in range(5):
        torch.made("0", issued_ns=at + number * 10**6)
        made.append(("0", at + number * 10**6 - 1000, at + number * 10**6 + 1000))
    reader._look(final=True)
    assert (torch.readings, ring.told) == (0, [])
    for number in range(5, 13):
        torch.made("1" if number == 7 else "0", issued_ns=at + number * 10**6)
    ring.numbered = 3
    reader._look(final=False)  # more than is safe to leave there
    assert torch.readings == 1
    assert [(row["group"], row["op"], row["dtype"], [call[1:] for call in row["calls"]]) for row in ring.told] == [
        ("0", "all_reduce", "float32", [(place, 24) for place in (6, 7, 8, 9, 10, 11, 12)]),
        ("1", "all_reduce", "float32", [(1, 24)]),
    ]
    assert abs(ring.told[0]["calls"][0][0] - (at + 5 * 10**6)) < 10**6
    assert logged  # the first three were overwritten before they were read: whose they were is not known
    ring.told.clear()
    reader._look(final=True)
    torch.made("0", issued_ns=at + 10**8)
    ring.numbered = 4
    reader._look(final=False)  # a single one can wait
    assert (torch.readings, ring.told) == (1, [])
    monkeypatch.setattr(reader, "_read_s", reader._read_s - flight.READ_S - 1)
    reader._look(final=False)
    assert [call[1] for row in ring.told for call in row["calls"]] == [13]
    assert len(logged) == 1


def test_a_flight_recorder_that_cannot_be_read_is_told_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = _Torch()
    reader, ring, logged, _ = _reader(torch, monkeypatch)
    monkeypatch.setattr(reader, "_dump", lambda **_: b"no pickle")
    ring.numbered = 1
    assert not reader._guarded(final=False)
    assert ring.switched == [True, 0]
    assert "calls that C++ issues are not told" in logged[0]


FORKS = """
import atexit, os, time, torch, torch.distributed as dist, torch.distributed._functional_collectives as functional
dist.init_process_group("gloo")
x = torch.ones(4)
for _ in range(40):
    functional.all_reduce(x, "sum", dist.group.WORLD) + 1
    time.sleep(0.01)
child = os.fork()
if not child:
    time.sleep(0.1)  # feeds the parent with data, and takes nothing of its calls for its own
    atexit._run_exitfuncs()
    os._exit(0)  # with the parent's gloo torch itself does not come to an end
os.waitpid(child, 0)
dist.destroy_process_group()
"""


def test_a_forked_child_tells_nothing_of_its_parents_calls(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(FORKS)
    env = ["RANK=0", "WORLD_SIZE=1", "MASTER_ADDR=127.0.0.1", "MASTER_PORT=0"]
    done = moescope("run", "--budget", "full", "-o", "rec", "--", "env", *env, sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    assert {row["rank"] for row in rows(tmp_path / "rec", "collectives")} == {0}
    assert "recorded 1 rank" in done.stderr
