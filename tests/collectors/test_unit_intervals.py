"""What kernels record about the units that they hold comes into the recording, however much it is."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import pytest

from moescope.collectors import emit
from tests.collectors.reading import rows
from tests.conftest import Moescope

LAUNCH = 1 << 40  # no thread's id, which cores are recorded by
TARGET = f"""
import torch
from moescope.collectors import emit
with emit.step(0):
    now = emit.clock_ns()
    for launch, role, n in ((0, "compute", 2500), (1, "comm", 20), (2, "other", 0)):
        starts = [now + 1000 * i for i in range(n)]
        units = [i % 132 for i in range(n)]
        emit.unit_intervals(
            device="cuda:0", launch={LAUNCH} + launch, role=role,
            units=units, start_ns=starts, end_ns=[s + 7 for s in starts],
        )
"""


def test_units_held_by_launches_are_recorded_one_by_one(moescope: Moescope, tmp_path: Path) -> None:
    done = moescope("run", "-o", "rec", "--", sys.executable, "-c", TARGET)
    assert done.returncode == 0, done.stderr
    found = [row for row in rows(tmp_path / "rec", "unit_intervals") if row["launch"] >= LAUNCH]
    for launch, role, n in ((0, "compute", 2500), (1, "comm", 20), (2, "other", 0)):
        own = sorted((row for row in found if row["launch"] == LAUNCH + launch), key=lambda row: row["start_ns"])
        assert [row["unit"] for row in own] == [i % 132 for i in range(n)]
        assert {row["role"] for row in own} <= {role}
        assert {(row["device"], row["evidence"]) for row in own} <= {("cuda:0", "measured")}
        assert all(row["end_ns"] - row["start_ns"] == 7 for row in own)
        assert all(b["start_ns"] - a["start_ns"] == 1000 for a, b in itertools.pairwise(own))
    step = rows(tmp_path / "rec", "steps")[0]
    assert step["start_ns"] <= min(row["start_ns"] for row in found) <= step["start_ns"] + step["dur_ns"]


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 units, 1 starts and 2 ends"):
        emit.unit_intervals(device="cuda:0", launch=0, role="comm", units=[0, 1], start_ns=[0], end_ns=[1, 2])
