"""What kernels record about the units that they hold comes into the recording, however much it is."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("triton")

from moescope.collectors import emit
from tests.collectors.reading import rows
from tests.conftest import Moescope

LAUNCH = 1 << 40  # no thread's id, which cores are recorded by
GROUPS = ((0, "compute", 2500), (1, "comm", 20), (2, "other", 0))
TARGET = f"""
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch, triton, triton.language as tl
from moescope.collectors import emit
from moescope.instrumented_model.kernels.trace import COMMUNICATION, record_begin, record_end, record_open, recorded

@triton.jit
def add_one(x, n, trace):
    written, programs = record_open(trace), tl.num_programs(0)
    for i in range(tl.program_id(0), n, programs):
        start = record_begin(trace)
        tl.store(x + i, tl.load(x + i) + 1)
        record_end(trace, start, written + i // programs, i, COMMUNICATION)

with emit.step(0):
    now = emit.clock_ns()
    for launch, role, n in {GROUPS}:
        starts = [now + 1000 * i for i in range(n)]
        units = [i % 132 for i in range(n)]
        emit.unit_intervals(
            device="cuda:0", launch={LAUNCH} + launch, role=role,
            units=units, start_ns=starts, end_ns=[s + 7 for s in starts],
        )
    x = torch.zeros(5)
    for capacity in (99, 2):
        with recorded("cpu", programs=2, capacity=capacity) as trace:
            add_one[(2,)](x, 5, trace.launched("add_one", 2))
            add_one[(1,)](x, 1, trace.launched("add_one", 1))
"""


@pytest.fixture
def recording(moescope: Moescope, tmp_path: Path) -> Path:
    (tmp_path / "target.py").write_text(TARGET)
    done = moescope("run", "-o", "rec", "--", sys.executable, "target.py")
    assert done.returncode == 0, done.stderr
    return tmp_path / "rec"


def test_units_held_by_launches_are_recorded_one_by_one(recording: Path) -> None:
    everything = rows(recording, "unit_intervals")
    found = [row for row in everything if row["device"] == "cuda:0"]
    assert {row["launch"] for row in found} == {LAUNCH, LAUNCH + 1}
    for launch, role, n in GROUPS:
        own = sorted((row for row in found if row["launch"] == LAUNCH + launch), key=lambda row: row["start_ns"])
        assert [row["unit"] for row in own] == [i % 132 for i in range(n)]
        assert {row["role"] for row in own} <= {role}
        assert {row["evidence"] for row in own} <= {"measured"}
        assert all(row["end_ns"] - row["start_ns"] == 7 for row in own)
        assert all(b["start_ns"] - a["start_ns"] == 1000 for a, b in itertools.pairwise(own))
    (step,) = rows(recording, "steps")
    assert step["start_ns"] <= min(row["start_ns"] for row in found) <= step["start_ns"] + step["dur_ns"]

    # The records of a Triton kernel, two launches in each of two blocks; the last had room for fewer.
    traced = [row for row in everything if row["device"] == "cpu"]
    held = sorted((row["launch"], row["unit"]) for row in traced)
    assert held == [(0, 0), (0, 0), (0, 0), (0, 1), (0, 1), (1, 0), (2, 0), (2, 0), (2, 1), (2, 1)]
    assert {(row["role"], row["evidence"]) for row in traced} == {("comm", "measured")}
    for row in traced:
        assert step["start_ns"] <= row["start_ns"] <= row["end_ns"] <= step["start_ns"] + step["dur_ns"]
    first, last = (row for row in rows(recording, "log") if row["source"] == "units" and "add_one" in row["message"])
    assert re.fullmatch(r"6 records of cpu, launches: add_one 2; its clock is known to within \d+ ns", first["message"])
    assert (first["level"], last["level"]) == ("info", "warning")
    assert last["message"].endswith("; 2 records did not fit: give the trace more capacity")


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="2 units, 1 starts and 2 ends"):
        emit.unit_intervals(device="cuda:0", launch=0, role="comm", units=[0, 1], start_ns=[0], end_ns=[1, 2])
