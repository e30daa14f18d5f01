"""GPU samples: NVML's numbers in units of ours, and the real sampler over a library with NVML's entry points.

No GPU has been sampled by this code yet; literals are those of nvml.h and of nvml_stand_in.c.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.samplers.nvml_devices import gpus_seen, visible
from moescope.collectors.samplers.nvml_gpm import gpm_of
from moescope.collectors.samplers.nvml_links import paired
from moescope.collectors.samplers.nvml_topology import nvlinks_between
from moescope.collectors.samplers.nvml_units import (
    GPM_COLUMNS,
    GPM_RATES,
    RunningTotal,
    grown,
    link_metrics,
    pcie_peak,
    rate,
    share,
    throttle_words,
)
from moescope.collectors.schema import TABLES, THROTTLED
from tests.collectors import nvml_library
from tests.collectors.reading import meta, rows
from tests.conftest import Moescope

A, B = "GPU-aaaaaaaa-0000-0000-0000-000000000000", "GPU-bbbbbbbb-0000-0000-0000-000000000001"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return nvml_library.built(tmp_path_factory.mktemp("nvml"))


def test_masks_of_throttling_are_words() -> None:
    assert throttle_words(0) == ""
    assert throttle_words(0x1) == "idle"
    assert throttle_words(0x44) == "power cap, thermal (hardware)"
    assert throttle_words(0x8 | 0x80 | 0x4000) == "hardware slowdown, power brake, 0x4000"
    assert set(throttle_words(0x7FF).split(", ")) >= set(THROTTLED)


def test_percentages_are_shares_and_rates_are_bytes() -> None:
    assert [share(value) for value in (0.0, 62.5, 100.0, 100.2)] == [0.0, 0.625, 1.0, 1.0]
    assert [share(value) for value in (-1.0, 180.0, float("nan"), float("inf"))] == [None] * 4
    assert rate(1.5) == 1_572_864
    assert rate(float("nan")) is rate(-3.0) is None


def test_every_nvlink_has_its_own_pair_of_metrics() -> None:
    # nvml.h: L0 RX 62 TX 63, L17 RX 96 TX 97, L18 RX 212 TX 213, L35 RX 246 TX 247.
    assert [link_metrics(link) for link in (0, 17, 18, 35)] == [(63, 62), (97, 96), (213, 212), (247, 246)]
    assert link_metrics(36) is link_metrics(-1) is None
    numbers = [number for link in range(36) for number in link_metrics(link) or ()]
    assert len({*numbers, *GPM_COLUMNS, *GPM_RATES}) == 72 + len(GPM_COLUMNS) + len(GPM_RATES)


def test_gpm_metrics_that_were_not_told_are_left_out_never_zero() -> None:
    found = gpm_of({5: 62.5, 10: 250.0, 60: 1.0, 62: 2.0, 63: 4.0, 64: 1.0}, {0: (63, 62), 1: (65, 64)}, 500)
    assert found.columns == {"tensor_active": 0.625, "dram_active": None, "nvlink_rx_bytes_per_s": 1 << 20}
    assert found.links == {0: (4 << 20, 2 << 20)}
    assert {*GPM_COLUMNS.values(), *GPM_RATES.values()} < {column.name for column in TABLES["device_samples"]}


def test_pcie_line_rates_are_those_of_the_specification() -> None:
    assert pcie_peak(3, 16) == pytest.approx(15.754e9, rel=1e-4)
    assert pcie_peak(4, 8) == pytest.approx(15.754e9, rel=1e-4)
    assert pcie_peak(5, 16) == pytest.approx(63.015e9, rel=1e-4)
    assert pcie_peak(9, 16) is pcie_peak(5, 0) is None


def test_a_counter_that_wraps_or_restarts_is_followed_or_given_up_but_never_guessed() -> None:
    assert grown(10, 25, 64, None) == 15
    assert grown(10, 4, 64, None) == 4, "counts from zero after a reset"
    assert grown(2**32 - 6, 4, 32, 1000) == 10
    assert grown(2**32 - 6, 4, 32, 2**32) is None
    assert grown(7, 9, 32, None) is None
    total = RunningTotal()
    assert [total.take(value, 32, 100) for value in (2**32 - 1, 4, 9)] == [0, 5, 10]
    assert total.take(9, 32, 2**40) is None
    assert total.take(10, 32, 100) is None, "what was lost once is missing from every later total"


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=8), st.integers(0, 2**32 - 1), st.sampled_from([32, 64]))
def test_running_totals_are_the_sum_of_what_was_counted(steps: list[int], start: int, bits: int) -> None:
    total, counted = RunningTotal(), start
    total.take(start % 2**bits, bits, 2**31)
    for at, step in enumerate(steps, 1):
        counted += step
        assert total.take(counted % 2**bits, bits, 2**31) == sum(steps[:at])


def test_links_are_paired_by_direction_and_need_both() -> None:
    values = [(1, 64), (2, 64), None, (4, 64), (5, 64), (6, 64)]
    assert paired([0, 3, 7], values) == {0: (1, 2), 7: (5, 6)}


def test_ways_between_gpus_are_told_from_where_links_lead() -> None:
    switched = Counter({"NVSwitch": 18})
    assert nvlinks_between(switched, Counter({"NVSwitch": 12}), "B") == ("NVSwitch", 12)
    assert nvlinks_between(Counter({"B": 4, "C": 4}), Counter({"A": 4}), "B") == ("NVLink", 4)
    assert nvlinks_between(Counter({"C": 4}), Counter({"C": 4}), "B") is None
    assert nvlinks_between(Counter(), switched, "") is None


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        (None, [0, 1]),
        ("", []),
        ("1", [1]),
        ("1,0", [1, 0]),
        ("0,7,1", [0]),
        ("0, 1", [0, 1]),
        ("-1,0", []),
        (B, [1]),
        ("GPU-bbbb,GPU-aaaa", [1, 0]),
        ("GPU-", []),
        (f"MIG-{A}/3/0", [0]),
        ("MIG-7f0e8c2c", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(variable: str | None, expected: list[int]) -> None:
    assert visible([A, B], variable) == expected


PROBE = """
import json
from moescope.collectors.samplers.nvml_check import gpu_counters
from moescope.collectors.clock import Clock
from moescope.collectors.samplers.nvml import GpuSampler
sampler, said = GpuSampler(Clock(0, 0), "h"), []
try:
    sampler.open()
    sampler.attach(0)
    for rows in (sampler.poll(), sampler.poll(), sampler.close()):
        said += [row["message"] for table, _, row in rows if table == "log"]
except Exception as error:
    said = [str(error)]
print(json.dumps([*gpu_counters(), said]))
"""


def test_what_a_process_calls_its_gpus_is_read_from_how_it_was_started(tmp_path: Path) -> None:
    (tmp_path / "proc/7").mkdir(parents=True)
    environ = tmp_path / "proc/7/environ"
    environ.write_bytes(b"HOME=/root\0CUDA_VISIBLE_DEVICES=1\0LAST=1")
    assert gpus_seen(7, [A, B], tmp_path) == {"cuda:0": B}
    environ.write_bytes(b"HOME=/root\0NOT_CUDA_VISIBLE_DEVICES=1\0")
    assert gpus_seen(7, [A, B], tmp_path) == {"cuda:0": A, "cuda:1": B}
    assert gpus_seen(8, [A, B], tmp_path) is None
    environ.write_bytes(b"")
    assert gpus_seen(7, [A, B], tmp_path) is None, "a process that has ended tells nothing"


@pytest.mark.parametrize(
    ("case", "state", "note"),
    [
        ("ampere", "fallback", "this GPU has none (Hopper and later do)"),
        ("denied", "fallback", "NVreg_RestrictProfilingToAdminUsers"),
        ("held", "fallback", "dcgmi profiling --pause"),
        ("stopped", "missing", "the driver is not loaded"),
    ],
)
def test_what_stands_in_the_way_of_counters_is_said_with_what_to_do(
    library: Path, case: str, state: str, note: str
) -> None:
    env = nvml_library.environment(library, case)
    done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found[0] == state
    assert note in found[2]
    told = found[3]
    assert sum(note in message for message in told) == len(told) == (1 if case == "stopped" else 2), "each GPU, once"


TARGET = """
import time, torch
until = time.monotonic() + 0.8
x = torch.ones(64, 64)
while time.monotonic() < until:
    (x @ x).sum()
"""


def totals(samples: list[dict[str, Any]], link: str, column: str) -> list[int]:
    return [row[column] for row in sorted(samples, key=lambda row: row["t_ns"]) if row["link"] == link]


def test_a_run_records_its_gpus_their_links_and_what_they_are(
    moescope: Moescope, tmp_path: Path, library: Path
) -> None:
    (tmp_path / "target.py").write_text(TARGET)
    env = nvml_library.environment(library, CUDA_VISIBLE_DEVICES="1,0")
    done = moescope("run", "--gpu-period", "200ms", "-o", "rec", "--", sys.executable, "target.py", env=env)
    assert done.returncode == 0, done.stderr
    recording = tmp_path / "rec"
    facts = meta(recording)
    assert facts["collectors"]["gpu"] == "NVML GPM"
    assert [gpu["uuid"] for gpu in facts["hardware"]["gpu_devices"]] == [B, A], "in the order that CUDA numbers them"
    assert facts["hardware"]["gpu_topology"] == [{"a": "cuda:0", "b": "cuda:1", "by": "NVLink", "nvlinks": 2}]
    assert facts["hardware"]["gpus"] == ["NVIDIA H100 80GB HBM3"] * 2

    samples = [row for row in rows(recording, "device_samples") if row["device"] == "cuda:1"]
    known = [row for row in samples if row["span_ns"] is not None]
    assert known
    for row in known:
        assert row["span_ns"] >= 100_000_000
        assert (row["uuid"], row["tensor_active"], row["hmma_active"], row["imma_active"]) == (A, 0.625, 0.62, 0.0)
        assert (row["sm_active"], row["occupancy"], row["dram_active"], row["dfma_active"]) == (0.91, 0.25, 0.48, None)
        assert (row["pcie_tx_bytes_per_s"], row["nvlink_rx_bytes_per_s"]) == (512 * 2**20, 3000 * 2**20)
        assert (row["power_w"], row["clock_hz"], row["memory_clock_hz"]) == (350.5, 1_755_000_000, 2_619_000_000)
        assert (row["memory_bytes"], row["memory_total_bytes"]) == (10 << 30, 80 << 30)
        assert (row["throttle"], row["temperature_c"]) == ("power cap, thermal (hardware)", 61.0)
        assert (row["ecc_corrected"], row["ecc_uncorrected"], row["gpu_busy"], row["memory_busy"]) == (5, 0, 0.97, 0.4)
    others = [row for row in rows(recording, "device_samples") if row["device"] == "cuda:0"]
    assert {row["throttle"] for row in others} == {""}

    links = rows(recording, "link_samples")
    names = {f"nvlink{gpu}.{link}" for gpu in (0, 1) for link in (0, 1)}
    assert {row["link"] for row in links if "nvlink" in row["link"]} == names
    for link, kib in (("nvlink0.0", 10), ("nvlink1.1", 20)):
        sent, received = totals(links, link, "tx_bytes"), totals(links, link, "rx_bytes")
        assert sent == [kib * 1024 * (reading + 1) for reading in range(len(sent))]
        assert received == [total // 2 for total in sent]
        assert {row["peak_bytes_per_s"] for row in links if row["link"] == link} == {26_562_000_000}
    pcie = [row for row in links if row["link"] == "pcie1"]
    spans = [row["span_ns"] for row in sorted(known, key=lambda row: row["t_ns"])]
    assert max(row["tx_bytes"] for row in pcie) == pytest.approx(sum(spans) / 1e9 * 512 * 2**20, rel=1e-6)
    assert not [row for row in rows(recording, "log") if row["source"] == "gpu"]
    assert [row["gpus"] for row in facts["ranks"]] == [{"cuda:0": B, "cuda:1": A}]

    shown = moescope("summary", "rec")
    assert shown.returncode == 0, shown.stderr
    assert "GPU cuda:1, all of the run: tensor cores 62.5% of the time by counter (HMMA 62.0%)" in shown.stdout
    assert "350 W, 1755 MHz [measured]. WARNING: its clock was held down in 100% of the samples" in shown.stdout
    assert "pcie0" in shown.stdout
