"""Builds the stand-in of CUDA's driver and of CUPTI's PM sampling, where there is a compiler."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("pm_stand_in.c")


def built(folder: Path) -> Path:
    """The folder that holds libcuda.so.1 and libcupti.so.12, built now; skips where nothing can be built."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler")
    folder.mkdir(parents=True, exist_ok=True)
    flags = ["-std=c11", "-D_POSIX_C_SOURCE=200809L", "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    for name in ("libcuda.so.1", "libcupti.so.12"):
        subprocess.run([compiler, *flags, str(SOURCE), "-o", str(folder / name)], check=True)
    return folder


def environment(folder: Path, case: str = "", **more: str) -> dict[str, str]:
    """For a process that finds the stand-in. case: as pm_stand_in.c names them"""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CUDA_", "MOESCOPE_CUPTI"))}
    return env | {"LD_LIBRARY_PATH": str(folder), "PM_STAND_IN": case} | more
