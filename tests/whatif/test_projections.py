"""Scenarios on runs whose answer is known by reasoning, and on real traces, where it must not be nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from moescope.profiler.source import open_source
from moescope.profiler.summary import summarise
from moescope.profiler.whatif.project import project
from tests.live_recording import MemorySource
from tests.whatif.runs import H100, MS, gpu, projected, reason, scenario, source_of
from tests.whatif.test_replay import runs

DATA = Path(__file__).parents[1] / "data"


def test_perfect_overlap_takes_exposed_communication_out_of_a_serial_run() -> None:
    rows = [gpu(0, 4), gpu(4, 9, "comm", stream="20"), gpu(9, 12), gpu(12, 13, "comm", stream="20"), gpu(13, 15)]
    found = scenario(projected(source_of(*rows)), "perfect-overlap")
    # Compute alone takes 9 ms; the second exchange still needs what is computed before it, and ends at 4 + 5 + 1.
    assert (found.span.estimate, found.gain.estimate) == (10 * MS, 5 * MS)
    assert found.gain.low <= found.gain.estimate <= found.gain.high <= 6 * MS


def test_perfect_overlap_holds_on_one_stream_too() -> None:
    rows = [gpu(0, 4), gpu(4, 6, "comm"), gpu(6, 12)]
    assert scenario(projected(source_of(*rows)), "perfect-overlap").gain.estimate == 2 * MS


def test_without_communication_nothing_is_projected_of_it_and_the_reason_is_told() -> None:
    found = projected(source_of(gpu(0, 4), gpu(4, 6)), comm_sms=[8])
    for identity in ("perfect-overlap", "comm-off-sms", "comm-sms-8", "link-x2"):
        assert "no communication kernels" in reason(found, identity)


def test_fewer_sms_cost_communication_at_most_in_proportion_and_more_cost_compute() -> None:
    shapes = {"block": "1024,1,1", "registers": 64, "shared_bytes": 200_000}
    rows = [
        gpu(0, 4, grid="132,1,1", **shapes),
        gpu(4, 14, grid="132,1,1", **shapes),
        gpu(4, 12, "comm", stream="20", grid="20,1,1", **shapes),
        gpu(14, 15, grid="132,1,1", **shapes),
    ]
    found = projected(source_of(*rows, meta=H100), comm_sms=[10, 40, 132])
    less, more = scenario(found, "comm-sms-10"), scenario(found, "comm-sms-40")
    # 8 ms on half the SMs are at most 16 ms, which end at 20: 5 ms later than all else does.
    assert less.gain.low == pytest.approx(-6 * MS, abs=MS)
    # Compute runs beside it for 8 of 10 ms: with 122 SMs for 112 these take 7.34 ms.
    assert less.gain.high == pytest.approx((8 - 8 * 112 / 122) * MS, abs=2)
    assert more.gain.low == pytest.approx((8 - 8 * 112 / 92) * MS, abs=2)
    assert more.gain.high == 0
    off = scenario(found, "comm-off-sms")
    assert off.gain.high == pytest.approx((8 - 8 * 112 / 132) * MS, abs=2)
    assert off.gain.low == 0
    assert "leaves none to compute on" in reason(found, "comm-sms-132")


def test_sms_without_launch_shapes_are_not_guessed() -> None:
    found = projected(source_of(gpu(0, 4), gpu(4, 6, "comm", stream="20"), gpu(6, 7)), comm_sms=[8])
    assert "not known" in reason(found, "comm-sms-8")
    assert "not known" in reason(found, "comm-off-sms")


@settings(max_examples=25)
@given(runs())
def test_bounds_are_in_order_and_no_gain_exceeds_what_there_is(source: MemorySource) -> None:
    found = project(source, comm_sms=[1, 4], link_factors=[0.5, 2])
    assert found is not None
    assert found.replay_error_ns == 0
    for one in (*found.projections, *([found.together] if found.together else [])):
        assert one.gain.low <= one.gain.estimate <= one.gain.high <= found.span_ns
        assert one.span.low <= one.span.estimate <= one.span.high
    for one in found.projections:
        if one.scenario.id in ("perfect-overlap", "link-x2"):
            assert one.gain.low >= 0
        if one.scenario.id == "link-x0.5":
            assert one.gain.high <= 0


@pytest.mark.parametrize("trace", ["hta_ddp_nccl_meta_a100", "param_dlrm_8rank_v100"])
def test_perfect_overlap_of_a_real_trace_lies_between_nothing_and_its_exposed_time(trace: str) -> None:
    source = open_source([DATA / trace])
    exposed = max(rank["exposed_comm_us"] for rank in summarise(source)["ranks"])
    gain = scenario(projected(source), "perfect-overlap").gain
    assert 0 <= gain.low <= gain.estimate <= gain.high <= exposed * 1000
    assert gain.estimate > 0


def test_a_real_trace_without_communication_tells_so() -> None:
    found = projected(open_source([DATA / "tracelens_sglang_moe_decode_b300"]))
    assert found.replay_error_ns == 0
    assert "nothing to hide" in reason(found, "perfect-overlap")
