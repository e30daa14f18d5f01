"""Opening a recording whose recorder was killed shows all that its ranks had recorded, and says so."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

Start = Callable[..., subprocess.Popen[str]]

# A second of work; what was acknowledged on stdout was recorded before. Two lines from us let it go on, then end.
TARGET = """
import os, sys, time, torch
from moescope.collectors import emit
def work(first, count):
    for i in range(first, first + count):
        with emit.step(i), emit.phase("mlp(F)", layer=0):
            torch.mm(torch.ones(64, 64), torch.ones(64, 64))
            emit.work(flops=1000, bytes=100, dtype="bf16")
            time.sleep(0.002)
work(0, 300)
print("worked", flush=True)
sys.stdin.readline()
work(300, 50)
print("more", flush=True)
sys.stdin.readline()
work(350, 50)
print("end", flush=True)
"""


@pytest.fixture
def orphaned(start_moescope: Start, tmp_path: Path) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """A recording whose recorder was killed with 50 steps still in the ring; its target waits for a line."""
    target = tmp_path / "target.py"
    target.write_text(TARGET)
    process = start_moescope(
        "run", "-o", "rec", "--budget", "full", "--", sys.executable, target, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "worked\n"
    stored(tmp_path / "rec")
    os.kill(process.pid, signal.SIGSTOP)  # nothing is drained from here on
    tell(process)
    assert process.stdout.readline() == "more\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    yield tmp_path / "rec", process
    tell(process)
    process.stdout.read()


def stored(recording: Path) -> None:
    """Waits until the recorder has taken in kernels: a process that names no rank is given one after a while."""
    until = time.monotonic() + 30
    while not rows(recording, "kernels"):
        assert time.monotonic() < until, "nothing is recorded"
        if (recording / "meta.json").exists():
            meta(recording)  # while somebody looks, it takes in more often
        time.sleep(0.05)


def tell(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
    except BrokenPipeError:
        pass  # it has ended already


def end(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    tell(process)
    assert process.stdout.read() == "end\n", "the target was harmed"


def steps(recording: Path) -> list[int]:
    return sorted(row["step"] for row in rows(recording, "steps"))


def test_a_summary_after_the_end_shows_every_step_and_says_torn(
    orphaned: tuple[Path, subprocess.Popen[str]], moescope: Moescope
) -> None:
    recording, process = orphaned
    end(process)
    ring_dir = Path(meta(recording)["ring_dir"])
    assert len(steps(recording)) < 350
    done = moescope("summary", recording, "--json")
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["state"] == "torn"
    assert any(line["source"] == "recovery" for line in answer["log"]["lines"])
    assert "brought home" in done.stderr
    assert steps(recording) == list(range(400))
    assert len(rows(recording, "work")) == 400
    assert not ring_dir.exists()


def test_opening_again_changes_nothing(orphaned: tuple[Path, subprocess.Popen[str]], moescope: Moescope) -> None:
    recording, process = orphaned
    end(process)
    first = moescope("summary", recording, "--json")
    files = {path: path.read_bytes() for path in recording.rglob("*") if path.is_file()}
    second = moescope("summary", recording, "--json")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert {path: path.read_bytes() for path in recording.rglob("*") if path.is_file()} == files


def test_what_a_living_rank_records_later_is_brought_home_later(
    orphaned: tuple[Path, subprocess.Popen[str]], moescope: Moescope
) -> None:
    recording, process = orphaned
    early = moescope("summary", recording, "--json")
    assert json.loads(early.stdout)["state"] == "torn"
    assert "still run" in early.stderr
    assert steps(recording)[:350] == list(range(350))
    again = moescope("summary", recording, "--json")
    assert "brought home" not in again.stderr
    end(process)
    moescope("summary", recording, "--json")
    assert steps(recording) == list(range(400))
    assert [rank["state"] for rank in meta(recording)["ranks"]] == ["ended"]


def test_a_folder_that_cannot_be_written_is_read_as_it_is_and_it_is_said(
    orphaned: tuple[Path, subprocess.Popen[str]], moescope: Moescope
) -> None:
    recording, process = orphaned
    end(process)
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        recording.chmod(0o500)
        for part in recording.iterdir():
            part.chmod(0o500 if part.is_dir() else 0o400)
        if os.access(recording, os.W_OK):
            pytest.skip("the folder stays writable for this user, and it may not mount one read-only")
        done = moescope("summary", recording, "--json")
        recording.chmod(0o700)
    else:
        read_only = f"mount --bind {recording} {recording} && mount -o remount,bind,ro {recording}"
        command = f"{read_only} && {sys.executable} -m moescope summary {recording} --json"
        done = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=60)
        if "ermitted" in done.stderr or "denied" in done.stderr:
            pytest.skip(f"may not mount here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert "could not be brought home" in done.stderr
    assert json.loads(done.stdout)["state"] == "torn"
    assert meta(recording)["state"] == "live"
    assert moescope("summary", recording).returncode == 0
    assert steps(recording) == list(range(400)), "the rings were harmed by the attempt"


def test_a_living_recorder_is_left_alone(start_moescope: Start, moescope: Moescope, tmp_path: Path) -> None:
    target = tmp_path / "target.py"
    target.write_text(TARGET)
    process = start_moescope(
        "run", "-o", "rec", "--budget", "full", "--", sys.executable, target, stdin=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "worked\n"
    stored(tmp_path / "rec")
    done = moescope("summary", tmp_path / "rec", "--json")
    assert json.loads(done.stdout)["state"] == "live"
    assert "brought home" not in done.stderr
    tell(process)
    tell(process)
    assert process.wait(60) == 0
    assert steps(tmp_path / "rec") == list(range(400))
    assert (meta(tmp_path / "rec")["state"], meta(tmp_path / "rec").get("recovered")) == ("finished", None)


def test_rings_that_are_gone_are_missed_aloud(orphaned: tuple[Path, subprocess.Popen[str]], moescope: Moescope) -> None:
    recording, process = orphaned
    end(process)
    shutil.rmtree(meta(recording)["ring_dir"])
    done = moescope("summary", recording, "--json")
    assert done.returncode == 0
    assert "the rings are gone" in done.stderr
    assert any("the rings are gone" in line["message"] for line in json.loads(done.stdout)["log"]["lines"])
