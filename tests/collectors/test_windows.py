"""Windows in which operators are recorded: how far apart they lie, whatever a program does between two of them."""

from __future__ import annotations

import sys
from itertools import pairwise
from pathlib import Path

from tests.collectors.reading import rows
from tests.conftest import Moescope

# Nothing at first, so that windows grow; then as many operators as there can be.
IDLE_THEN_DENSE = """
import time, torch
time.sleep(1.5)
x = torch.ones(1)
until = time.monotonic() + 5
while time.monotonic() < until:
    for _ in range(1000):
        x.neg()
"""


def test_a_window_that_cost_much_does_not_keep_the_next_one_waiting(moescope: Moescope, tmp_path: Path) -> None:
    (tmp_path / "target.py").write_text(IDLE_THEN_DENSE)
    done = moescope("run", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    starts = sorted(row["start_ns"] for row in rows(tmp_path / "rec", "windows"))
    # A second at most, and as much again for a machine that is busy with others.
    assert max(b - a for a, b in pairwise(starts)) < 2_000_000_000
    assert len(starts) >= 5
