"""Kernels of a real GPU in a recording: launches, phases, a graph, copies, waiting, clocks. Not yet run on a GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.collectors.reading import meta, rows

pytestmark = pytest.mark.gpu

TARGET = """
import torch
from torch.profiler import record_function
a = torch.randn(2048, 2048, device="cuda", dtype=torch.bfloat16)
host = torch.empty(1 << 20, pin_memory=True)
other = torch.cuda.Stream()
for _ in range(3):
    torch.mm(a, a)
torch.cuda.synchronize()
with record_function("attn(F)"):
    for _ in range(5):
        torch.mm(a, a)
    with record_function("dispatch(F)"), torch.cuda.stream(other):
        host.copy_(torch.zeros(1 << 20, device="cuda"), non_blocking=True)
    torch.cuda.synchronize()
graph = torch.cuda.CUDAGraph()
with torch.cuda.graph(graph):
    b = a
    for _ in range(4):
        b = torch.mm(b, a)
for _ in range(10):
    with record_function("mlp(F)"):
        graph.replay()
torch.cuda.synchronize()
with torch.profiler.profile():
    torch.mm(a, a)
    torch.cuda.synchronize()
with record_function("combine(F)"):
    torch.mm(a, a)
    torch.cuda.synchronize()
"""


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    from moescope.collectors.native import injection_path
    from moescope.collectors.native.build import build

    if injection_path() is None:
        build()
    folder = tmp_path_factory.mktemp("gpu")
    (folder / "target.py").write_text(TARGET)
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", sys.executable, "target.py"]
    done = subprocess.run(command, cwd=folder, env=dict(os.environ), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "rec"


def _kernels(recording: Path) -> list[dict[str, Any]]:
    return [row for row in rows(recording, "kernels") if (row["device"] or "").startswith("cuda")]


def test_cupti_is_the_source_and_lost_nothing(recording: Path) -> None:
    (rank,) = meta(recording)["ranks"]
    assert rank["source"] == "cupti", [row["message"] for row in rows(recording, "log")]
    assert rank["dropped"] == 0
    assert rank["device_clock_error_ns"] < 100_000
    assert rank["device_properties"]["cuda:0"]["numSms"] > 0


def test_kernels_have_the_phase_of_their_launch_and_a_graph_that_of_its_own(recording: Path) -> None:
    phases = {row["id"]: row["name"] for row in rows(recording, "phases")}
    by_phase: dict[str | None, list[dict[str, Any]]] = {}
    for row in _kernels(recording):
        by_phase.setdefault(phases.get(row["phase_id"]), []).append(row)
    assert len([row for row in by_phase["attn(F)"] if row["grid"]]) >= 5
    assert any("Memcpy DtoH" in row["name"] and row["bytes"] == 4 << 20 for row in by_phase["dispatch(F)"])
    nodes = [row for row in by_phase["mlp(F)"] if row["graph_node"]]
    assert len(nodes) >= 40
    assert len({row["correlation"] for row in nodes}) == 10
    assert by_phase["combine(F)"]


def test_work_lies_behind_its_launch_and_before_the_end_of_the_wait_for_it(recording: Path) -> None:
    spans = {
        row["id"]: (row["start_ns"], row["start_ns"] + row["dur_ns"], row["name"]) for row in rows(recording, "phases")
    }
    # What the two clocks may be apart: theirs as stated, and CUPTI's own from device to host.
    apart = meta(recording)["ranks"][0]["device_clock_error_ns"] + 100_000
    for row in _kernels(recording):
        if row["phase_id"] in spans:
            start, end, name = spans[row["phase_id"]]
            assert row["start_ns"] >= start - apart
            if name in ("attn(F)", "combine(F)"):
                assert row["start_ns"] + row["dur_ns"] <= end + apart
    assert rows(recording, "synchronisations")


def test_shapes_of_launches_are_told(recording: Path) -> None:
    launched = [row for row in _kernels(recording) if not row["name"].startswith("Mem")]
    assert all(row["grid"] and row["block"] and row["registers"] for row in launched)
