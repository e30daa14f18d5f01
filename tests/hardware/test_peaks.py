"""A GPU's peaks from its data sheet or as measured on it: figures follow the choice, and the view can switch."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from moescope.collectors.sidecar.writer import RecordingWriter
from moescope.profiler.commands.summary import command
from moescope.profiler.hardware.table import hardware_of, peaks_from, use_peaks
from moescope.profiler.live.feed import LiveFeed
from moescope.profiler.snapshot import Snapshot, View
from tests.live_recording import MemorySource, kernel, window
from tests.tui.driving import drive, screen
from tests.tui.synthetic import SyntheticFeed, snapshot

H200 = "NVIDIA H200"
META: dict[str, Any] = {
    "hardware": {
        "gpu": H200,
        "gpu_peaks": [
            {
                "name": H200,
                "fp8": {"flops_per_s": 1.5e15, "source": "moescope calibrate"},
                "bf16": None,
                "copy_bytes_per_s": {"value": 4.2e12, "source": "moescope calibrate"},
            }
        ],
    },
    "ranks": [{"rank": 0, "device_properties": {"cuda:0": {"name": H200}}}],
}
PRODUCT = {
    "rank": 0,
    "device": "cuda:0",
    "stream": "7",
    "name": "deep_gemm::fp8_gemm_kernel",
    "start_ns": 0,
    "dur_ns": 1000,
    "flops": 750_000_000,
    "dtype": "fp8_e4m3",
    "evidence": "measured",
}


@pytest.fixture(autouse=True)
def as_usual() -> Iterator[None]:
    yield
    use_peaks("data-sheet")


def test_what_was_measured_replaces_what_the_document_says_and_no_more() -> None:
    sheet, measured = hardware_of(META, 0, "cuda:0"), hardware_of(META, 0, "cuda:0", peaks="measured")
    assert (sheet.flops["fp8"].value, measured.flops["fp8"].value) == (1979e12, 1.5e15)
    assert measured.flops["fp8"].evidence == "measured"
    assert measured.flops["bf16"] == sheet.flops["bf16"]
    assert (sheet.bytes_per_s, measured.bytes_per_s) == (4.8e12, 4.2e12)
    assert replace(measured, flops=sheet.flops, memory_bytes_per_s=sheet.memory_bytes_per_s) == sheet


def test_without_a_measurement_the_document_stands() -> None:
    meta = META | {"hardware": {"gpu": H200}}
    assert hardware_of(meta, 0, "cuda:0", peaks="measured") == hardware_of(meta, 0, "cuda:0")


def test_the_choice_holds_for_whoever_does_not_say() -> None:
    assert (peaks_from(), peaks_from(other=True)) == ("data-sheet", "measured")
    use_peaks("measured")
    assert (peaks_from(), peaks_from(other=True)) == ("measured", "data-sheet")
    assert hardware_of(META, 0, "cuda:0").flops["fp8"].value == 1.5e15


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_summary_takes_the_peaks_that_were_asked_for_on_any_process(jobs: str, tmp_path: Path) -> None:
    writer = RecordingWriter(tmp_path)
    writer.write_rows("rank-00000", "kernels", [PRODUCT])
    writer.write_rows("rank-00000", "windows", [{"rank": 0, "source": "cupti", "start_ns": 0, "dur_ns": 1000}])
    writer.write_meta(META | {"state": "finished", "version": 1})
    writer.close()

    def achieved(*options: str) -> float:
        done = CliRunner().invoke(command, [str(tmp_path), "--json", "-j", jobs, *options])
        assert done.exit_code == 0, done.output
        (rank,) = json.loads(done.output)["ranks"]
        return float(rank["matrix_use"]["achieved"])

    of_sheet, of_measured = achieved(), achieved("--peaks", "measured")
    done = CliRunner().invoke(command, [str(tmp_path), "-j", jobs, "--peaks", "measured"])
    assert f"moescope top {tmp_path} --peaks measured" in done.stderr
    assert of_sheet == pytest.approx(750 / 1979)
    assert of_measured == pytest.approx(750 / 1500)


def test_a_view_switches_between_both() -> None:
    source = MemorySource(meta=META).add("windows", [window(0, 1000) | {"source": "cupti"}])
    feed = LiveFeed(source.add("kernels", [kernel(0, 1000) | PRODUCT]))
    feed.poll()

    def share(seen: Snapshot) -> float | None:
        return next(engine for engine in seen.engines if engine.name == "Matrix units").share.value

    sheet, measured = feed.snapshot(View()), feed.snapshot(View(other_peaks=True))
    assert (share(sheet), share(measured)) == (pytest.approx(750 / 1979), pytest.approx(0.5))
    assert (sheet.peaks_note, measured.peaks_note) == ("", "measured peak")
    assert share(feed.snapshot(View(scrubber_cells=7))) == pytest.approx(750 / 1979)
    source.meta["hardware"].pop("gpu_peaks")
    again = LiveFeed(source)
    again.poll()
    assert again.snapshot(View(other_peaks=True)).peaks_note == "peak, not measured"


def test_a_key_asks_for_the_other_peaks_where_there_are_two() -> None:
    def feed(kind: str) -> SyntheticFeed:
        shown = snapshot()
        ranks = tuple(replace(row, units=replace(row.units, kind=kind)) for row in shown.ranks)
        return SyntheticFeed(replace(shown, ranks=ranks, peaks_note="measured peak"))

    gpu, cpu = feed("sm"), feed("core")
    drive(["P"], feed=gpu)
    assert gpu.views[-1].other_peaks
    drive(["P", "P"], feed=gpu)
    assert not gpu.views[-1].other_peaks
    assert "always those that were measured" in screen(["P"], feed=cpu)
    assert not cpu.views[-1].other_peaks
    for size in ((80, 24), (120, 40)):
        assert "% of measured peak" in screen([], feed=gpu, size=size)
