"""Decode steps: how they are found, and where their time goes, against the trace itself and plain counting."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows, sweep
from moescope.profiler.source import open_source
from moescope.profiler.summary.machine import machine_answer
from tests.live_recording import MemorySource, window

B300 = Path(__file__).parents[1] / "data" / "tracelens_sglang_moe_decode_b300"
H100 = {"hardware": {"gpu": "NVIDIA H100 80GB HBM3"}}
LAYER = ["rmsnorm_kernel", "nvjet_tst_64x8_64x16", "flash_fwd_splitkv_mla_kernel", "fused_moe_kernel"]


def row(name, start, dur, **more):
    base = {"rank": 0, "device": "cuda:0", "stream": "7", "name": name, "start_ns": start, "dur_ns": dur}
    return base | {"evidence": "measured", "grid": "132,1,1", "block": "128,1,1"} | more


def decode_of(source):
    (device,) = kernels_by_device(source.table("kernels"))
    keys = machine_answer(source, device, sweep(device, recorded_windows(source).get(0))).keys
    return keys["decode"], keys


@pytest.fixture(scope="module")
def b300():
    return decode_of(open_source([B300]))[0]


@pytest.fixture(scope="module")
def events():
    (file,) = B300.glob("*.json.gz")
    found = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    return [event for event in found if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]


def test_the_b300_trace_s_step_is_found_by_its_annotation(b300, events):
    first = min(event["ts"] for event in events)
    last = max(event["ts"] + event["dur"] for event in events)
    assert (b300["steps"], b300["source"], b300["evidence"]) == (1, "annotation", "measured")
    assert b300["step_us"] == pytest.approx(last - first, abs=0.01)
    assert (b300["batch"], b300["cached_tokens"]) == (16, 8193)
    assert b300["tokens_per_s"] == pytest.approx(16 / (last - first) * 1e6, rel=1e-5)


def test_the_b300_trace_s_idle_time_lies_around_its_graph(b300, events):
    """Busy time by marking every 32 ns, as coarse as the trace's clock."""
    graph = [event for event in events if event["args"]["correlation"] == 1922260]
    assert len(graph) == 676
    first = min(event["ts"] for event in events)

    def cells(of):
        marked = set()
        for event in of:
            begin, end = ((at - first) * 1000 for at in (event["ts"], event["ts"] + event["dur"]))
            marked.update(range(round(begin / 32), round(end / 32)))
        return marked

    step = round(b300["step_us"] * 1000 / 32)
    assert b300["idle_share"] == pytest.approx(1 - len(cells(events)) / step, abs=0.002)
    low, high = min(event["ts"] for event in graph), max(event["ts"] + event["dur"] for event in graph)
    assert b300["gaps"]["graph_share"] == pytest.approx((high - low) / b300["step_us"], rel=1e-4)
    assert b300["gaps"]["idle_in_graph_share"] < 0.001
    assert b300["gaps"]["us_per_step"] == pytest.approx(7505.11 - 5385.287, abs=0.01)
    assert sum(part["share"] for part in b300["gaps"]["by_size"]) == pytest.approx(b300["idle_share"])


def test_the_b300_trace_s_experts_are_far_under_the_ridge(b300):
    assert b300["ridge_tokens"] == pytest.approx(2250e12 * 2 / (2 * 8e12))
    assert b300["tokens_per_expert"] == 16 * 8 / 128
    assert b300["tokens_per_expert_evidence"] == "inferred"
    assert b300["memory_bound_share"] > 0.7
    assert b300["bounds"]["tensor"] == 0
    assert b300["classes"][0]["class"] == "grouped_gemm"
    assert b300["bytes_per_step"] is None
    assert b300["bytes_per_step_reason"]


def replays(times, kernels, correlation=100, idle=500):
    """Kernels of one graph replayed, and one small kernel launched before each."""
    rows, now = [], 0
    for number in range(times):
        rows.append(row("resolve_future_token_ids_kernel", now, 50, correlation=number))
        now += idle
        for name in kernels:
            rows.append(row(name, now, 90, correlation=correlation + number))
            now += 100
    return rows


def test_replays_of_a_graph_are_steps_without_being_told():
    source = MemorySource("trace", meta=H100).add("kernels", replays(4, LAYER * 5))
    decode, _ = decode_of(source)
    assert (decode["steps"], decode["source"], decode["evidence"]) == (4, "graph", "inferred")
    assert decode["step_us"] == pytest.approx((500 + 20 * 100) / 1000)
    assert "20 kernels" in decode["how"]
    # ten ns between kernels inside the graph, 450 before each replay but the first
    assert decode["gaps"]["idle_in_graph_share"] == pytest.approx(4 * 19 * 10 / (3 * 2500 + 1990))
    assert decode["batch"] is None


def test_one_graph_alone_is_a_step_only_with_kernels_made_for_decoding():
    decode, _ = decode_of(MemorySource("trace", meta=H100).add("kernels", replays(1, LAYER * 5)))
    assert decode["steps"] == 1
    plain = [name for name in LAYER if "splitkv" not in name]
    decode, keys = decode_of(MemorySource("trace", meta=H100).add("kernels", replays(1, plain * 7)))
    assert decode is None
    assert keys["decode_reason"]


def test_graphs_of_training_are_no_decode_steps():
    rows = replays(4, [*LAYER * 5, "flash_bwd_dq_dk_dv_loop_kernel"])
    decode, keys = decode_of(MemorySource("trace", meta=H100).add("kernels", rows))
    assert decode is None
    assert "training" in keys["decode_reason"]
    steps = [{"rank": 0, "step": 1, "stage": "train", "source": "emit", "start_ns": 0, "dur_ns": 99}]
    source = MemorySource("trace", meta=H100).add("kernels", replays(4, LAYER * 5)).add("steps", steps)
    assert decode_of(source)[0] is None


def test_an_eager_sequence_that_repeats_exactly_is_steps():
    rows, now = [], 0
    for _ in range(6):
        for name in ["embedding_kernel", *LAYER * 6, "rmsnorm_kernel", "nvjet_head", "argmax_kernel"]:
            rows.append(row(name, now, 80, correlation=now))
            now += 100
    decode, _ = decode_of(MemorySource("trace", meta=H100).add("kernels", rows))
    assert (decode["source"], decode["evidence"], decode["steps"]) == ("sequence", "inferred", 5)
    assert decode["step_us"] == pytest.approx(2.8)
    rows[40:40] = [row("extra_kernel", rows[40]["start_ns"] - 15, 5)]
    assert decode_of(MemorySource("trace", meta=H100).add("kernels", rows))[0] is None


def test_steps_of_the_run_are_measured_and_gpu_steps_follow_their_kernels():
    """Steps 5 and 6 of the host end before their kernels begin."""
    phases = [
        {"rank": 0, "id": number, "name": "attn(F)", "stage": "decode", "step": number, "start_ns": number, "dur_ns": 1}
        for number in (5, 6)
    ]
    steps = [
        {"rank": 0, "step": number, "stage": "decode", "source": "emit", "start_ns": number, "dur_ns": 1}
        for number in (5, 6)
    ]
    rows = [
        row(name, 1000 * number + 100 * at, 90, phase_id=number) for number in (5, 6) for at, name in enumerate(LAYER)
    ]
    source = MemorySource("trace", meta=H100).add("kernels", rows).add("phases", phases).add("steps", steps)
    decode, _ = decode_of(source)
    assert (decode["steps"], decode["source"], decode["evidence"]) == (2, "steps", "measured")
    assert decode["step_us"] == pytest.approx(0.39)
    assert decode["gaps"]["us_per_step"] == pytest.approx(0.03)


def test_what_the_model_tells_of_a_step_is_measured_against_time_and_bandwidth():
    meta = {"hardware": {"cores": 2, "peaks": {"f32": 4e9, "copy_bytes_per_s": {"value": 8e9}}}}
    steps = [
        {"rank": 0, "step": at, "stage": "decode", "source": "emit", "start_ns": 1_000_000 * at, "dur_ns": 500_000}
        for at in range(3)
    ]
    gauges = [
        {"rank": 0, "t_ns": 10, "stage": "decode", "step": 0, "name": name, "value": value, "evidence": "modelled"}
        for name, value in (
            ("expert_weight_bytes", 1e6),
            ("cache_bytes", 5e5),
            ("roofline_time", 1e-4),
            ("tokens_per_expert", 0.25),
        )
    ]
    work = [{"rank": 0, "t_ns": 10, "stage": "decode", "step": 0, "flops": 9, "bytes": 9, "dtype": "bf16"}]
    kernels = [row("aten::mm", 1_000_000 * at + 100_000, 300_000) | {"device": "cpu", "grid": None} for at in range(3)]
    source = MemorySource(meta=meta).add("kernels", kernels).add("steps", steps).add("gauges", gauges).add("work", work)
    source.add("windows", [window(0, 1_700_000)])
    decode, _ = decode_of(source)
    assert (decode["steps"], decode["recorded_steps"], decode["step_us"]) == (3, 2, 500)
    assert decode["idle_share"] == pytest.approx(0.4)
    assert decode["bytes_per_step"] == 1.5e6
    assert decode["bytes_per_s"] == pytest.approx(3e9)
    assert decode["bandwidth_share"] == pytest.approx(3 / 8)
    assert decode["roofline_share"] == pytest.approx(0.2)
    assert (decode["tokens_per_expert"], decode["ridge_dtype"]) == (0.25, "bf16")
    assert decode["tokens_over_ridge"] == pytest.approx(0.25 / (4e9 * 2 / (2 * 8e9)))


def test_counted_tokens_stand_in_where_the_model_tells_no_mean():
    steps = [{"rank": 0, "step": 0, "stage": "decode", "source": "emit", "start_ns": 0, "dur_ns": 500}]
    experts = [
        {"rank": 0, "t_ns": 10, "step": 0, "stage": stage, "layer": 0, "expert": expert, "tokens": tokens}
        for stage, expert, tokens in (("decode", 0, 6), ("decode", 1, 0), ("decode", 2, 3), ("prefill", 0, 900))
    ]
    source = MemorySource("trace", meta=H100).add("kernels", [row("gemm_kernel", 0, 400)]).add("steps", steps)
    decode, _ = decode_of(source.add("experts", experts))
    assert (decode["tokens_per_expert"], decode["tokens_per_expert_evidence"]) == (4.5, "derived")


def test_weights_told_by_names_are_a_lower_bound_of_a_step_s_bytes():
    name = "void deep_gemm::fp8_gemm_kernel<4096u, 7168u, 64u, (deep_gemm::GemmType)0>(int)"
    decode, keys = decode_of(MemorySource("trace", meta=H100).add("kernels", replays(4, [*LAYER * 5, name], idle=60)))
    assert decode["bytes_per_step"] is None
    assert decode["bytes_at_least"] == 4096 * 7168
    assert keys["roofline"]["device"] == "H100 SXM"


spans = st.lists(st.tuples(st.integers(0, 400), st.integers(1, 30)), min_size=1, max_size=12)


@settings(max_examples=50, deadline=None)
@given(spans, st.lists(st.tuples(st.integers(0, 300), st.integers(5, 60)), min_size=1, max_size=3))
def test_gaps_equal_a_count_of_every_nanosecond(kernels, steps):
    begins = sorted({start for start, _ in steps})
    ends = [
        min(start + dict(steps)[start], following) for start, following in zip(begins, [*begins[1:], 999], strict=True)
    ]
    told = [
        {"rank": 0, "step": at, "stage": "decode", "source": "emit", "start_ns": start, "dur_ns": end - start}
        for at, (start, end) in enumerate(zip(begins, ends, strict=True))
    ]
    rows = [row("aten::add", start, dur) | {"device": "cpu"} for start, dur in kernels]
    source = MemorySource(meta={"hardware": {"cores": 1}}).add("kernels", rows).add("steps", told)
    decode, _ = decode_of(source.add("windows", [window(0, 1000)]))
    busy = {now for start, dur in kernels for now in range(start, start + dur)}
    inside = [now for start, end in zip(begins, ends, strict=True) for now in range(start, end)]
    idle = [now for now in inside if now not in busy]
    assert decode["idle_share"] == pytest.approx(len(idle) / len(inside))
    sizes = []
    for now in idle:
        if sizes and sizes[-1][1] == now:
            sizes[-1][1] = now + 1
        else:
            sizes.append([now, now + 1])
    lengths = sorted(end - start for start, end in sizes)
    assert decode["gaps"]["count_per_step"] == pytest.approx(len(lengths) / len(begins))
    assert decode["gaps"]["longest_us"] == (lengths[-1] / 1000 if lengths else None)
    if lengths:
        assert decode["gaps"]["median_us"] == pytest.approx(np.quantile(lengths, 0.5, method="inverted_cdf") / 1000)
        assert decode["gaps"]["p90_us"] == pytest.approx(np.quantile(lengths, 0.9, method="inverted_cdf") / 1000)
