"""The benchmark of what recording costs runs the recorder at half its pace, by names that must exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_recorder_at_half_its_pace_starts() -> None:
    command = [sys.executable, "-m", "benchmarks.half_pace", "--version"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("moescope ")
