"""What all tests share: real runs of the command line in processes of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ALONE = (
    "collectors/test_communication.py",
    "collectors/test_flight.py",
    "collectors/test_gpu_samples.py",
    "collectors/test_kills.py",
    "collectors/test_run.py",
    "collectors/test_unit_intervals.py",
    "collectors/test_windows.py",
    "commands/test_demo_truth.py",
    "tui/test_terminal.py",
)
"""Tests of how processes go in time: nothing else may run meanwhile."""

Moescope = Callable[..., subprocess.CompletedProcess[str]]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks what has to run by itself; the rest may share the machine (`make test`)."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(ALONE):
            item.add_marker("alone")


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Ranks share the machine's cores; and no test reads or writes the user's own cache."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    ours = ("MOESCOPE_RING_DIR", "INTEL_LIBITTNOTIFY64", "CUDA_INJECTION64_PATH", "MOESCOPE_CUPTI")
    for variable in (*ours, "RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def moescope(tmp_path: Path) -> Moescope:
    """Runs `moescope ARGUMENTS…` in `tmp_path` to its end."""

    def run(*arguments: str | Path, timeout: float = 120, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "moescope", *map(str, arguments)]
        settings: dict[str, Any] = {"cwd": tmp_path, "env": dict(os.environ), "timeout": timeout} | kwargs
        return subprocess.run(command, capture_output=True, text=True, check=False, **settings)

    return run


@pytest.fixture
def start_moescope(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts `moescope ARGUMENTS…` in `tmp_path`; what still runs afterwards is killed."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str | Path, **kwargs: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "moescope", *map(str, arguments)]
        settings: dict[str, Any] = {"cwd": tmp_path, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
        process = subprocess.Popen(command, text=True, **settings)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()
