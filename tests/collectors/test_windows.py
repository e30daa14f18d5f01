"""Windows in which operators are recorded: how far apart they lie, and that they show what takes a program's time."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from moescope.collectors.agent import windows
from moescope.collectors.agent.itt import IttSource
from moescope.collectors.agent.pace import LEAST_NS, RESTS_NS
from moescope.collectors.agent.windows import WindowKeeper
from tests.collectors.reading import rows
from tests.conftest import Moescope

# A few operators, then next to nothing, so that windows grow; then as many operators as there can be.
IDLE_THEN_DENSE = """
import time, torch
x = torch.ones(1)
for _ in range(150):
    x.neg()
    time.sleep(0.01)
until = time.monotonic() + 5
while time.monotonic() < until:
    for _ in range(1000):
        x.neg()
"""


def test_a_window_that_cost_much_does_not_keep_the_next_one_waiting(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(IDLE_THEN_DENSE)
    done = moescope("run", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    starts = sorted(row["start_ns"] for row in rows(tmp_path / "rec", "windows"))
    # A second at most, and as much again for a machine that is busy with others.
    assert max(b - a for a, b in pairwise(starts)) < 2_000_000_000
    assert len(starts) >= 5


# A step of 40 ms, a backward pass and a sleep among it; a window can be cut in neither.
SHORT_STEPS = """
import time, torch
from torch.autograd.profiler import record_function
model = torch.nn.Sequential(*[torch.nn.Linear(512, 512) for _ in range(10)])
optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, foreach=True)
x = torch.randn(64, 512)
until = time.monotonic() + 7
while time.monotonic() < until:
    loss = model(x).square().mean()
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    with record_function("nap"):
        time.sleep(0.015)
"""


def _inside(ranges: list[tuple[int, int]], windows: list[tuple[int, int]]) -> int:
    return sum(max(0, min(b, d) - max(a, c)) for a, b in ranges for c, d in windows)


def _ranges(found: list[dict[str, Any]]) -> list[tuple[int, int]]:
    return [(row["start_ns"], row["start_ns"] + row["dur_ns"]) for row in found]


def test_windows_are_whole_steps_where_steps_are_short(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(SHORT_STEPS)
    done = moescope("run", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    steps = sorted(_ranges(rows(tmp_path / "rec", "steps")))[5:]
    windows = _ranges(rows(tmp_path / "rec", "windows"))
    whole = [one for one in steps if _inside([one], windows) >= 0.98 * (one[1] - one[0])]
    partly = [one for one in steps if one not in whole and _inside([one], windows) >= 0.1 * (one[1] - one[0])]
    assert len(whole) >= 5
    assert len(whole) > 2 * len(partly)
    # What a step consists of is what the recorded ones consist of.
    for name in ("nap", "backward"):
        found = _ranges([row for row in rows(tmp_path / "rec", "phases") if row["name"] == name])
        span = (steps[0][0], steps[-1][1])
        true = _inside(found, [span]) / (span[1] - span[0])
        seen = _inside(found, whole) / sum(b - a for a, b in whole)
        assert abs(seen / true - 1) < 0.25, (name, true, seen)


BESIDE = """
import threading, time, torch
model = torch.nn.Sequential(*(torch.nn.Linear(64, 64) for _ in range(4)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train():
    for _ in range(250):
        model(torch.ones(8, 64)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        time.sleep(0.015)

trainer = threading.Thread(target=train)
trainer.start()
trainer.join()
until = time.monotonic() + 4
while time.monotonic() < until:
    torch.ones(64).cos()
    time.sleep(0.002)
"""


@pytest.mark.parametrize("budget", ["2%", "full"])
def test_a_thread_that_trains_beside_a_main_one_that_waits_is_recorded(
    moescope: Moescope, tmp_path: Path, budget: str
) -> None:
    (tmp_path / "target.py").write_text(BESIDE)
    done = moescope("run", "--budget", budget, "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    steps = sorted(_ranges(rows(tmp_path / "rec", "steps")))
    # For a second it is not known whether the main thread works, too.
    steps = [one for one in steps if one[0] > steps[0][1] + 1.5e9]
    windows = _ranges(rows(tmp_path / "rec", "windows"))
    kernels = rows(tmp_path / "rec", "kernels")
    products = [k for k in kernels if k["name"] in ("aten::addmm", "aten::mm")]
    streams = {k["stream"] for k in products}
    assert len(streams) == 1
    # What is recorded is recorded as a whole: four products forward, and seven back. A window opens as a step begins.
    whole = [one for one in steps if _inside([one], windows) >= 0.98 * (one[1] - one[0])]
    for start, end in whole[1:]:
        assert 7 <= sum(start <= k["start_ns"] < end for k in products) <= 12
    share = len(whole) / len(steps)
    assert share > 0.9 if budget == "full" else 0.02 < share < 0.8
    # Once the thread has ended the main one is looked at.
    assert {k["stream"] for k in kernels if k["name"] == "aten::cos"} - streams
    ends = max(end for _, end in steps)
    assert _inside(windows, [(ends, ends + 4 * 10**9)]) > 0.01 * 4e9
    assert not [row for row in rows(tmp_path / "rec", "log") if row["level"] == "error"]


BOTH = """
import threading, time, torch
model = torch.nn.Linear(64, 64)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

def train():
    for _ in range(200):
        model(torch.ones(8, 64)).sum().backward()
        optimizer.step()
        time.sleep(0.02)

trainer = threading.Thread(target=train)
trainer.start()
x = torch.ones(64)
while trainer.is_alive():
    x.cos()
    time.sleep(0.002)
"""
WITHOUT_LIBRARY = """
import moescope.collectors.sidecar.target as target
target.library_path = lambda: None
"""


@pytest.mark.parametrize("prepare", ["", WITHOUT_LIBRARY], ids=["itt", "kineto"])
def test_a_main_thread_that_works_beside_one_that_trains_stays_the_one_that_is_recorded(
    tmp_path: Path, prepare: str
) -> None:
    (tmp_path / "target.py").write_text(BOTH)
    code = f"{prepare}\nfrom moescope.profiler.commands.main import main\nmain()"
    command = [sys.executable, "-c", code, "run", "-o", "rec", "--", sys.executable, "target.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert sum(k["name"] == "aten::cos" for k in rows(tmp_path / "rec", "kernels")) > 20
    assert not [row for row in rows(tmp_path / "rec", "log") if row["level"] == "error"]


class _Ring:
    """As much of the ring as a window touches."""

    def __init__(self) -> None:
        self.windows: list[tuple[int, int]] = []
        self.graphs_told = 0

    def record(self, kind: int, name: str, start_ns: int, dur_ns: int) -> None:
        self.windows.append((start_ns, dur_ns))

    def operators(self) -> int:
        return 0

    def thread_operators(self) -> int:
        return 0

    def overhead(self, ns: int) -> None: ...

    def unsettle(self) -> None: ...

    def window(self, on: int) -> None:
        self.graphs_told += on


class _Profiler:
    name = "stand-in"
    takes_s = 0.0

    def open(self) -> None:
        time.sleep(self.takes_s)

    def close(self) -> None: ...


class _Program:
    """A session whose main thread is inside a backward pass, or not."""

    def __init__(self) -> None:
        self.passes = -1
        self.ring = _Ring()
        self.settings = SimpleNamespace(budget=0.02, steps=None, ring_dir="")
        self.torch = SimpleNamespace(
            _C=SimpleNamespace(_current_graph_task_id=lambda: self.passes),
            utils=SimpleNamespace(data=SimpleNamespace(get_worker_info=lambda: None)),
        )
        self.keeper = WindowKeeper(self)  # type: ignore[arg-type]
        self.recorder = SimpleNamespace(events_cost_ns=0, log=lambda *_: None)
        self.keeper._window.source = self.profiler = _Profiler()

    def slice(self, lasts_s: float, *, late: bool = False) -> threading.Thread:
        timer = threading.Thread(target=self.keeper._slice, args=(lasts_s,), kwargs={"late": late})
        timer.start()
        return timer

    def leave_pass(self) -> None:
        self.passes = -1
        self.keeper.settle_owed()


@pytest.mark.parametrize(("itt", "told"), [(True, 0), (False, 1)])
def test_an_empty_window_tells_what_windows_cost_where_it_has_a_price(
    monkeypatch: pytest.MonkeyPatch, itt: bool, told: int
) -> None:
    costs: list[int] = []
    monkeypatch.setattr("moescope.collectors.agent.window.IttSource", _Profiler if itt else IttSource)
    program = _Program()
    monkeypatch.setattr(program.keeper._window, "_closed", lambda cost, lasted: costs.append(cost))
    program.keeper._open()
    program.keeper._close()
    assert len(program.ring.windows) == 1
    assert (len(costs), program.keeper._window.empty) == (told, 1 - told)


def _busy(seconds: float) -> None:
    """The main thread answers between any two lines of Python."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


def test_a_slice_that_ends_inside_a_backward_pass_is_left_out() -> None:
    """Opened late it would show what comes after such passes instead of what takes the time."""
    program = _Program()
    program.passes = 7
    timer = program.slice(0.03)
    _busy(0.1)
    timer.join(5)
    program.leave_pass()
    _busy(0.05)
    assert not timer.is_alive()
    assert not program.ring.windows


def test_a_slice_that_outlasts_the_pass_is_the_rest_of_it() -> None:
    program = _Program()
    program.passes = 7
    begin = time.monotonic_ns()
    timer = program.slice(2.0)
    _busy(0.1)
    program.leave_pass()
    _busy(2.2)
    timer.join(5)
    ((start, lasted),) = program.ring.windows
    assert start > begin + 100_000_000
    assert lasted < 2_000_000_000


def test_a_slice_stays_open_to_the_end_of_a_pass() -> None:
    program = _Program()
    timer = program.slice(0.05)
    while not program.keeper._window.since:
        _busy(0.001)
    program.passes = 7
    _busy(0.3)
    assert not program.ring.windows
    program.leave_pass()
    timer.join(5)
    ((_, lasted),) = program.ring.windows
    assert lasted > 250_000_000


def test_one_that_may_be_late_opens_when_the_pass_has_ended() -> None:
    program = _Program()
    program.passes = 7
    timer = program.slice(0.03, late=True)
    _busy(0.1)
    program.leave_pass()
    while timer.is_alive():
        _busy(0.01)
    assert len(program.ring.windows) == 1


def test_a_slice_that_opens_in_the_last_moment_is_closed_at_once() -> None:
    program = _Program()
    program.profiler.takes_s = 0.1
    program.passes = 7
    timer = program.slice(0.05)
    _busy(0.02)
    program.leave_pass()
    while timer.is_alive():
        _busy(0.01)
    assert program.keeper._window.since == 0
    assert len(program.ring.windows) == 1


def test_what_python_kept_the_timer_waiting_for_is_no_part_of_a_slice() -> None:
    program = _Program()
    for late_ns in (0, 5_000_000):
        program.keeper._open()
        _busy(0.03)
        program.keeper._close_slice(late_ns)
    (_, whole), (_, cut) = program.ring.windows
    assert whole >= 30_000_000
    assert 25_000_000 <= cut < whole


def test_graphs_are_told_by_a_source_that_tells_ranges_alone() -> None:
    program = _Program()
    program.keeper._open()
    program.keeper._close()
    assert len(program.ring.windows) == 1
    assert program.ring.graphs_told == 0


def test_a_window_of_steps_ends_with_the_first_that_begins_late_enough() -> None:
    program = _Program()
    for number in range(4):
        program.keeper._at_boundary(number)
        _busy(0.001)
    program.keeper._steps.pick(1.0)
    for number in range(4, 64):
        program.keeper._at_boundary(number)
        _busy(0.001)
    windows = program.ring.windows
    assert len(windows) >= 3
    assert all(lasted >= LEAST_NS for _, lasted in windows)
    # Steps become long while a window is open: it ends with the one that runs.
    number = 64
    while not program.keeper._window.since:
        program.keeper._at_boundary(number)
        number += 1
    known = len(windows)
    assert program.keeper._window.since
    _busy(0.05)
    program.keeper._at_boundary(number)
    assert len(windows) == known + 1
    assert program.recorder.events_cost_ns > 0


# What runs a graph of torch.compile's, without a compiler: two operators with loops of its own around them.
GRAPHS = """
import time, torch
import torch._inductor.debug
from torch._inductor.output_code import CompiledFxGraph
a = torch.randn(256, 256)
def loop(seconds):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass
def code(inputs):
    loop(0.003)
    b = inputs[0] @ inputs[0]
    loop(0.002)
    return b @ b
graph = object.__new__(CompiledFxGraph)
graph.current_callable, graph._compile_context, graph.compiled_fn_runner = code, None, None
graph._fx_graph_cache_key = "fabcdefghijklmnop"
until = time.monotonic() + 2
while time.monotonic() < until:
    graph([a])
    time.sleep(0.01)
"""


def test_what_a_compiled_graph_does_between_its_operators_is_recorded(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(GRAPHS)
    done = moescope("run", "-o", "rec", "--budget", "full", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    kernels = rows(tmp_path / "rec", "kernels")
    loops = [row for row in kernels if row["name"] == "compiled graph fabcdefghi"]
    products = [row for row in kernels if row["name"] == "aten::mm"]
    assert {row["evidence"] for row in loops} == {"derived"}
    assert {row["evidence"] for row in products} == {"measured"}
    # Two long ones of each run of the graph, from the first window on that knows of graphs.
    long = sorted(row["dur_ns"] for row in loops if row["dur_ns"] > 1_000_000)
    since = min(row["start_ns"] for row in loops)
    beside = [row for row in products if row["start_ns"] > since]
    assert len(beside) > 50
    assert abs(len(long) / len(beside) - 1) < 0.05
    assert long[0] > 1_900_000
    assert long[-1] > 2_900_000
    ends = sorted((row["start_ns"], row["start_ns"] + row["dur_ns"]) for row in loops + products)
    assert all(b[0] >= a[1] for a, b in pairwise(ends))


def test_steps_are_those_of_the_thread_that_makes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that comes later has them once the first has made none for long."""
    program = _Program()
    keeper = program.keeper
    keeper._window.tells_ranges = True
    assert keeper._makes_steps(0)
    other: list[bool] = []
    monkeypatch.setattr(windows, "WORKED_S", 0.0)
    for rests_ns in (0, RESTS_NS):
        keeper._steps._began -= rests_ns
        thread = threading.Thread(target=lambda: other.append(keeper._makes_steps(0)))
        thread.start()
        thread.join()
    assert other == [False, True]
    assert not keeper._steps_beside()  # that thread has ended
    assert not keeper._makes_steps(1)
    keeper._steps._began -= RESTS_NS
    assert keeper._makes_steps(2)


def test_no_thread_opens_a_window_that_another_is_about_to_open() -> None:
    """Else the first one's profiler would be nobody's, and stay on."""
    program = _Program()
    window, opened = program.keeper._window, []

    def switch(source: object) -> None:
        opened.append("first")
        other = threading.Thread(target=lambda: window.open(lambda source: opened.append("other")))
        other.start()
        other.join()

    window.open(switch)
    assert opened == ["first"]
    assert window.here()


def test_steps_beside_a_main_thread_that_works_are_left_alone() -> None:
    program = _Program()
    made: list[bool] = []
    keeper = program.keeper
    keeper._window.tells_ranges = True

    def steps() -> None:
        for worked_ago_s in (9.0, 0.1, 9.0):
            keeper._window.main_worked = time.monotonic() - worked_ago_s
            made.append(keeper._makes_steps(0))
            keeper._claims = threading.current_thread(), time.monotonic() - 9.0

    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    assert made == [False, False, True]  # at first it is not known whether the main one works


def test_a_window_of_the_main_thread_ends_where_another_makes_the_steps() -> None:
    program = _Program()
    closed: list[str] = []
    program.profiler.close = lambda: closed.append(threading.current_thread().name)  # type: ignore[method-assign]
    program.keeper._open()

    def steps() -> None:
        program.keeper._steps.pick(1.0)
        program.keeper._at_boundary(0)
        program.keeper._close()

    thread = threading.Thread(target=steps)
    thread.start()
    thread.join()
    assert len(program.ring.windows) == 1
    _busy(0.05)  # the main thread answers, and sees to its own profiler
    assert closed == ["MainThread"]
