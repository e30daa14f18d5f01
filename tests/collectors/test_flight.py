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

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.agent import flight
from moescope.collectors.agent.comm import Calls
from moescope.collectors.agent.flight import FlightReader
from moescope.collectors.sidecar.flight import Execution, Flights, Issue
from tests.collectors.reading import meta, rows
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
    dist.send(torch.ones(4), 1) if rank == 0 else dist.recv(torch.ones(4), 0)
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
    by_op = {op: sum(c["op"] == op for c in of_python) for op in {c["op"] for c in of_python}}
    assert by_op == {"all_reduce": 120, "broadcast": 120, "reduce_scatter": 120, "send": 60, "recv": 60}
    # One row for each, though gloo tells a range of its own for them.
    names = [row["name"] for row in rows(recording, "kernels")]
    assert (names.count("gloo:send"), names.count("gloo:recv")) == (60, 60)
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
        assert kernel["name"] == f"gloo:{'all_reduce' if call['op'] == 'reduce_scatter' else call['op']}"
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


class _Gloo:
    """A process of some groups, each with two threads that take calls in the order of their issue."""

    def __init__(self, draw: random.Random, groups: int, count: int) -> None:
        self.issues: list[tuple[int, Issue]] = []
        self.told: list[dict[str, Any]] = []
        self.ran: list[tuple[str, str, Execution]] = []
        self.busy: list[tuple[str, int]] = []
        self.truth: dict[int, tuple[str, str, int, int]] = {}
        free = {f"g{at}": [0, 0] for at in range(groups)}
        place, last = dict.fromkeys(free, 0), dict.fromkeys(free, 0)
        now, number = 10**12, 0
        for _ in range(count):
            now += draw.choice((60_000, 3_000_000, 40_000_000)) + draw.randint(0, 20_000)
            group, op = draw.choice(list(free)), draw.choice(("all_reduce", "all_gather"))
            by_python, seen = draw.random() < 0.2, draw.random() < 0.7  # seen: a range was on when it was issued
            issued, end = now + draw.randint(0, 10_000), now + 30_000
            worker = free[group].index(min(free[group]))
            start = max(issued, free[group][worker], last[group]) + draw.randint(5_000, 60_000)
            last[group] = start
            ends = start + draw.choice((50_000, 5_000_000, 90_000_000))
            free[group][worker], number, place[group] = ends, number + 1, place[group] + 1
            if seen or by_python:
                self.busy.append((group, ends))
            if by_python:
                continue
            thread = draw.randint(1, 3)
            call = (issued, place[group], 64, thread)
            self.told.append({"op": op, "group": group, "dtype": "float32", "calls": [call], "last_ns": issued})
            if seen:
                self.issues.append((thread, Issue(now, end, f"c10d::{op}_", 7)))
                self.ran.append((group, op, Execution(start, ends, number)))
                self.truth[number] = (group, op, place[group], thread)


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 80), st.integers(1, 6))
def test_calls_meet_their_executions_however_they_are_told(seed: int, groups: int, count: int, batches: int) -> None:
    draw = random.Random(seed)
    gloo, flights, found = _Gloo(draw, groups, count), Flights(), {}
    cuts = sorted(draw.choices(range(10**12, 10**12 + 40_000_000 * count), k=batches - 1))
    before = 0
    for cut in [*cuts, 2**62]:
        for thread, issue in gloo.issues:
            if before <= issue.start_ns < cut:
                flights.issued(thread, issue)
        for group, op, execution in gloo.ran:
            if before <= execution.start_ns < cut:
                flights.ran(group, op, execution)
        for group, ends in gloo.busy:
            if before <= ends < cut:
                flights.busy(group, np.array([ends]))
        # What is told is told of calls that lie some time back.
        for row in gloo.told:
            if before <= row["calls"][0][0] < cut:
                flights.told(row)
        before = cut
        for told, issue, execution in flights.met(final=cut == 2**62):
            assert (issue.phase, issue.operator) == (7, f"c10d::{told.op}_")
            found[execution.number] = (told.group, told.op, told.sequence, told.thread)
    assert found == gloo.truth


def test_an_execution_that_never_came_costs_its_own_call_alone() -> None:
    flights = Flights()
    for place in range(6):
        at = 10**12 + place * 200_000_000
        flights.issued(1, Issue(at, at + 50_000, "c10d::allreduce_", 0))
        calls = [(at + 1000, place, 64, 1)]
        flights.told({"op": "all_reduce", "group": "g", "dtype": "float32", "calls": calls, "last_ns": at})
        if place != 2:
            flights.ran("g", "all_reduce", Execution(at + 100_000, at + 200_000, 100 + place))
            flights.busy("g", np.array([at + 200_000]))
    flights.ran("g", "all_reduce", Execution(10**12 - 5_000_000, 10**12 - 4_000_000, 99))  # nobody told of this one
    found = flights.met(final=True)
    assert [(one.told.sequence, one.execution.number) for one in found] == [(p, 100 + p) for p in (0, 1, 3, 4, 5)]


def test_what_nobody_tells_of_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("moescope.collectors.sidecar.flight.MOST", 10)
    flights = Flights()
    for at in range(1000):
        flights.issued(1, Issue(at, at + 1, "c10d::allreduce_", 0))
        flights.ran("g", "all_reduce", Execution(at, at + 1, at))
    assert len(flights._issues[1]) <= 10
    assert len(flights._lines["g", "all_reduce"].executions) <= 10


def test_calls_of_two_threads_at_once_are_told_apart() -> None:
    flights, at = Flights(), 10**12
    flights.issued(1, Issue(at, at + 90_000, "c10d::allreduce_", 11))
    flights.issued(2, Issue(at + 10_000, at + 60_000, "c10d::_reduce_scatter_base_", 22))
    for group, thread, issued in (("a", 1, at + 70_000), ("b", 2, at + 20_000)):
        calls = [(issued, 1, 64, thread)]
        flights.told({"op": "all_reduce", "group": group, "dtype": "float32", "calls": calls, "last_ns": issued})
        flights.ran(group, "all_reduce", Execution(issued + 5000, issued + 6000, thread))
    found = {one.told.group: (one.issue.phase, one.execution.number) for one in flights.met(final=True)}
    assert found == {"a": (11, 1), "b": (22, 2)}


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
        entry |= {
            "input_dtypes": ["Float"],
            "thread_id": "77",
            "time_created_ns": issued_ns + time.time_ns() - time.monotonic_ns(),
        }
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
    at = time.monotonic_ns() - 10**9
    for number in range(5):
        torch.made("0", issued_ns=at + number * 10**6)
        made.append(("0", at + number * 10**6 - 1000, at + number * 10**6 + 1000))
    reader._look(final=True)
    assert (torch.readings, ring.told) == (0, [])
    for number in range(5, 13):
        torch.made("1" if number == 7 else "0", issued_ns=at + number * 10**6)
    ring.numbered = 3
    reader._look(final=False)  # too soon
    assert torch.readings == 0
    clock = [time.monotonic() + flight.READ_S + 1]
    monkeypatch.setattr(flight.time, "monotonic", lambda: clock[0])
    reader._look(final=False)
    assert torch.readings == 1
    assert [(row["group"], row["op"], row["dtype"], [call[1:] for call in row["calls"]]) for row in ring.told] == [
        ("0", "all_reduce", "float32", [(place, 24, 77) for place in (6, 7, 8, 9, 10, 11, 12)]),
        ("1", "all_reduce", "float32", [(1, 24, 77)]),
    ]
    assert abs(ring.told[0]["calls"][0][0] - (at + 5 * 10**6)) < 10**6
    assert not logged  # what was overwritten was made before C++ issued anything
    ring.told.clear()
    reader._look(final=True)
    torch.made("0", issued_ns=at + 10**8)
    ring.numbered = 4
    reader._look(final=False)
    assert (torch.readings, ring.told) == (1, [])
    reader._look(final=True)
    assert [call[1] for row in ring.told for call in row["calls"]] == [13]
    assert not logged


def test_calls_that_were_overwritten_before_they_could_be_read_are_missed_aloud(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch = _Torch()
    reader, ring, logged, _ = _reader(torch, monkeypatch)
    at = time.monotonic_ns() + 10**6
    for number in range(25):
        torch.made("0", issued_ns=at + number * 10**6)
    ring.numbered = 25
    reader._look(final=True)
    assert [call[1] for row in ring.told for call in row["calls"]] == list(range(16, 26))
    assert len(logged) == 1
    assert "TORCH_FR_BUFFER_SIZE=10" in logged[0]


def test_reading_costs_a_small_share_of_the_time_whatever_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = _Torch()
    reader, ring, _, _ = _reader(torch, monkeypatch)
    clock = [10.0]
    monkeypatch.setattr(reader, "_read_s", clock[0])
    monkeypatch.setattr(flight.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(flight.time, "monotonic_ns", lambda: int(clock[0] * 1e9))
    dump = reader._dump

    def slow(**what: bool) -> bytes:
        clock[0] += 0.05 if what["includeCollectives"] else 0.0
        return dump(**what)

    monkeypatch.setattr(reader, "_dump", slow)
    started, spent = clock[0], 0.0
    for _ in range(400):
        clock[0] += 1.0
        torch.made("0", issued_ns=int(clock[0] * 1e9))
        ring.numbered += 1
        before = clock[0]
        reader._look(final=False)
        spent += clock[0] - before
    assert torch.readings > 2
    assert spent <= 2.5 * flight.COST * flight.HURRY * (clock[0] - started)


@pytest.mark.parametrize("size", ["0", "20000"])
def test_a_flight_recorder_that_keeps_nothing_or_too_much_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, size: str
) -> None:
    monkeypatch.setenv("TORCH_FR_BUFFER_SIZE", size)
    session: Any = SimpleNamespace(torch=_Torch())
    with pytest.raises(ValueError, match=size):
        FlightReader(session, SimpleNamespace())  # type: ignore[arg-type]


def test_a_flight_recorder_that_cannot_be_read_is_told_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = _Torch()
    reader, ring, logged, _ = _reader(torch, monkeypatch)
    monkeypatch.setattr(reader, "_dump", lambda **_: b"no pickle")
    ring.numbered = 1
    assert [reader._guarded(final=False) for _ in range(flight.TRIES)] == [True] * (flight.TRIES - 1) + [False]
    assert ring.switched[-1] == 0
    assert len(logged) == 1
    assert "calls that C++ issues are not told" in logged[0]


@pytest.mark.parametrize("begun", [True, False])
def test_a_call_whose_range_another_version_does_not_tell_ends_with_its_wait(begun: bool) -> None:
    done: list[int] = []
    ring: Any = SimpleNamespace(done=done.append, announce=lambda on: None, mute=lambda on: None, blob=lambda *_: None)
    ring.next_call, ring.settled, ring.group_mark = (lambda: 7), (lambda: 1), (lambda name: 1)
    ring.issue_begins = ring.issue_ends = lambda *_: 0
    ring.expect, ring.withdraw, ring.comm = (lambda *_: 0), (lambda call: int(not begun)), (lambda *_: None)
    distributed: Any = SimpleNamespace(get_process_group_ranks=lambda group: [0, 1], get_world_size=lambda: 2)
    distributed.get_group_rank, distributed.get_rank = (lambda group, rank: rank), (lambda: 0)
    distributed.get_backend = lambda group: "gloo"
    works: Any = SimpleNamespace(wait=lambda work: "waited")
    c: Any = SimpleNamespace(_distributed_c10d=SimpleNamespace(Work=works))
    session: Any = SimpleNamespace(torch=SimpleNamespace(distributed=distributed, _C=c), ring=ring)
    session.recorder, session.learn_rank = SimpleNamespace(events_cost_ns=0), lambda *_: None
    calls, work, group = Calls(session), _Work(), _Work()
    original = lambda group, *tensors: work  # noqa: E731
    call = calls.wrap(original, "reduce_scatter", lambda *_: (None, None), b"gloo:all_reduce", sure=False)
    assert call(group) is work
    assert [works.wait(work), works.wait(work)] == ["waited"] * 2
    assert done == ([] if begun else [7])
    assert [(name, start <= end) for name, start, end in calls.made] == [("0", True)]


class _Work:
    group_name, group_desc = "0", "default_pg"


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


WORKERS = """
import os, time, torch, torch.distributed as dist, torch.multiprocessing as mp
import torch.distributed._functional_collectives as functional

def work(rank, path):
    dist.init_process_group("gloo", init_method=f"file://{path}", rank=rank, world_size=2)
    for _ in range(50):
        functional.all_reduce(torch.ones(8), "sum", dist.group.WORLD) + 1
        time.sleep(0.02)
    dist.destroy_process_group()

if __name__ == "__main__":
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(work, args=(folder + "/store",), nprocs=2, start_method="fork")
"""


def test_workers_that_were_forked_end_with_all_they_did(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(WORKERS)
    done = moescope("run", "--budget", "full", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    assert [row["state"] for row in meta(tmp_path / "rec")["ranks"]] == ["ended", "ended"]
    calls = [row for row in rows(tmp_path / "rec", "collectives") if row["sequence"] is not None]
    assert {rank: sum(row["rank"] == rank for row in calls) >= 30 for rank in (0, 1)} == {0: True, 1: True}
