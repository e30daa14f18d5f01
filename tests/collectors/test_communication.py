"""Calls of torch.distributed: when they really ran, whoever issued them, and what becomes of those that fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.collectors.reading import rows
from tests.conftest import Moescope

LAUNCH = Path(__file__).parents[1] / "launch.py"

THREADS = """
import sys, threading, time, torch, torch.distributed as dist
dist.init_process_group("gloo")
rank = dist.get_rank()

def communicate():
    for _ in range(40):
        time.sleep(0.01)
        work = dist.all_to_all_single(torch.empty(4096), torch.ones(4096), async_op=True)
        work.wait()

other = threading.Thread(target=communicate, name="comm")
other.start()
x = torch.ones(64, 64)
count = 0
while other.is_alive():
    # Holds the interpreter for long stretches: a completion told by a Python callback would come late.
    sum(range(200_000))
    x @ x
other.join()
for size in (1000, 2000, 3000):
    dist.all_reduce(torch.ones(size))
    dist.broadcast(torch.ones(size), 0)
    dist.all_gather([torch.empty(size), torch.empty(size)], torch.ones(size))
dist.barrier()
dist.destroy_process_group()
"""

LATE = """
import time, torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
time.sleep(1.0)
for _ in range(3):
    if dist.get_rank() == 1:
        time.sleep(0.25)
    dist.all_reduce(torch.ones(10))
dist.barrier()
dist.destroy_process_group()
"""

FAILS = """
import torch, torch.distributed as dist
dist.init_process_group("gloo")
dist.barrier()
for _ in range(5):
    try:
        dist.all_gather([torch.empty(1)], torch.ones(1))
    except Exception:
        pass
    dist.all_reduce(torch.ones(4))
print("done", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


STAYS_ON = """
import atexit, os, time, torch, torch.distributed as dist
from torch.profiler import ProfilerActivity, profile
dist.init_process_group("gloo")
x = torch.ones(64, 64)

def work(times, size):
    for _ in range(times):
        dist.all_reduce(torch.ones(size))
        x @ x
        time.sleep(0.005)

work(100, 10)
with profile(activities=[ProfilerActivity.CPU]) as told:
    work(7, 20)
assert sum(row.count for row in told.key_averages() if row.key == "aten::mm") == 7
work(60, 30)
child = os.fork()
if not child:
    for _ in range(60):
        x.neg()
        time.sleep(0.005)
    atexit._run_exitfuncs()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
weight = torch.ones(4, requires_grad=True)
weight.register_hook(lambda gradient: dist.all_reduce(torch.ones(40)))
for _ in range(40):
    weight.sum().backward()
    time.sleep(0.005)
work(60, 50)
dist.barrier()
dist.destroy_process_group()
"""


BETWEEN_TWO = """
import torch, torch.distributed as dist
from torch.autograd.profiler import record_function
from torch.autograd.profiler_legacy import profile
dist.init_process_group("gloo")
rank, x = dist.get_rank(), torch.ones(64)
dist.all_reduce(x)
for step in range(400):
    work = dist.isend(x, 1) if rank == 0 else dist.irecv(x, 0)
    with record_function("work"):
        x.cos()
        work.wait()
with profile() as told:  # the target's own, on a thread where ranges stay on
    torch.ones(4, 4) @ torch.ones(4, 4)
assert sum(row.count for row in told.key_averages() if row.key == "aten::mm") == 1
print("done", flush=True)
dist.barrier()
dist.destroy_process_group()
"""


ELSEWHERE = """
import queue, threading, torch, torch.distributed as dist
from torch.autograd.profiler import record_function
dist.init_process_group("gloo")
rank, x = dist.get_rank(), torch.ones(64)
dist.all_reduce(x)
works, waited = queue.Queue(), queue.Queue()

def wait():
    while (work := works.get()) is not None:
        work.wait()
        waited.put(None)

waiter = threading.Thread(target=wait)
waiter.start()
for step in range(400):
    works.put(dist.isend(x, 1) if rank == 0 else dist.irecv(x, 0))
    waited.get()
    with record_function("work"):
        x.cos()
works.put(None)
waiter.join()
dist.barrier()
dist.destroy_process_group()
"""


def record(moescope: Moescope, folder: Path, text: str, budget: str = "full") -> Path:
    (folder / "target.py").write_text(text)
    done = moescope("run", "--budget", budget, "-o", "rec", "--", sys.executable, LAUNCH, "2", "target.py")
    assert done.returncode == 0, done.stderr
    return folder / "rec"


@pytest.mark.parametrize("budget", ["2%", "full"])
def test_calls_of_any_thread_are_measured_inside_windows_and_outside(
    moescope: Moescope, tmp_path: Path, budget: str
) -> None:
    recording = record(moescope, tmp_path, THREADS, budget)
    calls = [c for c in rows(recording, "collectives") if c["op"] == "all_to_all"]
    assert len(calls) == 80
    measured = [c for c in calls if c["evidence"] == "measured"]
    # The first call or two may be issued before the first window opens.
    assert len(measured) >= 70
    assert all(c["start_ns"] >= c["issue_ns"] and c["dur_ns"] is not None for c in measured)
    kernels = {
        (k["rank"], k["correlation"]): k
        for k in rows(recording, "kernels")
        if k["correlation"] is not None and k["evidence"] == "measured"
    }
    for call in measured:
        kernel = kernels[call["rank"], call["call"]]
        assert (kernel["start_ns"], kernel["dur_ns"]) == (call["start_ns"], call["dur_ns"])
        assert kernel["name"] == "gloo:all_to_all"
    by_op = {op: [c for c in rows(recording, "collectives") if c["op"] == op] for op in ("all_reduce", "broadcast")}
    assert {op: len(found) for op, found in by_op.items()} == {"all_reduce": 6, "broadcast": 6}
    assert not [c for c in rows(recording, "collectives") if c["dur_ns"] is None]


def test_a_call_lasts_until_the_last_rank_has_come(moescope: Moescope, tmp_path: Path) -> None:
    recording = record(moescope, tmp_path, LATE)
    calls = [c for c in rows(recording, "collectives") if c["op"] == "all_reduce"]
    waited = [c["dur_ns"] / 1e9 for c in calls if c["rank"] == 0]
    came_late = [c["dur_ns"] / 1e9 for c in calls if c["rank"] == 1]
    assert len(waited) == len(came_late) == 3
    assert all(0.2 < seconds < 0.6 for seconds in waited)
    assert all(seconds < 0.15 for seconds in came_late)


def test_a_call_that_raises_leaves_the_others_to_their_own_ranges(moescope: Moescope, tmp_path: Path) -> None:
    recording = record(moescope, tmp_path, FAILS)
    assert {c["op"] for c in rows(recording, "collectives")} == {"all_reduce", "barrier"}
    calls = [c for c in rows(recording, "collectives") if c["op"] == "all_reduce"]
    assert len(calls) == 10
    assert all(c["dur_ns"] is not None and c["dur_ns"] < 1e9 for c in calls)


def test_ranges_that_stay_on_give_way_to_the_targets_profiler_to_a_fork_and_to_windows(
    moescope: Moescope, tmp_path: Path
) -> None:
    recording = record(moescope, tmp_path, STAYS_ON, "2%")
    calls = [c for c in rows(recording, "collectives") if c["op"] == "all_reduce"]
    # Of one rank each; four bytes an element.
    measured = {size: [c["evidence"] for c in calls if c["bytes"] == 4 * size] for size in (10, 20, 30, 40, 50)}
    assert {size: len(found) for size, found in measured.items()} == {10: 200, 20: 14, 30: 120, 40: 80, 50: 120}
    assert "measured" not in measured[20]  # the target's own profiler is on
    for size in (30, 40, 50):
        assert set(measured[size]) == {"measured"}
    assert measured[10].count("measured") > 150  # before the first window there are no ranges
    windows = rows(recording, "windows")
    children = {w["rank"] for w in windows} - {0, 1}
    assert len(children) == 2
    assert [k for k in rows(recording, "kernels") if k["rank"] in children and k["name"] == "aten::neg"]
    said = {(one["level"], one["source"]) for one in rows(recording, "log") if one["level"] != "info"}
    assert said <= {("warning", "kernels"), ("warning", "run")}, rows(recording, "log")
    ranged = {(k["rank"], k["start_ns"]) for k in rows(recording, "kernels") if k["name"] == "aten::mm"}
    assert 0 < len(ranged) < 300  # of 454: operators are not told between windows


def test_phases_around_the_wait_for_a_send_are_all_recorded(moescope: Moescope, tmp_path: Path) -> None:
    recording = record(moescope, tmp_path, BETWEEN_TWO, "full")
    phases = [row for row in rows(recording, "phases") if row["name"] == "work"]
    assert [sum(row["rank"] == rank for row in phases) for rank in (0, 1)] == [400, 400]
    calls = [c for c in rows(recording, "collectives") if c["op"] in ("send", "recv")]
    assert len(calls) == 800
    assert all(c["dur_ns"] is not None for c in calls)
    assert sum(k["name"] == "aten::cos" for k in rows(recording, "kernels")) > 600


def test_sends_that_another_thread_waits_for_do_not_fill_the_stack(moescope: Moescope, tmp_path: Path) -> None:
    recording = record(moescope, tmp_path, ELSEWHERE, "full")
    phases = [row for row in rows(recording, "phases") if row["name"] == "work"]
    assert [sum(row["rank"] == rank for row in phases) for rank in (0, 1)] == [400, 400]
    assert sum(k["name"] == "aten::cos" for k in rows(recording, "kernels")) > 600
