"""GPUs and links in a summary: means over time by a count by hand, throttling told, unknown is null with a reason."""

from __future__ import annotations

from typing import Any

import pytest

from moescope.profiler.hardware.samples import NOT_TOLD, host_use, told_of_devices
from moescope.profiler.report.devices import device_notes
from tests.live_recording import MemorySource

S = 1_000_000_000


def sample(at: float, device: str = "cuda:0", **values: Any) -> dict[str, Any]:
    return {"host": "h", "device": device, "t_ns": int(at * S), **values}


def told(source: MemorySource) -> dict[str, Any]:
    return told_of_devices([host_use(source)])


def test_shares_are_means_by_the_time_they_are_of_and_stay_apart_by_gpu() -> None:
    rows = [
        sample(1, tensor_active=0.2, span_ns=3 * S, power_w=100.0, throttle="", ecc_corrected=4, temperature_c=50.0),
        sample(2, tensor_active=0.6, span_ns=1 * S, power_w=300.0, throttle="power cap", ecc_corrected=6),
        sample(3, power_w=200.0, throttle="idle, application clocks", ecc_corrected=1),
        sample(1, "cuda:10", gpu_busy=0.5),
        sample(1, "cuda:2", sm_active=1.0, span_ns=S),
        sample(1, "cpu", sm_active=0.9),
        sample(1, "cpu/4711", sm_active=0.9),
    ]
    gpus = told(MemorySource().add("device_samples", rows))["gpus"]
    assert [gpu["device"] for gpu in gpus] == ["cuda:0", "cuda:2", "cuda:10"]
    first = gpus[0]
    assert first["tensor_active"] == pytest.approx((0.2 * 3 + 0.6 * 1) / 4)
    assert (first["samples"], first["power_w"], first["temperature_c"]) == (3, 200.0, 50.0)
    assert (first["throttled_share"], first["throttle"]) == (pytest.approx(1 / 3), {"power cap": pytest.approx(1 / 3)})
    assert first["ecc_corrected"] == 3, "two more, then a count from zero that reached one"
    assert (first["sm_active"], first["sm_active_reason"]) == (None, NOT_TOLD)
    assert (gpus[2]["tensor_active"], gpus[2]["gpu_busy"], gpus[2]["throttled_share"]) == (None, 0.5, None)


def test_links_are_told_over_their_line_rate_in_each_direction() -> None:
    def at(second: float, tx: int, rx: int, link: str = "nvlink0.1", peak: int | None = 1000) -> dict[str, Any]:
        row = {"host": "h", "link": link, "t_ns": int(second * S), "tx_bytes": tx, "rx_bytes": rx}
        return row | {"peak_bytes_per_s": peak}

    rows = [
        at(0, 0, 50),
        at(1, 900, 60),
        at(4, 1000, 20),
        at(0, 7, 7, "lo", None),
        at(2, 9, 7, "lo", None),
        at(0, 1, 1, "x"),
    ]
    first, second = told(MemorySource().add("link_samples", rows))["links"]
    assert (first["link"], first["tx_peak_share"], first["tx_peak_share_reason"]) == (
        "lo", None, "the device does not tell its line rate",
    )  # fmt: skip
    assert (second["tx_bytes"], second["tx_bytes_per_s"], second["tx_busiest_bytes_per_s"]) == (1000, 250.0, 900.0)
    assert (second["rx_bytes"], second["tx_peak_share"], second["rx_peak_share"]) == (30, 0.25, 0.0075)
    (line,) = device_notes({"gpus": None, "links": [first, second]})
    assert "nvlink0.1 0.00 GB/s out (25.0%)" in line


def test_a_source_without_samples_says_so() -> None:
    answer = told(MemorySource())
    assert (answer["gpus"], answer["links"]) == (None, None)
    assert answer["gpus_reason"]
    assert answer["links_reason"]
    assert device_notes(answer) == []


def test_a_line_warns_of_clocks_held_down_and_does_not_mix_counters_of_use() -> None:
    held = sample(1, tensor_active=0.625, hmma_active=0.62, imma_active=0.0, span_ns=S, throttle="thermal (hardware)")
    plain = sample(1, "cuda:1", gpu_busy=0.97, throttle="idle")
    lines = device_notes(told(MemorySource().add("device_samples", [held, plain])))
    assert "tensor cores 62.5% of the time by counter (HMMA 62.0%)" in lines[0]
    assert "held down in 100% of the samples (thermal (hardware) 100%)" in lines[0]
    assert "tensor cores by counter –" in lines[1]
    assert "SMs" not in lines[1]
    assert "WARNING" not in lines[1]
