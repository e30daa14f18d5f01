"""`doctor` says what works here and what to do about the rest; `calibrate` keeps this machine's peaks."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from moescope.collectors.calibrate import load_peaks
from tests.collectors import nvml_library
from tests.collectors.breaking import broken
from tests.conftest import Moescope

SIGNALS = {
    "operators",
    "phases, steps",
    "communication",
    "injection",
    "units",
    "links",
    "device",
    "experts, quantisation",
    "rings",
    "peaks",
    "GPU counters, links",
    "GPU counters, finer",
    "GPU kernels",
    "GPU SMs",
}


def signals(output: str) -> dict[str, dict[str, Any]]:
    answer = json.loads(output)
    assert set(answer["package"]) == {"moescope", "python", "c_library"}
    return {row["signal"]: row for row in answer["signals"]}


def test_every_signal_is_tried_and_what_is_missing_has_a_note(moescope: Moescope) -> None:
    done = moescope("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = signals(done.stdout)
    assert set(found) == SIGNALS
    assert {row["state"] for row in found.values()} <= {"ok", "fallback", "missing"}
    assert [row["signal"] for row in found.values() if row["state"] != "ok" and not row["note"]] == []
    assert found["operators"]["state"] == "ok"
    assert found["GPU counters, links"]["state"] == "missing" or Path("/dev/nvidiactl").exists()
    assert "moescope calibrate" in found["peaks"]["note"] + found["peaks"]["source"]


def test_the_text_tells_the_same_and_reads_without_colour(moescope: Moescope, tmp_path: Path) -> None:
    env = nvml_library.environment(nvml_library.built(tmp_path / "nvml"))
    done = moescope("doctor", env=env | {"NO_COLOR": "1", "COLUMNS": "100"})
    assert done.returncode == 0
    assert "\x1b" not in done.stdout
    assert all(signal in done.stdout for signal in ("operators", "communication", "units", "links", "peaks"))
    assert "● ok" in done.stdout
    assert "NVML GPM, 2 GPU(s)" in " ".join(done.stdout.split())
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize(
    ("patch", "signal", "state", "note"),
    [
        (
            "import moescope.collectors.samplers.perf_event as m\nm._SYSCALL = dict.fromkeys(m._SYSCALL, 9999)",
            "units",
            "fallback",
            "perf_event_paranoid",
        ),
        (
            "import pathlib, moescope.collectors.samplers as m\noriginal = m.LinkSampler\n"
            "m.LinkSampler = lambda clock, host: original(clock, host, pathlib.Path('/nowhere'))",
            "links",
            "missing",
            "/sys/class/net",
        ),
        (
            "import moescope.collectors.doctor as m\nm.library_path = lambda: None\n"
            "import moescope.collectors.sidecar.target as t\nt.library_path = lambda: None",
            "operators",
            "fallback",
            "install a C compiler",
        ),
        (
            "import shutil\nfull = type('', (), {'free': 1 << 20})\nshutil.disk_usage = lambda _: full",
            "rings",
            "fallback",
            "--shm-size",
        ),
        (
            "import moescope.collectors.doctor as m\nm._PROBE = 'import no_such_module_here'",
            "operators, phases, communication",
            "missing",
            "no_such_module_here",
        ),
    ],
    ids=["perf forbidden", "no sysfs", "no C library", "small /dev/shm", "no torch"],
)
def test_what_stands_in_the_way_is_named_with_what_to_do(
    moescope: Moescope, tmp_path: Path, patch: str, signal: str, state: str, note: str
) -> None:
    done = moescope("doctor", "--json", env=broken(tmp_path, patch, "doctor"))
    assert done.returncode == 0, done.stderr
    row = signals(done.stdout)[signal]
    assert row["state"] == state
    assert note in row["note"]


BRIEFLY = """
import moescope.collectors.calibrate as m
assert m._PROGRAM.count("0.15)") == m._PROGRAM.count("0.3)") == 1
m._PROGRAM = m._PROGRAM.replace("0.15)", "0.02)").replace("0.3)", "0.02)")
"""
"""Calibration with less time for each measurement."""


def test_calibrate_keeps_peaks_that_every_command_finds(
    moescope: Moescope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert load_peaks() is None
    done = moescope("calibrate", "--json", env=broken(tmp_path, BRIEFLY, "calibrate"))
    assert done.returncode == 0, done.stderr
    peaks = json.loads(done.stdout)
    for dtype in ("f32", "bf16"):
        assert peaks[dtype]["flops_per_s"] > 1e8
        assert peaks[dtype]["flops_per_s"] >= peaks[dtype]["flops_per_s_one_thread"]
        assert peaks[dtype]["evidence"] == "measured"
        assert peaks[dtype]["threads"] == len(os.sched_getaffinity(0))
    assert peaks["copy_bytes_per_s"]["value"] > 1e8
    assert (peaks.pop("gpus") is None) == ("gpus_reason" in peaks)
    peaks.pop("gpus_reason", None)
    assert load_peaks() == peaks
    (kept,) = (tmp_path / "cache").rglob("*.json")
    kept.write_text(kept.read_text().replace('"machine": "', '"machine": "another '))
    assert load_peaks() is None, "peaks of another machine"
    kept.write_text("{torn")
    assert load_peaks() is None


def test_a_calibration_that_cannot_be_kept_or_made_says_so(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "briefly").mkdir()
    env = broken(tmp_path / "briefly", BRIEFLY, "calibrate") | {"XDG_CACHE_HOME": str(tmp_path / "file")}
    refused = moescope("calibrate", env=env)
    assert (refused.returncode, refused.stdout) == (3, "")
    assert "XDG_CACHE_HOME" in refused.stderr
    patch = "import moescope.collectors.calibrate as m\nm._PROGRAM = 'import no_such_module_here'"
    failed = moescope("calibrate", env=broken(tmp_path, patch, "calibrate"))
    assert failed.returncode == 3
    assert "it needs torch" in failed.stderr
