"""Calibration of a GPU: the same code on the CPU gives rates that follow from its own timing; no GPU has run it yet."""

from __future__ import annotations

import pytest

from moescope.collectors.calibrate_gpu import SMALL_BYTES, measure
from moescope.profiler.hardware.table import hardware_of


def test_every_peak_is_measured_or_null_with_a_reason() -> None:
    torch = pytest.importorskip("torch")
    found = measure(torch.device("cpu"), sizes=(32, 64), copy_bytes=1 << 16, budget_s=0.01)
    for name in ("fp8", "bf16"):
        assert (found[name] is None) == (f"{name}_reason" in found)
    assert found["bf16"]["flops_per_s"] > 1e6
    assert found["copy_bytes_per_s"]["value"] > 1e6
    assert 0 < found["small_copy_s"]["value"] < 1
    assert found["small_copy_s"]["bytes"] == SMALL_BYTES
    assert {row["evidence"] for row in found.values() if isinstance(row, dict)} == {"measured"}


def test_measured_peaks_stand_in_for_a_gpu_that_no_document_tells_of() -> None:
    row = {"evidence": "measured", "source": "moescope calibrate"}
    gpus = [
        {"name": name, "fp8": None, "bf16": {"flops_per_s": 5e14} | row, "copy_bytes_per_s": {"value": 3e12} | row}
        for name in ("NVIDIA Novelty 1", "NVIDIA H100 80GB HBM3")
    ]
    meta = {"hardware": {"gpus": ["NVIDIA Novelty 1", "NVIDIA H100 80GB HBM3", "NVIDIA Other"], "gpu_peaks": gpus}}
    measured, from_document, unknown = (hardware_of(meta, 0, f"cuda:{number}") for number in range(3))
    bf16 = measured.peak("bf16")
    assert bf16 is not None
    assert (bf16.value, bf16.evidence, measured.bytes_per_s, measured.reason) == (5e14, "measured", 3e12, "")
    assert measured.peak("fp8_e4m3") is None
    known = from_document.peak("bf16")
    assert known is not None
    assert known.evidence == "modelled"
    assert unknown.peak("bf16") is None
    assert unknown.reason
