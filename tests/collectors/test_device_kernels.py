"""What a GPU does, from CUPTI's buffers to the summary: real processes, on a stand-in for libcupti alone."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moescope.collectors.clock import Clock
from moescope.collectors.native import injection_path, library_path
from moescope.collectors.ring_reader import Ring
from moescope.collectors.sidecar.drain import ProcessDrain
from tests.collectors.reading import meta, rows

HERE = Path(__file__).parent
Row = dict[str, Any]

pytestmark = pytest.mark.skipif(
    injection_path() is None or shutil.which("cc") is None, reason="moescope's C libraries, or a compiler, are missing"
)


@pytest.fixture(scope="module")
def stand_in(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("cupti"))


def build(folder: Path, *flags: str) -> Path:
    """The stand-in, compiled."""
    made = folder / "libcupti.so.12"
    command = ["cc", "-std=c11", "-shared", "-fPIC", "-fvisibility=hidden", *flags, "-o", str(made)]
    subprocess.run([*command, str(HERE / "cupti_stand_in.c"), "-lpthread"], check=True)
    return made


def direct(stand_in: Path, tmp_path: Path, case: str, **env: str) -> tuple[Row, list[Row]]:
    """What the process told, and what its ring gave."""
    ring = tmp_path / "1-1.ring"
    done = subprocess.run(
        [sys.executable, "-m", "tests.collectors.device_direct", str(library_path()), str(ring), case],
        env=os.environ | {"STAND_IN": str(stand_in), "MOESCOPE_CUPTI": str(stand_in)} | env,
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    drain = ProcessDrain(Ring(ring), Clock(0, 0))
    drain.origin.rank = 0
    batches = drain.drain(0, final=True).tables.get("kernels", [])
    return json.loads(done.stdout), [row for batch in batches for row in batch.to_pylist()]


@pytest.fixture(scope="module")
def recorded(stand_in: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Row, Row]:
    """One whole run: the recording, what the program did, and the summary."""
    folder = tmp_path_factory.mktemp("run")
    env = os.environ | {"STAND_IN": str(stand_in), "MOESCOPE_CUPTI": str(stand_in), "OMP_NUM_THREADS": "1"}

    def moescope(*arguments: str) -> str:
        command = [sys.executable, "-m", "moescope", *arguments]
        done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    told = json.loads(moescope("run", "-o", "rec", "--", sys.executable, str(HERE / "device_target.py")))
    return folder / "rec", told, json.loads(moescope("summary", "rec", "--json"))


def test_every_launch_comes_back_with_its_time_stream_graph_node_and_phase(recorded: tuple[Path, Row, Row]) -> None:
    recording, told, _ = recorded
    phases = {row["id"]: row["name"] for row in rows(recording, "phases")}
    offset = meta(recording)["clock"]["offset_ns"]
    error = meta(recording)["ranks"][0]["device_clock_error_ns"]
    kernels = [row for row in rows(recording, "kernels") if row["grid"] is not None]
    found = sorted(
        (row["correlation"], row["graph_node"] or 0, phases.get(row["phase_id"]), row["stream"]) for row in kernels
    )
    assert found == sorted((row["correlation"], row["node"] or 0, row["phase"], row["stream"]) for row in told["told"])
    times = {(row["correlation"], row["graph_node"]): (row["start_ns"] - offset, row["dur_ns"]) for row in kernels}
    for row in told["told"]:
        start, dur = times[row["correlation"], row["node"]]
        assert abs(start - row["start"]) <= error + 2
        assert abs(dur - row["dur"]) <= 2 * error + 2
    shapes = {(row["device"], row["grid"], row["block"], row["registers"], row["shared_bytes"]) for row in kernels}
    assert shapes == {("cuda:0", "132,2,1", "384,1,1", 168, 201024)}
    assert {row["evidence"] for row in kernels} == {"measured"}


def test_names_are_readable_and_long_ones_are_cut_but_told_apart(recorded: tuple[Path, Row, Row]) -> None:
    names = {row["name"] for row in rows(recorded[0], "kernels")}
    assert "void at::native::gemm_kernel<float, 128>(float const*, float const*, float*, int)" in names
    long = next(name for name in names if name.startswith("void cutlass::device_kernel<cute::tuple<int, cute"))
    assert len(long) == 480
    assert long[-10:-8] == " #"


def test_copies_and_sets_are_memory_copies_between_devices_communicate_and_waiting_is_no_kernel(
    recorded: tuple[Path, Row, Row],
) -> None:
    recording, _, summary = recorded
    moved = {row["name"]: (row["kind"], row["bytes"]) for row in rows(recording, "kernels") if row["bytes"]}
    assert moved == {
        "Memcpy HtoD": ("memory", 4096),
        "Memcpy PtoP": (None, 8192),
        "Memset (Device)": ("memory", 256),
    }
    waits = rows(recording, "synchronisations")
    assert [(row["name"], row["device"], row["stream"], round(row["dur_ns"] / 10_000)) for row in waits] == [
        ("Stream Synchronize", "cuda:0", "7", 88)
    ]
    (rank,) = summary["ranks"]
    # By hand, in µs: 300 of the reduction and 20 of the copy between devices; 150 beside the product and what follows.
    assert rank["comm_us"] == pytest.approx(320, abs=1)
    assert rank["overlapped_us"] == pytest.approx(150, abs=1)
    assert rank["memory_us"] == pytest.approx(25, abs=1)


def test_the_targets_own_profiler_has_the_callbacks_meanwhile_and_they_are_taken_back(
    recorded: tuple[Path, Row, Row],
) -> None:
    recording, told, _ = recorded
    assert told["taken"] == 1
    names = {row["name"] for row in rows(recording, "kernels")}
    assert "not_ours" not in names
    assert {"after", "after_inside"} <= names
    log = " ".join(row["message"] for row in rows(recording, "log") if row["source"] == "kernels")
    assert "the target runs torch.profiler itself" in log
    assert "kernels come from CUPTI again" in log


def test_the_source_its_windows_and_what_was_lost_are_told(recorded: tuple[Path, Row, Row], stand_in: Path) -> None:
    recording, _, summary = recorded
    (rank,) = meta(recording)["ranks"]
    assert (rank["source"], rank["device"], rank["dropped"]) == ("cupti", "cuda:0", 5)
    assert meta(recording)["collectors"]["kernels"] == "cupti"
    log = " ".join(row["message"] for row in rows(recording, "log"))
    assert str(stand_in) in log
    assert "5 records of the GPU's work found no room" in log
    assert "1 kernels, copies or synchronisations had no times" in log
    windows = [row for row in rows(recording, "windows") if row["source"] == "cupti"]
    kernels = [row for row in rows(recording, "kernels") if row["device"] == "cuda:0"]
    spans = [(row["start_ns"], row["start_ns"] + row["dur_ns"]) for row in windows]
    assert all(any(a <= row["start_ns"] and row["start_ns"] < b for a, b in spans) for row in kernels)
    assert summary["dropped_events"] == 5


def test_a_clock_whose_ticks_are_no_nanoseconds_is_turned_into_ours(stand_in: Path, tmp_path: Path) -> None:
    told, kernels = direct(stand_in, tmp_path, "counter")
    found = {row["name"]: (row["start_ns"], row["dur_ns"]) for row in kernels}
    error = told["facts"]["error"]
    # A reading of two clocks is as good as the time between its ends, which on a busy machine is anything.
    for name, _, start in told["told"]:
        assert abs(found[name][0] - start) <= 3 * error + 1000
    assert len(found) == len(told["told"]) == 8


def test_phases_older_than_the_recording_count_from_the_threads_next_phase_on(stand_in: Path, tmp_path: Path) -> None:
    told, kernels = direct(stand_in, tmp_path, "late")
    assert {row["name"]: row["phase_id"] for row in kernels} == {name: phase for name, phase, _ in told["told"]}


def test_a_cupti_that_cannot_choose_calls_records_all_of_them(tmp_path: Path) -> None:
    told, kernels = direct(build(tmp_path, "-DOLD"), tmp_path, "plain")
    assert told["facts"]["whole"] == 1
    assert [(row["name"], row["correlation"]) for row in kernels] == [("plain", 100)]
    assert told["facts"]["unjoined"] == 0


def test_a_full_ring_drops_kernels_and_counts_every_one(stand_in: Path, tmp_path: Path) -> None:
    told, kernels = direct(stand_in, tmp_path, "full")
    assert 0 < len(kernels) < 2000
    assert told["facts"]["records"] == len(kernels)
    assert told["facts"]["lost"] == 2000 - len(kernels) == Ring(tmp_path / "1-1.ring").dropped


def test_a_cupti_that_refuses_says_why_and_nothing_else_happens(stand_in: Path, tmp_path: Path) -> None:
    told, kernels = direct(stand_in, tmp_path, "plain", STAND_IN_REFUSES="1")
    assert told["problem"].startswith("cuptiActivityRegisterCallbacks: CUPTI_ERROR_MULTIPLE_SUBSCRIBERS_NOT_SUPPORTED")
    assert kernels == []


def test_a_forked_child_of_a_process_that_uses_cuda_leaves_it_alone(stand_in: Path, tmp_path: Path) -> None:
    told, _ = direct(stand_in, tmp_path, "fork")
    assert told["told"] == [0]


def test_the_injected_library_loads_where_there_is_no_python_and_does_nothing(tmp_path: Path) -> None:
    source = tmp_path / "main.c"
    source.write_text(
        "#include <dlfcn.h>\nint main(int n, char **a) { (void)n; void *l = dlopen(a[1], RTLD_NOW);\n"
        'int (*f)(void) = l ? (int (*)(void))dlsym(l, "InitializeInjection") : 0; return f ? f() - 1 : 2; }\n'
    )
    subprocess.run(["cc", str(source), "-o", str(tmp_path / "main"), "-ldl"], check=True)
    env = os.environ | {"MOESCOPE_LIBRARY": str(library_path())}
    assert subprocess.run([tmp_path / "main", str(injection_path())], env=env, check=False).returncode == 0


def test_a_machine_without_cupti_says_so_and_nothing_else_happens(stand_in: Path, tmp_path: Path) -> None:
    told, kernels = direct(stand_in, tmp_path, "plain", MOESCOPE_CUPTI=str(tmp_path / "none.so"))
    assert told["problem"] == "the library that MOESCOPE_CUPTI names cannot be loaded"
    assert kernels == []
