"""The hardware table: devices are found by the names that traces write, and its figures are the dense ones."""

import tomllib
from pathlib import Path

import pytest

from moescope.profiler import hardware
from moescope.profiler.hardware.table import all_hardware, hardware_named, hardware_of, link_rates
from moescope.profiler.source import open_source

DATA = Path(__file__).parents[1] / "data"
TABLE = Path(hardware.__file__).with_name("hardware.toml")


@pytest.mark.parametrize(
    ("name", "device", "fp8", "bf16", "bandwidth"),
    [
        ("NVIDIA H100 80GB HBM3", "H100 SXM", 1979, 989.5, 3.35),
        ("NVIDIA H100 PCIe", "H100 PCIe", 1513, 756.5, 2.0),
        ("NVIDIA H100 NVL", "H100 NVL", 1670.5, 835.5, 3.9),
        ("NVIDIA H200", "H200 SXM", 1979, 989.5, 4.8),
        ("NVIDIA H800", "H800 SXM", 1979, 989.5, 3.35),
        ("NVIDIA H20", "H20", 296, 148, 4.0),
        ("NVIDIA B200", "B200", 4500, 2250, 8.0),
        ("NVIDIA B300 SXM6 AC", "B300", 4500, 2250, 8.0),
        ("NVIDIA GB200", "GB200", 5000, 2500, 8.0),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB", None, 312, 2.039),
        ("NVIDIA A100-SXM4-40GB", "A100 SXM 40GB", None, 312, 1.555),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB", None, 312, 1.935),
        ("AMD Instinct MI300X", "MI300X", 2614.9, 1307.4, 5.3),
        ("AMD Instinct MI325X", "MI325X", 2614.9, 1307.4, 6.0),
        ("Tesla V100-SXM2-16GB", "V100 SXM2", None, None, 0.9),
    ],
)
def test_a_device_is_found_by_the_name_that_traces_write(name, device, fp8, bf16, bandwidth):
    found = hardware_named(name)
    assert found.name == device
    for dtype, teraflops in (("fp8_e4m3", fp8), ("bf16", bf16)):
        peak = found.peak(dtype)
        assert (peak is None) == (teraflops is None)
        assert peak is None or peak.value == pytest.approx(teraflops * 1e12)
    assert found.bytes_per_s == pytest.approx(bandwidth * 1e12)


def test_units_decide_where_the_name_leaves_the_device_open():
    assert [hardware_named("NVIDIA H100", units).name for units in (132, 114, None)] == [
        "H100 SXM", "H100 PCIe", "H100 SXM"
    ]  # fmt: skip


def test_an_unknown_device_and_a_slice_have_no_peaks_but_a_reason():
    for name in ("Grace Kelly 9000", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", ""):
        assert hardware_named(name) is None
        meta = {"ranks": [{"rank": 0, "device_properties": {"cuda:0": {"name": name, "numSms": 16}}}]}
        found = hardware_of(meta, 0, "cuda:0")
        assert (found.units, found.flops, found.bytes_per_s) == (16, {}, None)
        assert found.reason
    assert "H100A" not in [device.name for device in all_hardware()]
    assert hardware_named("NVIDIA H1000") is None
    assert hardware_named("NVIDIA B2000") is None


def test_what_a_trace_tells_of_its_device_outranks_the_table():
    (b300,) = open_source([DATA / "tracelens_sglang_moe_decode_b300"]).meta["ranks"]
    found = hardware_of({"ranks": [b300]}, 0, "cuda:0")
    assert (found.name, found.units, found.unit_limits.threads) == ("B300", 148, 2048)
    cut = {**b300["device_properties"]["cuda:0"], "numSms": 140, "sharedMemPerMultiprocessor": 1000}
    found = hardware_of({"ranks": [{"rank": 0, "device_properties": {"cuda:0": cut}}]}, 0, "cuda:0")
    assert (found.units, found.unit_limits.shared_bytes) == (140, 1000)


def test_every_figure_names_its_document_and_no_sparse_figure_stands_undivided():
    table = tomllib.loads(TABLE.read_text(encoding="utf-8"))
    for entry in table["device"]:
        figures = [*entry.get("flops", {}).items(), *entry.get("memory", {}).items(), *entry.get("links", {}).items()]
        for name, figure in figures:
            assert figure["source"] in table["sources"], (entry["name"], name)
            assert ("sparsity" not in figure.get("why", "")) or "without" in figure["why"] or figure["over"] >= 2
            assert figure.get("over", 1) == 1 or figure["why"]
    for name, peak in link_rates().items():
        assert peak.value > 1e9, name
    assert link_rates()["infiniband_ndr"].value == 50e9


def test_narrow_types_are_faster_by_the_factor_of_their_width():
    """Dense rates double as the width halves; sparse figures among dense ones would break that."""
    for device in all_hardware():
        for narrow, wide, low, high in (
            ("fp8", "bf16", 1.95, 2.05),
            ("bf16", "tf32", 1.9, 2.1),
            ("fp4", "fp8", 1.9, 3.1),
        ):
            if narrow in device.flops and wide in device.flops:
                assert low <= device.flops[narrow].value / device.flops[wide].value <= high, (device.name, narrow)
        assert device.flops.get("f16") == device.flops.get("bf16") or "bf16" not in device.flops


def test_a_cpu_s_peaks_are_the_measured_ones_shared_by_its_ranks():
    measured = {"flops_per_s": 4e9, "evidence": "measured", "source": "moescope calibrate"}
    meta = {
        "hardware": {"cores": 2, "peaks": {"bf16": measured, "copy_bytes_per_s": {"value": 8e9}}},
        "ranks": [{"rank": 0, "host": "a"}, {"rank": 1, "host": "a"}],
    }
    found = hardware_of(meta, 0, "cpu", ranks=2)
    assert (found.kind, found.units, found.bytes_per_s) == ("core", 2, 4e9)
    assert found.peak("fp8_e4m3").value == 2e9
    assert found.peak("bf16").evidence == "measured"
    assert hardware_of({"hardware": {"cores": 2}}, 0, "cpu").reason
