"""What bounds kernels, and what their work is, on traces and on kernels made for it."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from moescope.profiler.hardware.table import hardware_named, hardware_of
from moescope.profiler.labels import labels_of
from moescope.profiler.overlap.sweep import kernels_by_device, sweep
from moescope.profiler.roofline.answer import device_roofline, roofline_json
from moescope.profiler.roofline.bounds import ridge_tokens
from moescope.profiler.roofline.matrix_use import matrix_use
from moescope.profiler.roofline.work import kernel_work
from moescope.profiler.source import open_source
from tests.live_recording import MemorySource

DATA = Path(__file__).parents[1] / "data"
DLRM = DATA / "param_dlrm_8rank_v100" / "worker0_step_12.1694128201545.pt.trace.json.gz"
H100 = {"hardware": {"gpu": "NVIDIA H100 80GB HBM3"}}


def row(start, dur, name="gemm", **more):
    shape = {"grid": "132,1,1", "block": "128,1,1", "registers": 168, "shared_bytes": 200_000}
    base = {"rank": 0, "device": "cuda:0", "stream": "7", "name": name, "start_ns": start, "dur_ns": dur}
    return base | {"evidence": "measured", "phase_id": None} | shape | more


def names_of(source, device):
    names = source.table("kernels").column("name").to_pylist()
    return labels_of([names[at] for at in device.rows.tolist()])


def of(rows, meta=H100):
    source = MemorySource("trace", meta=meta).add("kernels", rows)
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    hardware = hardware_of(meta, 0, "cuda:0")
    roofline = device_roofline(device, swept, source.table("kernels"), hardware, names_of(source, device))
    return source, device, swept, roofline


SQUARE = {"op_call": 1, "shapes": "8192,8192;8192,8192"}
FEW_TOKENS = {"op": "aten::mm", "op_call": 1, "shapes": "16,7168;7168,8192", "dtype": "bf16"}
ADD = "void at::native::vectorized_elementwise_kernel<4, Add>(int)"
DEEP_GEMM = "void deep_gemm::fp8_gemm_kernel<4096u, 7168u, 64u, (deep_gemm::GemmType)0>(int)"


@pytest.mark.parametrize(
    ("kernel", "bound", "evidence"),
    [
        # 2 * 8192^3 at 989.5 TFLOP/s are 1111 µs: 79 % of 1400
        (row(0, 1_400_000, op="aten::mm", dtype="bf16", **SQUARE), "tensor", "derived"),
        # the same as FP8, whose peak is twice as high
        (row(0, 700_000, op="aten::_scaled_mm", dtype="fp8_e4m3", **SQUARE), "tensor", "derived"),
        # 16 tokens by a weight of 117 MB: 35 µs at 3.35 TB/s
        (row(0, 45_000, **FEW_TOKENS), "memory", "derived"),
        # little to do
        (row(0, 8_000, op="aten::mm", op_call=1, shapes="16,128;128,256", dtype="bf16"), "latency", "derived"),
        # few units
        (row(0, 90_000, **FEW_TOKENS) | {"grid": "16,1,1"}, "latency", "derived"),
        # which experts' weights are read is not recorded: 64 of 29 MB are 561 µs
        (
            row(0, 700_000, op="aten::_grouped_mm", op_call=1, shapes="128,7168;64,7168,2048;64", dtype="bf16"),
            "memory",
            "inferred",
        ),
        # nothing known but its class and shape
        (row(0, 80_000, ADD), "memory", "inferred"),
        (row(0, 3_000, ADD), "latency", "inferred"),
        (row(0, 80_000, "nvjet_tst_128x256_64x4_1x2_h_bz_coopA_TNT"), "", "inferred"),
        # the name tells the weight: 29 MB in FP8 are 8.8 µs, of 12 µs
        (row(0, 12_000, DEEP_GEMM), "memory", "inferred"),
        (row(0, 60_000, DEEP_GEMM), "", "inferred"),
        (row(0, 60_000, "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(int)"), "link", "inferred"),
        (row(0, 60_000, "Memcpy HtoD (Pinned -> Device)", grid=None), "link", "inferred"),
        (row(0, 60_000, "Memcpy DtoD (Device -> Device)", grid=None), "memory", "inferred"),
        # read and written: 2 x 67 MB are 40 µs at 3.35 TB/s
        (row(0, 60_000, "Memcpy DtoD (Device -> Device)", grid=None, bytes=67_000_000), "memory", "derived"),
        (
            row(0, 60_000, ADD, op="aten::add", op_call=1, shapes="8192,4096;8192,4096", dtype="bf16"),
            "memory",
            "derived",
        ),
    ],
)
def test_a_kernel_s_bound_follows_from_its_work_shape_and_duration(kernel, bound, evidence):
    found = of([kernel])[3].bounds
    assert (found.names[0], found.evidence[0]) == (bound, evidence)
    assert found.reasons[0]


def test_without_a_peak_nothing_is_claimed_but_what_needs_none():
    rows = [
        row(0, 900_000, op="aten::mm", op_call=1, shapes="8192,8192;8192,8192", dtype="bf16"),
        row(900_000, 3_000, "void at::native::vectorized_elementwise_kernel<4, Add>(int)"),
    ]
    source, device, swept, roofline = of(rows, {"hardware": {"gpu": "Grace Kelly 9000", "sms": 132}})
    assert roofline.bounds.names.tolist() == ["", "latency"]
    assert "Grace Kelly 9000" in roofline.bounds.reasons[0]
    assert roofline_json(roofline)["roofline"] is None
    use = matrix_use(source, device, swept, roofline)
    assert use["achieved"] is None
    assert use["flops_per_s"] == pytest.approx(2 * 8192**3 / 903e-6)


def test_products_that_outrun_the_f32_peak_ran_as_tf32():
    call = {"op": "aten::mm", "op_call": 1, "shapes": "4096,4096;4096,4096", "dtype": "f32"}
    # 2 * 4096^3 operations take 2.05 ms at 67 TFLOP/s
    rows = [row(0, 400_000, "some_gemm", **call), row(500_000, 3_000_000, "other_gemm", **(call | {"op_call": 2}))]
    work = of(rows)[3].work
    assert work.dtypes.tolist() == ["tf32", "f32"]


def test_several_kernels_of_a_call_share_its_operations_and_helpers_have_none():
    call = {"op": "aten::mm", "op_call": 5, "shapes": "64,512;512,256", "dtype": "bf16"}
    rows = [
        row(0, 300, "cutlass_gemm_bf16", **call),
        row(300, 100, "cutlass_gemm_bf16", **call),
        row(400, 50, "void splitKreduce_kernel<bf16>(int)", **call),
        row(500, 50, "cutlass_gemm_bf16", **(call | {"op_call": 6})),
    ]
    source, device, *_ = of(rows)
    work = kernel_work(device, source.table("kernels"))
    whole = 2 * 64 * 512 * 256
    assert work.flops.tolist() == [whole * 0.75, whole * 0.25, 0, whole]
    assert work.products.tolist() == [True, True, False, True]


def test_operations_of_dlrm_s_products_equal_those_of_the_operators_in_the_trace():
    """Every product's operator once, from the trace's own shapes: 2 m k n each, and batches of them."""
    operations, operators = 0, {"aten::mm": (0, 1), "aten::addmm": (1, 2), "aten::bmm": (0, 1)}
    for event in json.loads(gzip.decompress(DLRM.read_bytes()))["traceEvents"]:
        if event.get("cat") == "cpu_op" and event["name"] in operators:
            a, b = (event["args"]["Input Dims"][at] for at in operators[event["name"]])
            operations += 2 * (a[0] if len(a) == 3 else 1) * a[-2] * a[-1] * b[-1]
    source = open_source([DLRM])
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    hardware = hardware_of(source.meta, 0, "cuda:0")
    roofline = device_roofline(device, swept, source.table("kernels"), hardware, names_of(source, device))
    assert np.nansum(roofline.work.flops) == pytest.approx(operations)
    use = matrix_use(source, device, swept, roofline)
    assert use["flops_known_share"] == 1
    assert use["achieved"] == pytest.approx(operations / 13009e-6 / 15.7e12)
    assert use["by_dtype"]["f32"]["flops"] == pytest.approx(operations)


def test_one_product_of_dlrm_by_hand():
    """aten::addmm of 16 samples, 512 to 512: 8,388,608 operations; weight, samples, bias and result are 1.1 MB."""
    source = open_source([DLRM])
    (device,) = kernels_by_device(source.table("kernels"))
    work = kernel_work(device, source.table("kernels"))
    table = source.table("kernels").to_pylist()
    (at,) = [
        at
        for at, number in enumerate(device.rows.tolist())
        if table[number]["shapes"] == "512;16,512;512,512" and "sgemm" in table[number]["name"]
    ]
    assert work.flops[at] == 8_388_608
    assert work.bytes[at] == 4 * (512 * 512 + 16 * 512 + 512 + 16 * 512)
    hardware = hardware_of(source.meta, 0, "cuda:0")
    roofline = device_roofline(device, sweep(device), source.table("kernels"), hardware, names_of(source, device))
    assert roofline.bounds.names[at] == "latency"
    assert roofline.bounds.roof_ns[at] == pytest.approx(1_116_160 / 0.9e12 * 1e9)


def test_shares_of_the_summary_are_of_all_kernel_time_and_rates_of_the_known_part():
    rows = [
        row(0, 1_000_000, op="aten::mm", op_call=1, shapes="8192,8192;8192,8192", dtype="bf16"),
        row(1_000_000, 1_000_000, "nvjet_tst_128x256"),
        row(2_000_000, 2_000_000, "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(int)"),
    ]
    *_, roofline = of(rows)
    told = roofline_json(roofline)["roofline"]
    assert told["bounds"] == {"tensor": 0.25, "memory": 0.0, "latency": 0.0, "link": 0.5, "unknown": 0.25}
    gemm = next(one for one in told["classes"] if one["class"] == "gemm")
    assert (gemm["known_us"], gemm["total_us"], gemm["bound"]) == (1000.0, 2000.0, None)
    assert gemm["flops_per_s"] == pytest.approx(2 * 8192**3 / 1e-3)
    assert gemm["share_of_roof"] == pytest.approx(2 * 8192**3 / 989.5e12 / 1e-3)
    assert told["peaks"]["fp8"]["flops_per_s"] == 1979e12
    assert "sparsity" in told["peaks"]["fp8"]["source"]


def test_the_counter_and_the_achieved_rate_stand_apart():
    source, device, swept, roofline = of([row(0, 1000, op="aten::mm", op_call=1, shapes="8,8;8,8", dtype="bf16")])
    samples = [
        {"host": "a", "device": "cuda:0", "t_ns": at, "tensor_active": used} for at, used in ((1, 0.2), (9, 0.6))
    ]
    source.add("device_samples", [*samples, samples[0] | {"t_ns": 5000}, samples[0] | {"device": "cuda:1"}])
    use = matrix_use(source, device, swept, roofline)
    assert (use["counter"], use["counter_evidence"], use["counter_samples"]) == (pytest.approx(0.4), "measured", 2)
    assert use["achieved"] == pytest.approx(2 * 8**3 / 1e-6 / 989.5e12)
    assert use["evidence"] == "derived"


def test_a_rank_that_sees_its_own_gpu_alone_gets_the_counter_of_that_one():
    source, device, swept, roofline = of([row(0, 1000, op="aten::mm", op_call=1, shapes="8,8;8,8", dtype="bf16")])
    source.meta["ranks"] = [{"rank": device.rank, "gpus": {"cuda:0": "GPU-b"}}]
    samples = [
        {"device": name, "uuid": uuid, "t_ns": 1, "tensor_active": used}
        for name, uuid, used in (("cuda:0", "GPU-a", 0.2), ("cuda:1", "GPU-b", 0.7))
    ]
    source.add("device_samples", samples)
    assert matrix_use(source, device, swept, roofline)["counter"] == pytest.approx(0.7)


def test_the_ridge_is_peak_over_twice_the_bandwidth():
    assert ridge_tokens(hardware_named("NVIDIA H800"), "fp8") == pytest.approx(1979e12 / (2 * 3.35e12))
    assert ridge_tokens(hardware_named("NVIDIA H100 80GB HBM3"), "bf16") == pytest.approx(989.5e12 * 2 / (2 * 3.35e12))
    assert ridge_tokens(hardware_named("NVIDIA A100-SXM4-80GB"), "fp8") is None
