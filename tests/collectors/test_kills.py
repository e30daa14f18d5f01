"""SIGKILL at random moments: of a rank, the launcher, moescope. What was recorded is kept, the target unharmed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from moescope.collectors.recovery import recover
from tests.collectors.reading import meta, rows

# Each step is acknowledged on stdout only after it was recorded: what was acknowledged must be found again.
TARGET = """
import os, sys, time, torch
from moescope.collectors import emit
print(os.getpid(), flush=True)
until = time.monotonic() + float(sys.argv[1])
i = 0
while time.monotonic() < until:
    with emit.step(i):
        for _ in range(20):
            torch.ones(64).neg()
    print(i, flush=True)
    i += 1
    time.sleep(0.001)
print("end", flush=True)
"""

Start = Callable[..., subprocess.Popen[str]]
VICTIMS = ("rank", "launcher", "moescope")


def trial(start: Start, folder: Path, victim: str, delay_s: float) -> None:
    target = folder / "target.py"
    target.write_text(TARGET)
    # The rank outlives its launcher by less than the two seconds that moescope waits for it.
    seconds = {"rank": 30.0, "launcher": 1.8, "moescope": 3.0}[victim]
    # The shell stands for a launcher: it stays the parent of the rank.
    launcher = f"echo $$; {sys.executable} {target} {seconds}; exit $?"
    process = start("run", "-o", "rec", "--", "sh", "-c", launcher, cwd=folder)
    assert process.stdout is not None
    shell, rank = int(process.stdout.readline()), int(process.stdout.readline())
    time.sleep(delay_s)
    os.kill({"rank": rank, "launcher": shell, "moescope": process.pid}[victim], signal.SIGKILL)
    lines = process.stdout.read().splitlines()
    process.wait(60)
    acknowledged = [int(line) for line in lines if line.isdigit()]
    recording = folder / "rec"
    if victim == "moescope":
        assert lines[-1] == "end", "the target was harmed"
        assert recover(recording) is not None
    else:
        assert process.returncode == 137
    steps = [row["step"] for row in rows(recording, "steps")]
    assert len(steps) == len(set(steps)), "rows came twice"
    assert set(acknowledged) <= set(steps), f"lost {sorted(set(acknowledged) - set(steps))[:5]} of {len(acknowledged)}"
    assert meta(recording)["state"] == "finished"
    assert meta(recording)["dropped_events"] == 0


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_recorded_is_lost_by_a_kill(start_moescope: Start, tmp_path: Path, victim: str) -> None:
    trial(start_moescope, tmp_path, victim, 0.7)


def test_a_rank_that_has_only_begun_is_waited_for(start_moescope: Start, tmp_path: Path) -> None:
    trial(start_moescope, tmp_path, "launcher", 0.0)


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_recorded_is_lost_by_a_kill_at_any_moment(start_moescope: Start, tmp_path: Path, victim: str) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for i in range(20):
        folder = tmp_path / str(i)
        folder.mkdir()
        trial(start_moescope, folder, victim, moments.uniform(0.0, 1.5))
