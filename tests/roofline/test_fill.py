"""Imports write the work that operands tell, and change nothing that a trace tells itself."""

import json
from pathlib import Path

import pytest

from moescope.profiler.commands.import_ import write_recording
from moescope.profiler.export.csv_files import kernels_table
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise

M, N, K = 64, 256, 128


def event(cat, name, ts, dur, tid=7, **args):
    return {"ph": "X", "cat": cat, "name": name, "pid": 9, "tid": tid, "ts": ts, "dur": dur, "args": args}


EVENTS = [
    event("cpu_op", "aten::mm", 0, 9, **{"Input Dims": [[M, K], [K, N]], "Input type": ["c10::BFloat16"] * 2}),
    event("cuda_runtime", "cudaLaunchKernel", 1, 1, correlation=1),
    event("cuda_runtime", "cudaLaunchKernel", 20, 1, correlation=2),
    event("kernel", "nvjet_hsh_128x256_64x4", 30, 10, device=0, stream=7, correlation=1),
    event("kernel", "void at::native::mystery(int)", 50, 10, device=0, stream=7, correlation=2),
    event("kernel", "ncclDevKernel_AllGather_RING_LL(x)", 60, 10, device=0, stream=20, correlation=3,
          **{"Collective name": "all_gather", "In msg nelems": 10, "Out msg nelems": 20, "dtype": "Float"}),
    event("gpu_memcpy", "Memcpy DtoD (Device -> Device)", 80, 1, device=0, stream=7, correlation=4, bytes=4096),
]  # fmt: skip
EXPECTED = [
    (2 * M * N * K, 2 * (M * K + K * N + M * N), "bf16"),
    (None, None, None),
    (None, 40, "f32"),
    (None, 4096, None),
]


@pytest.fixture
def trace(tmp_path: Path):
    device = {"id": 0, "name": "NVIDIA H100 80GB HBM3", "numSms": 132}
    (tmp_path / "a.json").write_text(json.dumps({"traceEvents": EVENTS, "deviceProperties": [device]}))
    return open_source([tmp_path / "a.json"])


def work(table):
    return [(row["flops"], row["bytes"], row["dtype"]) for row in table.to_pylist()]


def test_an_import_writes_what_operands_tell_and_answers_as_the_trace(tmp_path, trace):
    write_recording(trace, tmp_path / "recording")
    imported = open_source([tmp_path / "recording"])
    assert work(imported.table("kernels")) == EXPECTED
    assert summarise(imported)["ranks"] == summarise(trace)["ranks"]


def test_an_export_of_a_trace_has_the_same(trace):
    assert work(kernels_table(trace)) == EXPECTED
    assert [row[0] for row in work(trace.table("kernels"))] == [None] * 4
