"""Scenarios on runs whose answer is known by reasoning, and on real traces, where it must not be nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings

from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise
from moescope.profiler.whatif.project import project
from tests.live_recording import MemorySource, kernel, phase, step
from tests.whatif.runs import H100, MS, gpu, projected, reason, scenario, source_of
from tests.whatif.test_replay import runs, two_ranks

DATA = Path(__file__).parents[1] / "data"


def test_perfect_overlap_takes_exposed_communication_out_of_a_serial_run() -> None:
    rows = [gpu(0, 4), gpu(4, 9, "comm", stream="20"), gpu(9, 12), gpu(12, 13, "comm", stream="20"), gpu(13, 15)]
    found = scenario(projected(source_of(*rows)), "perfect-overlap")
    # Compute alone takes 9 ms; the second exchange still needs what is computed before it, and ends at 4 + 5 + 1.
    assert (found.span.estimate, found.gain.estimate) == (10 * MS, 5 * MS)
    assert found.gain.low <= found.gain.estimate <= found.gain.high <= 6 * MS


def test_compute_that_comes_to_lie_beside_communication_is_slowed_as_what_lies_there_now() -> None:
    rows, at = [], 0.0
    for _ in range(10):
        # 10 ms alone, an exchange of 10 ms that nothing hides, and 12 ms of the same kernel beside the next.
        rows += [gpu(at, at + 10), gpu(at + 10, at + 20, "comm", stream="20")]
        rows += [gpu(at + 20, at + 32), gpu(at + 20, at + 32, "comm", stream="20")]
        at += 32
    found = scenario(projected(source_of(*rows)), "perfect-overlap")
    change = found.scenario.change
    assert change is not None
    assert change.parameters["beside_comm"] == pytest.approx(1.2)
    # All of the free compute (10 ms a round) comes to lie beside the exposed exchange (10 ms a round).
    assert sorted(set(change.least.round(6).tolist())) == [1.0, 1.2]
    assert found.gain.low <= found.gain.estimate <= found.gain.high


def test_where_no_kernel_runs_both_ways_nothing_is_slowed() -> None:
    rows = [gpu(at, at + 4) for at in range(0, 100, 10)] + [gpu(at + 4, at + 8, "comm") for at in range(0, 100, 10)]
    change = scenario(projected(source_of(*rows)), "perfect-overlap").scenario.change
    assert change is not None
    assert not change.parameters
    assert "too few kernels" in change.assumed[1]


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


@settings(max_examples=15)
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
    # At least it brings nothing, where compute beside communication takes longer.
    assert -exposed * 10 <= gain.low <= gain.estimate <= gain.high <= exposed * 1000
    assert gain.estimate >= 0
    assert gain.estimate > 0


def test_a_real_trace_without_communication_tells_so() -> None:
    found = projected(open_source([DATA / "tracelens_sglang_moe_decode_b300"]))
    assert found.replay_error_ns == 0
    assert "nothing to hide" in reason(found, "perfect-overlap")


def test_casts_and_transposes_go_and_what_they_leave_is_bounded() -> None:
    rows = [gpu(0, 4), gpu(4, 7, "quantize"), gpu(7, 9, "transpose"), gpu(9, 12)]
    found = projected(source_of(*rows))
    for identity, low, high in (("fused-casts", 2, 3), ("near-memory-casts", 1.5, 3), ("transposed-reads", 1, 2)):
        gain = scenario(found, identity).gain
        assert (gain.low, gain.high) == (round(low * MS), round(high * MS))
        assert gain.low < gain.estimate < gain.high
    assert found.joined == ("near-memory-casts", "transposed-reads")
    assert found.together is not None
    assert found.together.gain.high == 5 * MS


def test_what_runs_beside_longer_communication_brings_nothing_alone_or_together() -> None:
    # Cast and transpose run beside an exchange that the last kernel waits for: without both it starts no sooner.
    rows = [gpu(0, 4), gpu(4, 6, "quantize"), gpu(6, 8, "transpose"), gpu(4, 10, "comm", stream="20"), gpu(10.01, 12)]
    found = projected(source_of(*rows))
    for identity in ("fused-casts", "transposed-reads"):
        assert scenario(found, identity).gain.high == 0
    assert found.together is not None
    assert found.together.gain.high == 0


def test_gains_that_rest_on_the_same_time_are_re_run_and_not_added() -> None:
    # Two streams of 4 ms each, and what waits for both: shortening one alone brings nothing, both together do.
    rows = [
        gpu(0, 1), gpu(1, 5, "quantize"), gpu(1, 5, "transpose", stream="9"), gpu(5.01, 6),
    ]  # fmt: skip
    found = projected(source_of(*rows))
    single = sum(scenario(found, identity).gain.high for identity in ("near-memory-casts", "transposed-reads"))
    assert found.together is not None
    assert single != found.together.gain.high
    assert found.together.gain.high <= 4 * MS


def test_tokens_that_are_uneven_become_the_mean_where_experts_are_known() -> None:
    rows = []
    for rank, length in ((0, 2.0), (1, 6.0)):
        rows += [gpu(0, 1, rank=rank), gpu(1, 1 + length, "grouped_gemm", rank=rank)]
    source = source_of(*rows)
    counts = [(0, 50), (1, 50), (2, 150), (3, 150)]
    source.add("experts", [{"rank": 0, "t_ns": 0, "layer": 0, "expert": e, "tokens": n} for e, n in counts])
    found = scenario(projected(source), "balanced-experts")
    assert found.scenario.change is not None
    assert found.scenario.change.parameters["max_over_mean_tokens"] == 1.5
    # Rank 1 has 300 of 400 tokens, so its 6 ms become 4, and the run ends at 5 ms for 7.
    assert found.gain.estimate == 2 * MS


def test_ranks_that_are_late_to_collectives_become_even_without_tokens() -> None:
    found = scenario(projected(two_ranks(3)), "balanced-experts")
    # Between collectives rank 1 computes 3 ms more than rank 0: evened out, each round loses half of that.
    assert 0 <= found.gain.low <= found.gain.estimate <= found.gain.high
    assert found.gain.high == pytest.approx(2 * 1.5 * MS, abs=MS // 2)


def test_one_link_domain_takes_the_slow_hop_at_the_fast_ones_rate() -> None:
    spans = [(0, 4, "internode"), (4, 5, "intranode"), (5, 9, "internode")]
    rows = [gpu(low, high, "comm") for low, high, _ in spans] + [gpu(9, 10)]
    source = source_of(*rows)
    assert "does not tell" in reason(projected(source), "one-link-domain")
    told = [
        {"rank": 0, "src": 0, "dst": 1, "hop": hop, "bytes": 1000, "start_ns": low * MS, "dur_ns": (high - low) * MS}
        for low, high, hop in spans
    ]
    found = scenario(projected(source.add("transfers", told)), "one-link-domain")
    # The same bytes in 4 ms between nodes and 1 ms inside them.
    assert (found.gain.low, found.gain.high) == (0, 6 * MS)


def test_an_emulated_wire_is_busy_from_its_exchange_on_and_never_ends_before_it() -> None:
    wire = {"name": "emulated_link:all_to_all", "stream": "exchange", "evidence": "modelled"}
    source = source_of(
        kernel(0, 4 * MS),
        kernel(4_050_000, 30_000, stream="exchange"),
        kernel(4_200_000, MS, "comm", stream="pt_gloo_runloop"),
        kernel(5_200_000, 9 * MS, "comm", **wire),
        kernel(14_400_000, 5_600_000),
    )
    source.add("phases", [phase(1, "dispatch(F)", 4_040_000, 10_200_000) | {"thread": "exchange"}])
    call = {"rank": 0, "call": 0, "op": "all_to_all", "group": "0", "group_ranks": "0,1", "phase_id": 1}
    call |= {"issue_ns": 4_100_000, "start_ns": 4_200_000, "dur_ns": MS, "evidence": "measured"}
    source.add("collectives", [call]).add("steps", [step(0, 0, 20 * MS)])
    found = projected(source, link_factors=[2, 100])
    # From the exchange's start at 4.2 ms the wire takes 10 ms; at twice the rate 5, and compute follows 0.2 ms later.
    assert scenario(found, "link-x2").gain.estimate == 5 * MS
    assert (found.step_ns, scenario(found, "link-x2").step_ns) == (20 * MS, 15 * MS)
    # The exchange itself still takes its 1 ms.
    assert scenario(found, "link-x100").gain.estimate == 9 * MS


def test_a_wire_that_an_exchange_outlasted_shows_once_it_is_slow_enough() -> None:
    rows, calls, now = [], [], 0.0
    sizes = [1000 * (place + 1) for place in range(9)]
    for place, size in enumerate(sizes):
        wire, lasts = 1 + size / 1000, 0.5 if place < 8 else 20.0
        begin = now + 1
        free = begin + 0.2 + max(wire, lasts)
        rows += [
            kernel(round(now * MS), MS),
            kernel(round((begin + 0.05) * MS), 30_000, stream="exchange"),
            kernel(round((begin + 0.2) * MS), round(lasts * MS), "comm", stream="pt_gloo_runloop"),
        ]
        if wire > lasts:
            told = {"name": "emulated_link:all_to_all", "stream": "exchange", "evidence": "modelled"}
            rows.append(kernel(round((begin + 0.2 + lasts) * MS), round((wire - lasts) * MS), "comm", **told))
        calls.append(
            {
                "rank": 0, "call": place, "op": "all_to_all", "group": "0", "group_ranks": "0,1", "phase_id": 1,
                "issue_ns": round((begin + 0.1) * MS), "start_ns": round((begin + 0.2) * MS),
                "dur_ns": round(lasts * MS), "sent_bytes": size, "received_bytes": size // 2, "evidence": "measured",
            }
        )  # fmt: skip
        now = free + 0.2
    rows.append(kernel(round(now * MS), MS))
    source = source_of(*rows).add("collectives", calls)
    source.add("phases", [phase(1, "dispatch(F)", 0, round(now * MS)) | {"thread": "exchange"}])
    found = projected(source, link_factors=[0.25])
    # Eight wires of 2 to 9 ms become four times as long; the ninth, of 10 ms, becomes 40 and outlasts 20 by as much.
    lost = -scenario(found, "link-x0.25").gain.estimate / MS
    assert lost == pytest.approx(3 * sum(range(2, 10)) + 40 - 20, abs=0.5)


def test_experts_are_balanced_layer_by_layer_where_phases_tell_them() -> None:
    rows = []
    for rank in (0, 1):
        for layer, length in ((0, 2 if rank else 6), (1, 6 if rank else 2)):
            start = 10 * layer
            rows.append(gpu(start, start + length, rank=rank, phase_id=layer + 1))
    source = source_of(*rows)
    for rank in (0, 1):
        held = [phase(layer + 1, "mlp(F)", 0, 1, rank=rank) | {"layer": layer, "step": 0} for layer in (0, 1)]
        source.add("phases", held)
    counts = [(0, 0, 300), (0, 1, 100), (1, 0, 100), (1, 1, 300)]
    told = [{"rank": 0, "t_ns": 0, "step": 0, "layer": la, "expert": e, "tokens": n} for la, e, n in counts]
    found = scenario(projected(source.add("experts", told)), "balanced-experts")
    # Over the run both ranks have as many tokens; layer by layer one computes 6 ms and the other 2, and would 4 and 4.
    assert found.scenario.change is not None
    assert sorted(set(found.scenario.change.most.tolist())) == pytest.approx([4 / 6, 2])


def test_what_experts_take_whatever_their_tokens_does_not_become_less() -> None:
    rows, told = [], []
    source = MemorySource()
    for step_ in range(4):
        for rank, tokens in ((0, 100), (1, 300)):
            # A fixed ms, and one for each 100 tokens: 2 and 4 ms, which become 3 and 3.
            rows.append(gpu(10 * step_, 10 * step_ + 1 + tokens / 100, rank=rank, phase_id=step_ + 1))
            source.add("phases", [phase(step_ + 1, "mlp(F)", 0, 1, rank=rank) | {"layer": 0, "step": step_}])
            told.append({"rank": 0, "t_ns": 0, "step": step_, "layer": 0, "expert": rank, "tokens": tokens})
    source.add("kernels", sorted(rows, key=lambda row: row["start_ns"])).add("experts", told)
    found = scenario(projected(source), "balanced-experts")
    assert found.scenario.change is not None
    assert found.scenario.change.parameters["fixed_tokens"] == 100
    assert sorted({round(one, 6) for one in found.scenario.change.between.tolist()}) == pytest.approx([3 / 4, 3 / 2])
