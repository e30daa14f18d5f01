"""Segments of a recording: only the newest are kept where that was asked for, numbers never come twice."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from moescope.collectors.sidecar.writer import RecordingWriter
from moescope.profiler.source import open_source
from tests.collectors.breaking import broken
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The writer's clock, s, in a list of one."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    return now


def step(number: int) -> dict[str, object]:
    return {"rank": 0, "step": number, "source": "emit", "start_ns": number * 10**9, "dur_ns": 10**9}


@pytest.mark.parametrize("keep_s", [8.0, 40.0, 100.0])
def test_the_last_part_is_kept_whole_and_little_more(tmp_path: Path, clock: list[float], keep_s: float) -> None:
    writer = RecordingWriter(tmp_path, keep_s)
    for number in range(300):
        clock[0] = 1000.0 + number
        writer.write_rows("rank-00000", "steps", [step(number)])
    writer.close()
    kept = [row["step"] for row in rows(tmp_path, "steps")]
    assert kept == list(range(kept[0], 300))
    assert 300 - keep_s - keep_s / 4 - 4 <= kept[0] <= 300 - keep_s


def test_what_was_done_last_before_a_hang_is_kept(tmp_path: Path, clock: list[float]) -> None:
    writer = RecordingWriter(tmp_path, 8.0)
    for number in range(300):
        clock[0] += 1
        if number < 50:
            writer.write_rows("rank-00000", "steps", [step(number)])
        writer.write_rows("rank-00000", "device_samples", [{"rank": 0, "t_ns": number * 10**9}])
    writer.close()
    assert {row["step"] for row in rows(tmp_path, "steps")} >= set(range(42, 50))
    assert min(row["t_ns"] for row in rows(tmp_path, "device_samples")) > 280 * 10**9


def test_what_a_rank_has_done_before_it_does_something_else_goes(tmp_path: Path, clock: list[float]) -> None:
    writer = RecordingWriter(tmp_path, 8.0)
    for number in range(300):
        clock[0] += 1
        if number < 50:
            writer.write_rows("rank-00000", "steps", [step(number)])
        writer.write_rows("rank-00000", "kernels", [{"rank": 0, "start_ns": number * 10**9, "dur_ns": 1}])
    writer.close()
    assert not rows(tmp_path, "steps")[:-2]
    assert min(row["start_ns"] for row in rows(tmp_path, "kernels")) > 280 * 10**9


def test_what_comes_home_long_after_the_end_takes_the_place_of_nothing(tmp_path: Path, clock: list[float]) -> None:
    writer = RecordingWriter(tmp_path, 8.0)
    for number in range(50):
        clock[0] += 1
        writer.write_rows("rank-00000", "steps", [step(number)])
    writer.keep_all()
    clock[0] += 100
    writer.write_rows("rank-00000", "steps", [step(50)])
    writer.close()
    assert {row["step"] for row in rows(tmp_path, "steps")} >= set(range(42, 51))


def test_everything_is_kept_where_nothing_was_said(tmp_path: Path, clock: list[float]) -> None:
    writer = RecordingWriter(tmp_path)
    for number in range(300):
        clock[0] += 3600
        writer.write_rows("rank-00000", "steps", [step(number)])
    writer.close()
    assert [row["step"] for row in rows(tmp_path, "steps")] == list(range(300))


def test_a_folder_that_was_made_anew_is_told_once(tmp_path: Path) -> None:
    root = tmp_path / "rec"
    root.mkdir()
    writer = RecordingWriter(root)
    writer.write_meta({})
    assert not writer.vanished()
    root.rename(tmp_path / "away")
    writer.write_rows("rank-00000", "steps", [step(0)])
    assert writer.vanished()
    assert not writer.vanished()
    writer.close()


def test_a_later_writer_numbers_its_segments_after_those_that_are_left(tmp_path: Path, clock: list[float]) -> None:
    first = RecordingWriter(tmp_path, 8.0)
    for number in range(50):
        clock[0] += 1
        first.write_rows("rank-00000", "steps", [step(number)])
    first.close()
    before = {path.name for path in tmp_path.glob("*/steps-*")}
    assert "steps-000000.arrows" not in before
    second = RecordingWriter(tmp_path)
    second.write_rows("rank-00000", "steps", [step(50)])
    second.close()
    (new,) = {path.name for path in tmp_path.glob("*/steps-*")} - before
    assert new > max(before)


RUN = """
import time, torch
from moescope.collectors import emit
until, i = time.monotonic() + 4.0, 0
while time.monotonic() < until:
    with emit.step(i), emit.phase("mlp(F)", layer=0):
        torch.ones(64).neg()
        time.sleep(0.005)
    i += 1
print(i)
"""


def test_a_run_that_keeps_its_last_second_can_be_read_and_ends_at_its_end(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(RUN)
    done = moescope("run", "--budget", "full", "--keep", "1s", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    count = int(done.stdout)
    recording = tmp_path / "rec"
    assert meta(recording)["keep_ns"] == 1_000_000_000
    steps = sorted(row["step"] for row in rows(recording, "steps"))
    assert steps == list(range(steps[0], count))
    assert steps[0] > 0
    source = open_source([recording])
    assert source.state == "finished"
    assert source.table("steps").num_rows == len(steps)
    assert moescope("summary", "rec", "--json").returncode == 0


def test_without_perf_events_cores_come_from_schedstat_as_derived(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(RUN.replace("4.0", "2.5"))
    patch = "import moescope.collectors.samplers.perf_event as m\nm._SYSCALL = dict.fromkeys(m._SYSCALL, 9999)"
    env = broken(tmp_path, patch)
    done = moescope("run", "--budget", "full", "-o", "rec", "--", sys.executable, "target.py", env=env)
    assert done.returncode == 0, done.stderr
    recording = tmp_path / "rec"
    assert "schedstat" in meta(recording)["collectors"]["units"]
    assert {row["evidence"] for row in rows(recording, "unit_intervals")} == {"derived"}
    assert any("perf_event_paranoid" in row["message"] for row in rows(recording, "log") if row["source"] == "units")
