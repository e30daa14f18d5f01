"""What is said of a device on rows that no recorder would write: figures or reasons, no NaN and no traceback."""

import json
import random

import pytest

from moescope.collectors.schema import TABLES
from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows, sweep
from moescope.profiler.summary.machine import machine_answer
from tests.live_recording import MemorySource

HUGE = ",".join([str(2**60 - 1)] * 8)
CHOICES = {
    "rank": [0],
    "name": ["", "\0<<<>>>", "aten::mm", "nvjet_zzz_", "splitKreduce", "Memcpy DtoD", "ncclKernel_AllReduce",
             "void deep_gemm::fp8_gemm_kernel<99999999999999999999u, 7168u>(", "step[DECODE bs=99999999999999]",
             "bmm_E4m3_E4m3E4m3_Fp32_t128x99999999999x128_transOut", "flash_fwd_splitkv_mla_kernel", "Cijk_Ai_Bj_Q_",
             "void moe::dev::routing::routingCustom::KernelParams<a, b, 0, 8, x>"],
    "shapes": [None, "", "1,2;2,3", "0,0;0,0", f"{2**63 - 1},2;2,{2**63 - 1}", ";;;", "[1,2|3,4]", "=True", "x",
               f"{HUGE};{HUGE}", "3,4,11,9;6,4,3,2;;=[0, 0];=[1, 1];=[1, 1]", "2,8,6,32;2,8,6,32;2,8,6,32;;=True"],
    "op": [None, "aten::mm", "aten::addmm", "aten::bmm", "aten::convolution", "aten::_grouped_mm", "aten::add", "x",
           "aten::cat", "aten::_scaled_dot_product_flash_attention"],
    "grid": [None, "1,1,1", "132,1,1", "0,1,1", "-1,2", "99999999999,9999999999,9", "a,b"],
    "block": [None, "128,1,1", "0", "9999999999,1,1", "x"],
    "dtype": [None, "bf16", "f32", "fp4", "weird", "float8_e4m3fn"],
    "device": ["cuda:0", "cuda:0", "cpu", None],
    "stage": [None, "decode", "prefill"],
    "start_ns": [0, 5, 100, 2000, 10**12, 10**18],
    "dur_ns": [0, 1, 50, 10**6, 10**15, None],
    "registers": [None, 0, 1, 255, 2**31 - 1, -5],
    "shared_bytes": [None, 0, 1, 2**40, -5],
    "t_ns": [0, 10, 10**6],
    "end_ns": [10**19 // 8],
    "role": ["comm", "compute", "other"],
}  # fmt: skip
BY_TYPE = {
    "string": [None, "x"],
    "float64": [None, 0.0, float("nan"), 1e300, -1.0],
    "int64": [None, 0, 1, 2, 2**40],
    "int32": [None, 0, 1, 7],
}
METAS = [
    {},
    {"hardware": {"gpu": "NVIDIA H100 80GB HBM3", "sms": 2**60}},
    {
        "hardware": None,
        "ranks": [{"rank": 0, "device_properties": {"cuda:0": {"name": 7, "numSms": -3, "warpSize": 1}}}],
    },
    {
        "ranks": [None, 3, {"rank": 0, "world_size": 2**70}],
        "hardware": {"gpus": ["NVIDIA B200"], "peaks": {"f32": 1e999}},
    },
    {"hardware": {"cores": 2, "peaks": {"bf16": 1e9, "copy_bytes_per_s": 1e9}}},
]


def reasons_missing(value):
    """Nulls without a reason beside them."""
    if isinstance(value, dict):
        for key, item in value.items():
            if item is None and not value.get(f"{key}_reason"):
                yield key
            yield from reasons_missing(item)
    elif isinstance(value, list):
        for item in value:
            yield from reasons_missing(item)


@pytest.mark.parametrize("seed", range(24))
def test_hostile_rows_give_figures_or_reasons(seed):
    dice = random.Random(seed)
    source = MemorySource("trace", meta=METAS[seed % len(METAS)])
    for table in ("kernels", "steps", "phases", "experts", "work", "gauges", "unit_intervals", "device_samples"):
        if table == "kernels" or dice.random() < 0.5:
            rows = [
                {column.name: dice.choice(CHOICES.get(column.name, BY_TYPE[column.type])) for column in TABLES[table]}
                for _ in range(dice.choice([1, 3, 30]))
            ]
            source.add(
                table, rows if table != "unit_intervals" else [row | {"unit": dice.randrange(3)} for row in rows]
            )
    for device in kernels_by_device(source.table("kernels")):
        answer = machine_answer(source, device, sweep(device, recorded_windows(source).get(0)))
        assert list(reasons_missing(answer.keys)) == []
        assert {"units", "sm_budget", "matrix_use", "roofline", "decode"} <= set(answer.keys)
        json.dumps([answer.keys, list(answer.bounds.values())], allow_nan=False)
