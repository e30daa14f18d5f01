"""PM sampling: which metrics are taken, when samples were, and the real process on a library with CUPTI's entry points.

No GPU has been sampled by this code yet; literals are those of pm_stand_in.c. What NVIDIA's own library answers without
a GPU is in benchmarks/results/pm_metrics.json.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from ctypes.util import find_library
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.gpu_counters import kernel_rate
from moescope.collectors.samplers.pm_sampling import process
from moescope.collectors.samplers.pm_sampling.clock import DRIFT, KEPT_NS, GpuClock
from moescope.collectors.samplers.pm_sampling.metrics import COLUMNS, choose, in_our_unit
from moescope.collectors.schema import TABLES
from tests.collectors import nvml_library, pm_library
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000001"
S = 1_000_000_000


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pm_library.built(tmp_path_factory.mktemp("pm"))


def test_the_best_metric_that_the_chip_has_is_taken_for_each_column_while_one_pass_holds_it() -> None:
    has = {COLUMNS["tensor_active"][1], *COLUMNS["sm_active"], *COLUMNS["dram_active"], *COLUMNS["occupancy"]}

    def passes(names: Sequence[str]) -> int:
        assert len(set(names)) == len(names)
        return 0 if names[-1] not in has else -(-len(names) // 3)

    chosen = choose(passes)
    assert chosen.metrics == {
        "tensor_active": COLUMNS["tensor_active"][1],
        "sm_active": COLUMNS["sm_active"][0],
        "dram_active": COLUMNS["dram_active"][0],
    }
    assert chosen.refused["occupancy"] == "does not go into one pass with the others"
    assert chosen.refused["fp8_ops_per_s"] == "this chip and CUPTI do not sample it"
    assert {*chosen.metrics, *chosen.refused} == set(COLUMNS) < {column.name for column in TABLES["device_samples"]}


def test_percentages_are_shares_and_rates_stay() -> None:
    percent, rate = COLUMNS["tensor_active"][0], COLUMNS["nvlink_tx_bytes_per_s"][0]
    assert [in_our_unit(percent, value) for value in (0.0, 62.5, 101.5, -0.1, 180.0)] == [0.0, 0.625, 1.0, None, None]
    assert in_our_unit(percent, float("nan")) is in_our_unit(rate, float("inf")) is None
    assert in_our_unit(rate, 3e9) == 3e9


@settings(max_examples=80, deadline=None)
@given(
    st.integers(-(10**18), 10**18),
    st.floats(-DRIFT, DRIFT),
    st.integers(0, 10**7),
    st.lists(st.integers(0, 10**8), min_size=1, max_size=200),
)
def test_times_are_never_told_too_early_and_at_first_too_late_by_no_more_than_is_said(
    ahead: int, drift: float, start_delay: int, read_delays: list[int]
) -> None:
    """ahead: the GPU's clock minus the host's; drift: how much faster; delays: of the first sample and each reading"""
    clock, now = GpuClock(S), S + start_delay
    for delay in read_delays:
        first, last = now, now + S // 4
        clock.read(*(at + ahead + round(drift * (at - S)) for at in (first, last)), last + delay)
        late = clock.offset_ns + ahead + round(drift * (last - S))
        assert clock.error_ns is not None
        assert -2 <= late <= delay + 2
        if last + delay - S <= KEPT_NS:
            assert late <= clock.error_ns + 2
        now = last


def test_a_reading_that_came_late_is_made_good_by_the_next_and_is_in_the_error_that_is_told() -> None:
    clock = GpuClock(0)
    clock.read(100, 250_000_100, 259_000_100)
    assert clock.offset_ns == 9_000_000
    clock.read(250_000_100, 500_000_100, 500_050_100)
    assert clock.offset_ns == 50_000
    assert clock.error_ns is not None
    assert 9_000_000 <= clock.error_ns < 9_100_000


def test_lines_that_nobody_reads_are_dropped_and_counted_and_what_follows_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "KEPT_BYTES", 1 << 20)
    source, sink = os.pipe()
    output = process.Output(sink)
    line = {"gpu": 0, "lost": 0, "samples": [[1, 2, 0.5]] * 5000}
    for _ in range(60):
        output.say(dict(line))
    os.set_blocking(source, False)
    read = b""
    for _ in range(10_000):
        output.flush()
        try:
            read += os.read(source, 1 << 16)
        except BlockingIOError:
            break
    output.say(dict(line))
    output.drain(5.0)
    os.close(sink)
    while data := _some(source):
        read += data
    os.close(source)
    found = [json.loads(text) for text in read.splitlines()]
    kept = sum(len(one["samples"]) for one in found)
    assert kept < 61 * 5000
    assert kept + sum(one["lost"] for one in found) == 61 * 5000


def _some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


TARGET = """
import sys, time, torch
until = time.monotonic() + 1.2
x = torch.ones(64, 64)
while time.monotonic() < until:
    (x @ x).sum()
    time.sleep(0.001)
"""


def _told(recording: Path) -> list[str]:
    return [row["message"] for row in rows(recording, "log") if row["source"] == "gpu_pm"]


def test_a_run_records_samples_every_few_milliseconds_beside_nvml(moescope: Moescope, tmp_path: Path) -> None:
    folder = pm_library.built(nvml_library.built(tmp_path / "lib"))
    env = pm_library.environment(folder) | {"NVML_STAND_IN": "hopper"}
    (tmp_path / "target.py").write_text(TARGET)
    options = ("--pm-sampling", "10ms", "--gpu-period", "200ms", "-o", "rec")
    done = moescope("run", *options, "--", sys.executable, "target.py", env=env)
    assert done.returncode == 0, done.stderr
    recording = tmp_path / "rec"
    facts = meta(recording)
    assert facts["collectors"]["gpu_pm"] == "CUPTI PM sampling, every 10 ms"

    for device, uuid in (("cuda:0", A), ("cuda:1", B)):
        samples = [row for row in rows(recording, "device_samples") if row["device"] == device]
        fine = sorted((row for row in samples if row["span_ns"] == 10_000_000), key=lambda row: row["t_ns"])
        assert len(fine) > 100
        times = [row["t_ns"] for row in fine]
        apart = [after - before for before, after in pairwise(times)]
        assert sorted(apart)[len(apart) // 2] == 10_000_000
        assert sum(apart) == pytest.approx(10_000_000 * len(apart), abs=50_000_000), "none is missing, none told twice"
        assert facts["started_ns"] - S <= times[0] < times[-1] <= facts["ended_ns"]
        for row in fine:
            assert (row["uuid"], row["tensor_active"], row["dram_active"]) == (uuid, 0.625, 0.48)
            assert (row["hmma_active"], row["imma_active"], row["occupancy"]) == (1.0, 0.0, 0.25)
            assert (row["nvlink_tx_bytes_per_s"], row["nvlink_rx_bytes_per_s"]) == (3e9, 2e9)
            assert (row["pcie_tx_bytes_per_s"], row["pcie_rx_bytes_per_s"]) == (5e8, 6e8)
            assert (row["fp8_ops_per_s"], row["power_w"], row["dmma_active"]) == (None, None, None)
        steps = {round((b["sm_active"] - a["sm_active"]) * 100) % 101 for a, b in pairwise(fine)}
        assert steps == {10_000_000 % 101}, "each sample is evaluated by itself, in order"
        coarse = [row for row in samples if row["power_w"] is not None]
        assert len(coarse) > 3
        assert {row["tensor_active"] for row in coarse} == {None}, "one figure, one source"

    said = _told(recording)
    assert sum("is sampled by libcupti.so.12: tensor_active, sm_active" in text for text in said) == 2
    assert sum("no fp8_ops_per_s: this chip and CUPTI do not sample it" in text for text in said) == 2
    assert sum("samples were at most" in text for text in said) == 2
    assert kernel_rate(recording, sampled=True)[0] > 0
    assert not [row for row in rows(recording, "log") if row["source"] == "gpu_pm" and row["level"] != "info"]
    shown = moescope("summary", "rec")
    assert "GPU cuda:0, all of the run: tensor cores 62.5% of the time by counter" in shown.stdout, shown.stderr


SAMPLED = """
import json, sys, time
from moescope.collectors.clock import Clock
from moescope.collectors.samplers.pm_sampling import sampler as module
from moescope.collectors.samplers.pm_sampling.sampler import PmSampler
module.CLOSE_S = 1.0
sampler = PmSampler(Clock(0, 0), "h", 0.02)
sampler.open()
time.sleep(float(sys.argv[1]))
found = [*sampler.poll(), *sampler.poll()]
left = sampler.columns("cuda:0")
found += [*sampler.close(), *sampler.poll()]
rows = [row for table, _, batch in found if table == "device_samples" for row in batch.to_pylist()]
print(json.dumps([rows, [row for table, _, row in found if table == "log"], left]))
"""


CASES: dict[str, tuple[float, str, int, bool]] = {
    "denied": (0.3, "no permission: run as root or with CAP_PERFMON", 2, False),
    "none": (0.3, "no GPU is seen", 1, False),
    "small": (1.8, "no dram_active: does not go into one pass with the others", 2, True),
    "overflow": (2.4, "of cuda:0 are missing: they were not read in time", 1, True),
    "flag": (2.4, "of cuda:0 are missing: they were not read in time", 1, True),
    "late": (1.8, "are missing: they were not read in time", 2, True),
    "crash": (2.4, "was ended by signal 6: no samples from here on", 1, True),
    "stuck": (2.0, "was ended by signal 9: no samples from here on", 1, True),
    "held": (0.3, "another profiler holds the counters", 2, False),
    "talks": (1.8, "is sampled by libcupti.so.12", 2, True),
    "slow": (0.1, "the run was over before sampling had begun", 1, False),
}
"""By case of the stand-in: how long it samples, what the log says, how often, and whether there are samples."""


@pytest.fixture(scope="module")
def outcomes(library: Path) -> dict[str, Any]:
    """What every case gave; they run beside one another, as all they do is wait."""
    running = {
        case: subprocess.Popen(
            [sys.executable, "-c", SAMPLED, str(seconds)],
            env=pm_library.environment(library, case), stdout=subprocess.PIPE, text=True,
        )
        for case, (seconds, *_) in CASES.items()
    }  # fmt: skip
    found = {}
    for case, one in running.items():
        out, _ = one.communicate(timeout=60)
        assert one.returncode == 0, case
        found[case] = json.loads(out)
    return found


@pytest.mark.parametrize("case", CASES)
def test_what_goes_wrong_is_said_and_costs_nothing_that_was_sampled(case: str, outcomes: dict[str, Any]) -> None:
    fine, log, left = outcomes[case]
    _, note, times, samples = CASES[case]
    assert sum(note in row["message"] for row in log) == times, log
    assert bool(fine) == samples
    if case == "small":
        assert {(row["tensor_active"], row["dram_active"]) for row in fine} == {(0.625, None)}
        assert left == ["tensor_active", "sm_active"]
    if case in ("overflow", "flag"):
        of_first = sorted(row["t_ns"] for row in fine if row["device"] == "cuda:0")
        widest = max(b - a for a, b in pairwise(of_first))
        assert (widest > 100_000_000) == (case == "overflow"), "what it held is missing"
        assert of_first[-1] - of_first[0] > S, "sampling has begun anew"
        assert [row["dropped"] for row in log if note in row["message"]] == [pytest.approx(13, abs=12)]
    if case == "crash":
        assert not left, "NVML's counters are wanted again"


@pytest.mark.skipif(find_library("cuda") is not None, reason="there is a driver")
def test_without_a_driver_the_log_says_so_and_the_run_goes_its_way(moescope: Moescope, tmp_path: Path) -> None:
    done = moescope("run", "--pm-sampling", "10ms", "-o", "rec", "--", sys.executable, "-c", "import torch; exit(3)")
    assert done.returncode == 3, done.stderr
    assert [text.partition(" (")[0] for text in _told(tmp_path / "rec")] == ["no NVIDIA driver on this machine"]
    assert "2 warning(s) in the recording's log" in done.stderr  # that, and the exit code


def test_the_process_that_samples_ends_with_the_recorder_however_that_ends(tmp_path: Path, library: Path) -> None:
    (tmp_path / "target.py").write_text("import time; time.sleep(1.5)")
    command = [sys.executable, "-m", "moescope", "run", "--pm-sampling", "10ms", "-o", "rec", "--"]
    run = subprocess.Popen(
        [*command, sys.executable, "target.py"], cwd=tmp_path, env=pm_library.environment(library), stderr=-3
    )
    sampling = _until(lambda: [pid for pid in _children(run.pid) if "pm_sampling.process" in _words(pid)])
    _until(lambda: _blocked(sampling[0]) == 0)  # what the recorder blocks is for its target
    run.send_signal(signal.SIGKILL)
    run.wait()
    _until(lambda: not any("pm_sampling.process" in _words(pid) for pid in sampling))


def _until(found: Any) -> Any:
    for _ in range(200):
        if answer := found():
            return answer
        time.sleep(0.05)
    raise AssertionError("did not come about within 10 s")


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _blocked(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1], 16) for line in lines if line.startswith("SigBlk"))


def _words(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def test_what_cannot_be_sampled_is_refused(moescope: Moescope) -> None:
    done = moescope("run", "--pm-sampling", "0.5ms", "--", "true")
    assert done.returncode == 2
    assert "samples lie at least 1ms apart" in done.stderr
    done = moescope("run", "--pm-sampling", "5ms", "--collect", "kernels", "--", "true")
    assert done.returncode == 2
    assert "--collect leaves out `device`" in done.stderr


PROBE = """
import json
from moescope.collectors.samplers.pm_sampling.check import pm_sampling
print(json.dumps(pm_sampling()))
"""


@pytest.mark.parametrize(
    ("case", "state", "note"),
    [
        ("", "ok", "off unless asked for (run --pm-sampling 10ms): tensor_active, sm_active"),
        ("held", "ok", "off unless asked for"),
        ("denied", "missing", "NVreg_RestrictProfilingToAdminUsers=0"),
        ("none", "missing", "nvidia-smi"),
    ],
)
def test_doctor_asks_and_takes_nothing(library: Path, case: str, state: str, note: str) -> None:
    env = pm_library.environment(library, case)
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found[0] == state
    assert note in found[2]
