"""Recordings that ship: whoever has nothing to run, and no PyTorch, can look at one; what is damaged is told."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from benchmarks import gpu_check
from moescope.profiler.errors import MoescopeError
from moescope.profiler.recorded import archive
from moescope.profiler.recorded.archive import LIMIT_BYTES, chosen, pack, shipped, unpack
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise

# A process in which importing these fails, as on a machine that has only what its model needs, or not even that.
LACKING = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "triton", "textual", "msgspec", "pandas"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Blocked())
from moescope.profiler.commands.main import main
sys.argv[0] = "moescope"
main()
"""


def without_torch(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return without(folder, "demo", *arguments)


def without(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LACKING, *arguments]
    return subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)


def test_a_recording_ships_and_is_shown_without_pytorch(tmp_path: Path) -> None:
    done = without_torch(tmp_path, "--recorded", "-o", "rec")
    assert done.returncode == 0, done.stderr
    assert "recorded on" in done.stderr
    assert "moescope top rec" in done.stdout
    assert (tmp_path / "rec/csv/kernels.csv").stat().st_size > 10_000
    again = without_torch(tmp_path, "--recorded", "-o", "rec")
    assert (again.returncode, "not empty" in again.stderr) == (2, True)


def test_a_trace_says_what_it_is_read_with_where_that_is_missing(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text('{"traceEvents": []}')
    done = without(tmp_path, "summary", "trace.json")
    assert (done.returncode, done.stdout) == (1, "")
    assert "trace.json: PyTorch traces are read with msgspec: pip install msgspec" in done.stderr


def test_the_demo_says_what_it_needs_before_it_records_anything(tmp_path: Path) -> None:
    done = without_torch(tmp_path)
    assert done.returncode == 2
    assert "moescope[model]" in done.stderr
    assert "moescope demo --recorded" in done.stderr
    assert not list(tmp_path.iterdir())


def test_names_are_listed_and_unknown_ones_refused(tmp_path: Path) -> None:
    listed = without_torch(tmp_path, "--recorded", "list")
    assert listed.returncode == 0
    assert all(one.name in listed.stdout and one.about in listed.stdout for one in shipped())
    unknown = without_torch(tmp_path, "--recorded", "nothing")
    assert unknown.returncode == 2
    assert shipped()[0].name in unknown.stderr
    conflict = without_torch(tmp_path, "--recorded", "--ranks", "3")
    assert (conflict.returncode, "--ranks" in conflict.stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_gpu_check_keeps_a_recording_that_can_ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = gpu_check.Outcome()
    monkeypatch.setattr(gpu_check, "RECORDED_STEPS", (3,))
    really, once = gpu_check._ran, tmp_path / "once"

    def ran(part: str, command: list[str], limit_s: float, told: gpu_check.Outcome) -> None:
        folder = Path(command[command.index("-o") + 1])
        if not once.exists():
            really(part, command, limit_s, told)
            shutil.copytree(folder, once)
        else:
            shutil.copytree(once, folder)

    monkeypatch.setattr(gpu_check, "_ran", ran)
    gpu_check.recorded(tmp_path / "gpu-none.zip", "cpu", 120, outcome)
    assert not outcome.failures
    (one,) = shipped(tmp_path)
    assert (one.name, one.devices) == ("gpu-none", ("cpu",))
    assert "3 training steps" in one.about
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1000)
    gpu_check.recorded(tmp_path / "large.zip", "cpu", 120, outcome)
    assert "record fewer steps" in outcome.failures["recording"]
    assert not (tmp_path / "large.zip").exists()


@pytest.mark.parametrize(
    ("ranks", "devices"),
    [
        ([], ("cpu",)),
        ([{"device": "cpu", "device_properties": {}}], ("cpu",)),
        ([{"device": "cuda:0", "device_properties": {"cuda:0": {"name": "NVIDIA H200"}}}] * 2, ("NVIDIA H200",)),
        ([{"device": "cuda:1", "device_properties": None}], ("cuda:1",)),
        ([{"device": "cuda:0", "device_properties": {"cuda:0": {}}}], ("cuda:0",)),
    ],
)
def test_a_recording_tells_which_devices_it_is_of(
    ranks: list[dict[str, object]], devices: tuple[str, ...], tmp_path: Path
) -> None:
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as packed:
        packed.writestr("meta.json", json.dumps({"state": "finished", "ranks": ranks}))
    assert shipped(tmp_path)[0].devices == devices
    assert chosen("", tmp_path).name == "one"


@pytest.mark.parametrize("one", shipped(), ids=lambda one: one.name)
def test_what_ships_is_small_told_of_and_answers(one: archive.Recorded, tmp_path: Path) -> None:
    assert one.path.stat().st_size <= LIMIT_BYTES
    assert one.about
    unpack(one.path, tmp_path / "rec")
    answer = summarise(open_source([tmp_path / "rec"]))
    assert answer["ranks"]
    assert answer["total"]["exposed_comm_us"] > 0
    assert pack(tmp_path / "rec", tmp_path / "again.zip") == one.path.stat().st_size
    assert (tmp_path / "again.zip").read_bytes() == one.path.read_bytes()


def test_what_is_too_large_or_unfinished_is_not_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unpack(chosen("").path, tmp_path / "rec")
    monkeypatch.setattr(archive, "LIMIT_BYTES", 1000)
    with pytest.raises(MoescopeError, match="record fewer steps"):
        pack(tmp_path / "rec", tmp_path / "small.zip")
    assert not (tmp_path / "small.zip").exists()
    (tmp_path / "rec/meta.json").write_text(json.dumps({"state": "live"}))
    with pytest.raises(MoescopeError, match="not finished"):
        pack(tmp_path / "rec", tmp_path / "live.zip")
    with pytest.raises(MoescopeError, match="no recording"):
        pack(tmp_path / "missing", tmp_path / "missing.zip")


@pytest.mark.parametrize(
    "name", ["../out.arrows", "/out.arrows", "rank-00000/../../out.arrows", "a/b/c.arrows", "run.sh", "a\\b.arrows"]
)
def test_nothing_is_written_that_is_no_part_of_a_recording(name: str, tmp_path: Path) -> None:
    path = tmp_path / "evil.zip"
    with zipfile.ZipFile(path, "w") as opened:
        opened.writestr("meta.json", "{}")
        opened.writestr(name, b"x")
    with pytest.raises(MoescopeError, match="no part of a recording"):
        unpack(path, tmp_path / "in/rec")
    assert list(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99, 0.995, 0.998, 0.999])
@pytest.mark.parametrize("cut", [True, False])
def test_a_damaged_archive_is_told(cut: bool, share: float, tmp_path: Path) -> None:
    data = chosen("").path.read_bytes()
    at = int(share * len(data))
    path = tmp_path / "damaged.zip"
    path.write_bytes(data[:at] if cut else data[:at] + bytes(b ^ 0xFF for b in data[at : at + 200]) + data[at + 200 :])
    with pytest.raises(MoescopeError, match=r"damaged|no part of"):
        unpack(path, tmp_path / "rec")
    assert list(tmp_path.iterdir()) == [path]
