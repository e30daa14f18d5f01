"""Calls that NCCL executes: when, by the kernels they launch; a real process, on the stand-in for libcupti."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from moescope.collectors.agent.groups import backends
from moescope.collectors.native import injection_path
from moescope.collectors.sidecar.device import RECORD, launched
from moescope.collectors.sidecar.names import Names
from tests.collectors.reading import meta, rows
from tests.collectors.test_device_kernels import HERE, build

Row = dict[str, Any]

pytestmark = pytest.mark.skipif(
    injection_path() is None or shutil.which("cc") is None, reason="moescope's C libraries, or a compiler, are missing"
)


@pytest.fixture(scope="module", params=["nccl", "undefined"])
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, bool]:
    """The recording, the program's zero of time in it, and whether the group has a backend for the host as well."""
    folder = tmp_path_factory.mktemp("run")
    made = str(build(folder))
    env = {"STAND_IN": made, "MOESCOPE_CUPTI": made, "OMP_NUM_THREADS": "1", "BACKEND": request.param}
    command = [sys.executable, "-m", "moescope", "run", "-o", "rec", "--", sys.executable, str(HERE / "nccl_target.py")]
    done = subprocess.run(command, cwd=folder, env=os.environ | env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["raised"]
    return folder / "rec", told["now"] + meta(folder / "rec")["clock"]["offset_ns"], request.param != "nccl"


def us(row: Row, zero_ns: int) -> tuple[float, float | None]:
    """Start and duration of a row in whole µs of the program."""
    return round((row["start_ns"] - zero_ns) / 1000), None if row["dur_ns"] is None else round(row["dur_ns"] / 1000)


def test_a_call_lasts_as_long_as_its_kernels(recorded: tuple[Path, int, bool]) -> None:
    recording, zero_ns, mixed = recorded
    phases = {row["id"]: row["name"] for row in rows(recording, "phases")}
    found = [
        (row["op"], us(row, zero_ns), row["sent_bytes"], row["received_bytes"], phases.get(row["phase_id"]))
        for row in sorted(rows(recording, "collectives"), key=lambda row: row["call"])
        if row["dur_ns"] is not None
    ]
    assert found == [
        ("all_to_all", (100, 40), 4 * 7168, 6 * 7168, "dispatch(F)"),
        ("all_to_all", (200, 70), 4 * 7168, 6 * 7168, None),
        ("send", (500, 50), 4096, 0, "pipeline"),
        ("recv", (500, 50), 0, 2048, "pipeline"),
        ("barrier", (600, 5), None, None, None),
    ]
    measured = [row for row in rows(recording, "collectives") if row["dur_ns"] is not None]
    assert {row["evidence"] for row in measured} == {"measured"}
    assert all(row["issue_ns"] > zero_ns for row in measured)
    assert {(row["group"], row["group_ranks"]) for row in measured} == {("7", "0,1")}
    assert {row["backend"] for row in measured} == {"cpu:gloo,cuda:nccl" if mixed else "nccl"}
    assert {row["dtype"] for row in measured} <= {"float8_e4m3fn", "bfloat16", ""}


def test_a_call_whose_kernel_never_ended_is_told_so_and_one_that_raised_is_not_told(
    recorded: tuple[Path, int, bool],
) -> None:
    open_calls = [row for row in rows(recorded[0], "collectives") if row["dur_ns"] is None]
    assert [(row["op"], row["evidence"]) for row in open_calls] == [("broadcast", "derived")]
    assert {"all_reduce", "all_gather"}.isdisjoint(row["op"] for row in rows(recorded[0], "collectives"))


def test_bytes_go_where_they_went_when_they_went(recorded: tuple[Path, int, bool]) -> None:
    recording, zero_ns, _ = recorded
    found = sorted(
        (row["op"], row["dst"], row["hop"], row["bytes"], *(us(row, zero_ns) if row["dur_ns"] else (None, None)))
        for row in rows(recording, "transfers")
        if row["dur_ns"] is not None
    )
    assert found == [
        ("all_to_all", 1, "internode", 4 * 7168, 100, 40),
        ("all_to_all", 1, "internode", 4 * 7168, 200, 70),
        ("send", 1, "internode", 4096, 500, 50),
    ]
    # Under the target's own profiler nobody tells which kernel a call launched; nor does one end that hangs.
    untimed = sorted((row["op"], row["bytes"]) for row in rows(recording, "transfers") if row["dur_ns"] is None)
    assert untimed == [("all_to_all", 4 * 7168), ("broadcast", 512)]


def test_kernels_of_a_call_keep_their_phase_and_none_is_made_up(recorded: tuple[Path, int, bool]) -> None:
    recording, zero_ns, _ = recorded
    phases = {row["id"]: row["name"] for row in rows(recording, "phases")}
    kernels = [row for row in rows(recording, "kernels") if row["device"] == "cuda:0" and row["grid"]]
    found = sorted((us(row, zero_ns)[0], row["name"].partition("(")[0], phases.get(row["phase_id"])) for row in kernels)
    gemm = "void at::native::gemm_kernel<float, 128>"
    nccl = "ncclDevKernel_SendRecv"
    assert found == [
        (100, nccl, "dispatch(F)"),
        (150, gemm, "dispatch(F)"),
        (200, nccl, None),
        (240, nccl, None),
        (300, gemm, None),
        (500, nccl, "pipeline"),
        (600, nccl, None),
    ]
    errors = [row["message"] for row in rows(recording, "log") if row["level"] == "error"]
    assert errors == []


def test_spans_of_calls_by_hand() -> None:
    names = Names(lambda: ["", "ncclDevKernel_AllReduce", "copy_kernel"])
    names.update()
    records = np.zeros(6, RECORD)
    records["work"] = [1, 1, 1, 1, 2, 1]
    records["name"] = [1, 1, 2, 1, 1, 1]
    records["call"] = [5, 5, 5, 9, 9, 0]
    records["start_ns"] = [100, 90, 10, 400, 0, 0]
    records["dur_ns"] = [10, 5, 500, 7, 999, 999]
    at = np.array([0, 0, 0, 8, 8, 8])
    found = launched(records, at, names, {9: [7, 8]})
    assert found.calls.tolist() == [5, 5, 7, 8]
    spans = found.executions()
    assert list(zip(spans["b"].tolist(), spans["start_ns"].tolist(), spans["dur_ns"].tolist(), strict=True)) == [
        (5, 90, 20),
        (7, 400, 7),
        (8, 400, 7),
    ]
    assert found.before(8).calls.tolist() == [5, 5]
    assert found.before(9) is found
    assert len(launched(records[:0], at[:0], names, {}).executions()) == 0


@pytest.mark.parametrize(
    ("backend", "config", "found"),
    [
        ("gloo", "cpu:gloo,cuda:gloo", ("gloo", True, False)),
        ("nccl", "cuda:nccl", ("nccl", False, True)),
        ("undefined", "cpu:gloo", ("gloo", True, False)),
        ("undefined", "cpu:gloo,cuda:nccl", ("cpu:gloo,cuda:nccl", True, True)),
        ("cpu:gloo,cuda:nccl", "cuda:nccl,cpu:gloo", ("cpu:gloo,cuda:nccl", True, True)),
        ("fake", "cpu:fake,cuda:fake", ("fake", False, False)),
        ("undefined", "", ("undefined", False, False)),
    ],
)
def test_a_groups_backends(backend: str, config: str, found: tuple[str, bool, bool]) -> None:
    told = SimpleNamespace(get_backend=lambda _: backend, get_backend_config=lambda _: config)
    assert backends(told, None) == found


def test_a_backend_without_a_configuration_is_known_by_its_name() -> None:
    def refused(_: object) -> str:
        raise ValueError("not registered")

    told = SimpleNamespace(get_backend=lambda _: "own", get_backend_config=refused)
    assert backends(told, None) == ("own", False, False)
