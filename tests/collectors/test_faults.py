"""Whatever breaks on our side, the target's output, exit code and result are its own, and what is missing is said."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.collectors.breaking import broken
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

# Half a second of real work; its result, stdout, stderr and exit code must be the same with moescope and without.
TARGET = """
import sys, time
{first}
import torch
from moescope.collectors import emit
print("begin", flush=True)
{middle}
until, i, total = time.monotonic() + {seconds}, 0, 0.0
while i < 40 or (i < {at_most} and time.monotonic() < until):
    with emit.step(i), emit.phase("mlp(F)", layer=0):
        product = torch.mm(torch.full((64, 64), 0.5), torch.ones(64, 64))
        emit.work(flops=2 * 64**3, bytes=100, dtype="f32")
        if i < 40:
            total += float(product.sum())
    i += 1
print("result", total)
print("complaint", file=sys.stderr)
sys.exit(5)
"""
EXPECTED = "begin\nresult 5242880.0\n"


def target(folder: Path, first: str = "", middle: str = "", seconds: float = 0.5, at_most: int = 1 << 30) -> Path:
    path = folder / "target.py"
    path.write_text(TARGET.format(first=first, middle=middle, seconds=seconds, at_most=at_most))
    return path


def unharmed(done: subprocess.CompletedProcess[str]) -> bool:
    return (done.returncode, done.stdout) == (5, EXPECTED) and "complaint\n" in done.stderr


def said(recording: Path) -> str:
    return "\n".join(row["message"] for row in rows(recording, "log"))


def test_the_target_alone(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, target(tmp_path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (5, EXPECTED, "complaint\n")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small file system of memory; skips where that is not allowed."""
    made: list[Path] = []

    def mount(options: str) -> Path:
        folder = tmp_path / "mounted"
        folder.mkdir(exist_ok=True)
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        if os.geteuid() != 0 or shutil.which("mount") is None:
            pytest.skip("only root may mount a small file system")
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"may not mount here: {done.stderr.strip()}")
        if folder not in made:
            made.append(folder)
        return folder

    yield mount
    for folder in made:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_costs_no_event_once_there_is_room_again(
    mounted: Callable[[str], Path], moescope: Moescope, tmp_path: Path
) -> None:
    disk = mounted("size=300k")
    # Far more than the disk takes, and less than a ring holds: of a full ring the newest events are dropped.
    script = target(tmp_path, seconds=3, at_most=20_000)
    done = moescope("run", "--budget", "full", "-o", disk / "rec", "--", sys.executable, script)
    assert unharmed(done), done.stderr
    assert "No space left on device" in done.stderr
    assert "make room" in done.stderr
    full = moescope("summary", disk / "rec")
    assert full.returncode in (0, 3)
    assert "No space left on device" in full.stdout + full.stderr
    subprocess.run(["mount", "-o", "remount,size=200m", str(disk)], check=True)
    whole = moescope("summary", disk / "rec", "--json")
    assert whole.returncode == 0, whole.stderr
    answer = json.loads(whole.stdout)
    assert (answer["state"], answer["torn"]) == ("torn", [])
    # Whether its last words had room decides which of the two is known.
    reasons = ("could not store everything", "could not write any more")
    assert any(reason in line["message"] for line in answer["log"]["lines"] for reason in reasons), answer["log"]
    steps = [row["step"] for row in rows(disk / "rec", "steps")]
    assert sorted(steps) == list(range(len(steps))), "steps are missing or came twice"
    assert len(rows(disk / "rec", "work")) == len(steps)
    assert not Path(meta(disk / "rec")["ring_dir"]).exists()


def test_a_disk_that_is_full_from_the_start_costs_the_place(
    mounted: Callable[[str], Path], moescope: Moescope, tmp_path: Path
) -> None:
    disk = mounted("size=32k")
    done = moescope("run", "-o", disk / "rec", "--", sys.executable, target(tmp_path))
    assert unharmed(done), done.stderr
    assert "No space left on device" in done.stderr
    elsewhere = Path(done.stderr.partition("recording into ")[2].splitlines()[0])
    assert "cannot record into" in said(elsewhere)
    shutil.rmtree(elsewhere)


@pytest.mark.parametrize("limited", ["the recorder", "both"])
def test_a_limit_on_file_sizes_is_told_and_survived(moescope: Moescope, tmp_path: Path, limited: str) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))

    lift = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (-1, -1))" if limited == "the recorder" else ""
    script = target(tmp_path, first=lift, seconds=2.5)
    done = moescope("run", "--budget", "full", "-o", "rec", "--", sys.executable, script, preexec_fn=limit)
    assert unharmed(done), done.stderr
    assert any(reason in done.stderr for reason in ("File too large", "no room"))
    shown = moescope("summary", "rec", "--json")
    assert shown.returncode in (0, 3), shown.stderr
    steps = [row["step"] for row in rows(tmp_path / "rec", "steps")]
    assert sorted(steps) == list(range(len(steps)))
    assert steps
    if limited == "the recorder":
        assert json.loads(shown.stdout)["state"] == "torn"


@pytest.mark.parametrize("obstacle", ["read-only", "file"])
def test_a_folder_that_cannot_be_written_costs_the_place(
    request: pytest.FixtureRequest, moescope: Moescope, tmp_path: Path, obstacle: str
) -> None:
    if obstacle == "read-only":
        place = request.getfixturevalue("mounted")("size=1m,ro")
    else:
        place = tmp_path / "a file"
        place.touch()
    done = moescope("run", "-o", place / "rec", "--", sys.executable, target(tmp_path))
    assert unharmed(done), done.stderr
    elsewhere = Path(done.stderr.partition("recording into ")[2].splitlines()[0])
    assert "cannot record into" in said(elsewhere)
    assert moescope("summary", elsewhere, "--json").returncode == 0
    shutil.rmtree(elsewhere)


def test_nowhere_to_write_at_all_costs_the_recording(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    patch = (
        "import moescope.collectors.sidecar.run as m\ndef no(*a, **k): raise PermissionError(13, 'Permission denied')\n"
    )
    env = broken(tmp_path, patch + "m.tempfile.mkdtemp = no\n")
    done = moescope("run", "-o", "file/rec", "--", sys.executable, target(tmp_path), env=env)
    assert unharmed(done), done.stderr
    assert "not recording" in done.stderr
    assert "Permission denied" in done.stderr


def test_a_recording_removed_during_the_run_is_told(moescope: Moescope, tmp_path: Path) -> None:
    # The target itself removes it, once there is something to remove, and goes on for more than a second.
    recording = tmp_path / "rec"
    middle = f"""
import glob, shutil
while not glob.glob({str(recording)!r} + "/host-*/link_samples*"):
    time.sleep(0.02)
shutil.rmtree({str(recording)!r})
"""
    done = moescope("run", "-o", "rec", "--", sys.executable, target(tmp_path, middle=middle, seconds=2.5))
    assert unharmed(done), done.stderr
    assert "removed during the run" in done.stderr
    assert "removed during the run" in said(recording)
    answer = json.loads(moescope("summary", "rec", "--json").stdout)
    assert any("removed during the run" in line["message"] for line in answer["log"]["lines"])


RAISE = "def no(*a, **k): raise RuntimeError('broken on purpose')\n"
LINKS = "import moescope.collectors.samplers.links as m\n"
BREAKAGES: dict[str, tuple[str, str]] = {
    "a sampler cannot be opened": (f"{LINKS}{RAISE}m.LinkSampler.open = no", "links"),
    "a sampler cannot be attached": (f"{LINKS}{RAISE}m.LinkSampler.attach = no", "links"),
    "a sampler raises": (f"{LINKS}{RAISE}m.LinkSampler.poll = no", "links"),
    "a sampler gives nonsense": (
        f"{LINKS}m.LinkSampler.poll = lambda self: [('link_samples', None, {{'t_ns': 'noon'}})]",
        "links",
    ),
    "the description of the hardware raises": (
        f"import moescope.collectors.samplers.hardware as m\n{RAISE}m.describe = no",
        "hardware",
    ),
    "a ring cannot be drained": (
        f"import moescope.collectors.sidecar.drain as m\n{RAISE}m.ProcessDrain.drain = no",
        "drain",
    ),
}


def each(check: Callable[[str, Path], None], cases: Iterable[str], folder: Path) -> None:
    """Checks every case in a folder of its own, two at a time: they wait for processes most of the time."""

    def one(case: str) -> None:
        own = folder / case.replace(" ", "-")
        own.mkdir()
        try:
            check(case, own)
        except AssertionError as error:
            raise AssertionError(f"{case}: {error}") from error

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(one, cases))


def test_a_collector_that_breaks_is_told_and_left_out(moescope: Moescope, tmp_path: Path) -> None:
    def check(breakage: str, folder: Path) -> None:
        patch, source = BREAKAGES[breakage]
        command = ("run", "--budget", "full", "-o", "rec", "--", sys.executable, target(folder))
        done = moescope(*command, env=broken(folder, patch), cwd=folder)
        assert unharmed(done), done.stderr
        log = [row for row in rows(folder / "rec", "log") if row["source"] == source]
        assert log
        assert {row["level"] for row in log} <= {"warning", "error"}
        shown = moescope("summary", "rec", cwd=folder)
        assert log[0]["message"] in shown.stdout + shown.stderr
        assert bool(rows(folder / "rec", "steps")) == (source != "drain")
        assert bool(rows(folder / "rec", "link_samples")) == (source != "links")

    each(check, BREAKAGES, tmp_path)


def test_a_recorder_that_breaks_lets_the_command_run_on(moescope: Moescope, tmp_path: Path) -> None:
    def check(moment: str, folder: Path) -> None:
        patch = f"import moescope.collectors.sidecar.keeper as m\n{RAISE}m.Keeper.{moment} = no"
        note = "import os; open('rings', 'w').write(os.environ.get('MOESCOPE_RING_DIR', '/nowhere'))"
        command = ("run", "--budget", "full", "-o", "rec", "--", sys.executable, target(folder, first=note))
        done = moescope(*command, env=broken(folder, patch), cwd=folder)
        assert unharmed(done), done.stderr
        assert "broken on purpose" in done.stderr
        assert "Traceback" not in done.stderr
        recorded = moment not in ("__init__", "attach")
        assert moescope("summary", "rec", cwd=folder).returncode == (0 if recorded else 3)
        assert bool(rows(folder / "rec", "steps")) == recorded
        assert not Path((folder / "rings").read_text()).exists(), "rings are left that nothing names"

    each(check, ["__init__", "attach", "tick", "finish", "last_words"], tmp_path)


def test_an_agent_that_cannot_be_loaded_lets_the_target_run(moescope: Moescope, tmp_path: Path) -> None:
    agent = tmp_path / "agent"
    agent.mkdir()
    (agent / "__init__.py").write_text("raise RuntimeError('broken on purpose')\n")
    patch = (
        "import moescope.collectors.sidecar.run as m\noriginal = m.environment\n"
        f"m.environment = lambda *a: (original(*a)[0] | {{'MOESCOPE_AGENT': {str(agent)!r}}}, [])"
    )
    done = moescope(
        "run", "--budget", "full", "-o", "rec", "--", sys.executable, target(tmp_path), env=broken(tmp_path, patch)
    )
    assert unharmed(done), done.stderr
    assert "this process is not recorded" in done.stderr
    assert "no process that imports torch was recorded" in done.stderr


def test_a_library_that_cannot_be_loaded_costs_precision_not_the_recording(moescope: Moescope, tmp_path: Path) -> None:
    library = tmp_path / "library.so"
    library.write_text("no library")
    patch = f"import moescope.collectors.sidecar.target as m\nm.library_path = lambda: {str(library)!r}"
    done = moescope(
        "run", "--budget", "full", "-o", "rec", "--", sys.executable, target(tmp_path), env=broken(tmp_path, patch)
    )
    assert unharmed(done), done.stderr
    facts: dict[str, Any] = meta(tmp_path / "rec")["ranks"][0]
    assert (facts["ring"], facts["source"]) == ("file", "kineto")
    assert "the C library's ring cannot be used" in said(tmp_path / "rec")
    assert moescope("summary", "rec", "--json").returncode == 0


def test_nonsense_that_a_model_tells_costs_itself_alone(moescope: Moescope, tmp_path: Path) -> None:
    middle = """
emit.work(flops="many", bytes=1, dtype="bf16")
emit.work(flops=2**70, bytes=1, dtype="bf16")
emit.experts(layer=0, tokens=[1, "two"])
emit.experts(layer=0, tokens=[3, 4])
emit.kernel(name=object(), start_ns=1, dur_ns=1)
"""
    script = target(tmp_path, middle=middle)
    done = moescope("run", "-o", "rec", "--", sys.executable, script)
    assert unharmed(done), done.stderr
    assert len(rows(tmp_path / "rec", "steps")) >= 40
    assert {row["flops"] for row in rows(tmp_path / "rec", "work")} == {2 * 64**3}
    assert sorted(row["tokens"] for row in rows(tmp_path / "rec", "experts"))[-2:] == [3, 4]
    text = said(tmp_path / "rec")
    assert "2 row(s) of work left out" in text
    assert "a row of experts left out" in text
    assert "a row of kernel was not recorded" in text
