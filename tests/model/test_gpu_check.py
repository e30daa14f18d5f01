"""`make gpu-check` says in one line that there is no GPU, and its table leaves out nothing that failed."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch")

from benchmarks import gpu_check
from benchmarks.gpu_counters import achieved
from benchmarks.process import run
from moescope.collectors.sidecar.processes import alive
from moescope.instrumented_model.kernels import why_not


@pytest.mark.skipif(why_not() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"gpu-check: there is no GPU to check: .+; run it on a machine with a Hopper GPU\n", err)


def test_what_a_run_has_started_ends_with_it_when_its_time_is_up(tmp_path: Path) -> None:
    inner = "import os, time; os.setsid(); print(os.getpid(), file=open('pid', 'w'), flush=True); time.sleep(60)"
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"]
    with pytest.raises(subprocess.TimeoutExpired):
        run(command, 3.0, cwd=tmp_path)
    pid = int((tmp_path / "pid").read_text())
    for _ in range(100):
        if not alive(pid):
            break
        time.sleep(0.05)
    assert not alive(pid)


def test_what_is_achieved_is_told_at_the_clock_that_there_was(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(multi_processor_count=132))
    bench = SimpleNamespace(rehearsal=False, device=torch.device("cpu"))
    share, unit = achieved(bench, 989.4e12, 1.83e9)  # NVIDIA's data sheet of the H100 SXM
    assert (share, unit) == (pytest.approx(1.0, abs=0.001), "of the peak at 1830 MHz")
    assert achieved(bench, 600e12, 1.2e9)[0] == pytest.approx(600 / (989.4 * 1.2 / 1.83), abs=0.001)
    assert achieved(bench, 600e12, None) == (None, "its clock was not told")


def test_a_part_that_breaks_or_hangs_costs_its_own_figures_and_is_told() -> None:
    outcome = gpu_check.Outcome()
    figure = '{"section": "peaks", "name": "copy", "value": 2945.4, "unit": "GB/s", "short": true}'
    said = gpu_check._ran("peaks", ["-c", f"print('{figure}'); raise SystemExit('out of memory')"], 60, outcome)
    outcome.figures += gpu_check.figures_in(said + '{"section": "pe')
    gpu_check._ran("records", ["-c", ""], 1, outcome)
    outcome.tests = {"tests": 5, "failures": 1, "errors": 0, "skipped": 2}
    assert [re.split(r"\s{2,}", line) for line in gpu_check.table(outcome).splitlines()] == [
        ["tests", "passed", "2", "of 5"],
        ["peaks", "copy", "2,945", "GB/s"],
        ["FAILED peaks: exit code 1: out of memory"],
        ["FAILED records: left out: the time was up"],
    ]
