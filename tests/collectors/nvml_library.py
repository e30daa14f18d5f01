"""Builds the stand-in of NVIDIA's management library, where there is a compiler, and puts it where processes look."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("nvml_stand_in.c")


def built(folder: Path) -> Path:
    """The folder that holds libnvidia-ml.so.1, built now; skips where nothing can be built or pynvml is not there."""
    pytest.importorskip("pynvml")
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(SOURCE), "-o", str(folder / "libnvidia-ml.so.1")], check=True)
    return folder


def environment(folder: Path, case: str = "hopper", **more: str) -> dict[str, str]:
    """For a process that finds the stand-in. case: as nvml_stand_in.c names them"""
    env = {name: value for name, value in os.environ.items() if not name.startswith("CUDA_")}
    return env | {"LD_LIBRARY_PATH": str(folder), "NVML_STAND_IN": case} | more
