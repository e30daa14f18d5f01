"""Dispatch and combine by kernels against indexing, and the records that kernels leave."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import triton
import triton.language as tl

from moescope.instrumented_model.config import size
from moescope.instrumented_model.kernels.exchange import combine, dispatch
from moescope.instrumented_model.kernels.gemm import gemm
from moescope.instrumented_model.kernels.quantise import quantise_tiles
from moescope.instrumented_model.kernels.trace import (
    OTHER,
    Trace,
    clock_offset,
    record_begin,
    record_end,
    record_open,
)
from moescope.instrumented_model.parallel.exchange import as_float
from moescope.instrumented_model.parallel.mover import IndexingMover, KernelMover, Mover
from moescope.instrumented_model.parallel.virtual import VirtualExchange
from tests.model.interpreted import plain


@pytest.mark.parametrize("sms", [1, 3])
@pytest.mark.parametrize(("n", "d"), [(17, 256), (1, 130), (40, 576)])
def test_slots_get_the_row_and_the_scales_of_their_source(n: int, d: int, sms: int) -> None:
    q, s = plain.quantised(n, d, 1)
    generator = torch.Generator().manual_seed(2)
    source = torch.randint(-1, n, (300,), generator=generator, dtype=torch.int32)
    source[5] = -1
    for scales in (s, s.T.contiguous().T):
        to, to_s = dispatch(q, scales, source, sms=sms)
        assert to_s is not None
        for i, row in enumerate(source.tolist()):
            want = q[row].view(torch.uint8) if row >= 0 else torch.zeros(d, dtype=torch.uint8)
            assert torch.equal(to[i].view(torch.uint8), want)
            assert torch.equal(to_s[i], s[row] if row >= 0 else torch.ones_like(s[0]))


def test_bytes_travel_without_scales() -> None:
    q = torch.randint(0, 256, (9, 77), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    source = torch.tensor([8, 0, 0], dtype=torch.int32)
    to, to_s = dispatch(q, None, source)
    assert to_s is None
    assert torch.equal(to, q[source.long()])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(("tokens", "top_k", "d"), [(1, 1, 128), (70, 4, 200), (9, 8, 576)])
def test_combine_sums_rows_in_float32_and_rounds_once(tokens: int, top_k: int, d: int, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(50, d, generator=generator).bfloat16()
    slot = torch.randint(-1, 50, (tokens, top_k), generator=generator, dtype=torch.int32)
    weights = torch.rand(tokens, top_k, generator=generator) if weighted else None
    want = torch.zeros(tokens, d)
    for t in range(tokens):
        for j in range(top_k):
            if slot[t, j] >= 0:
                want[t] += rows[slot[t, j]].float() * (1.0 if weights is None else weights[t, j])
    assert torch.equal(combine(rows, slot, weights, sms=2), want.bfloat16())


def test_dispatch_and_combine_are_transposes_of_each_other() -> None:
    """<dispatch(x), y> = <x, combine(y)> for whole numbers, exactly."""
    generator = torch.Generator().manual_seed(5)
    tokens, top_k, d = 12, 3, 128
    x = torch.randint(-3, 4, (tokens, d), generator=generator).float().to(plain.E4M3)
    assigned = torch.randperm(tokens * top_k, generator=generator)
    slot = assigned.reshape(tokens, top_k).int()
    source = torch.empty(tokens * top_k, dtype=torch.int32)
    source[assigned] = torch.arange(tokens).repeat_interleave(top_k).int()
    y = torch.randint(-3, 4, (tokens * top_k, d), generator=generator).bfloat16()
    there, _ = dispatch(x, None, source)
    assert (there.float() * y.float()).sum() == (x.float() * combine(y, slot).float()).sum()


@pytest.mark.parametrize("fp8", [True, False])
@pytest.mark.parametrize(("ranks", "sms"), [(1, 1), (4, 3)])
def test_virtual_ranks_get_the_same_bits_from_kernels_as_from_indexing(ranks: int, sms: int, fp8: bool) -> None:
    c = replace(size("tiny"), d=136, top_k=4, fp8=fp8)
    generator = torch.Generator().manual_seed(10)
    x, dy = (torch.randn(23, c.d, generator=generator) for _ in range(2))
    gates = torch.rand(23, c.top_k, generator=generator)
    chosen = torch.rand(23, c.experts, generator=generator).topk(c.top_k).indices
    trace, where = Trace("cpu", programs=4, capacity=99), {"layer": 0, "micro_batch": 0}

    def results(mover: Mover) -> list[torch.Tensor]:
        exchange = VirtualExchange(c, ranks, mover)
        arrived = exchange.dispatch(x, exchange.plan(chosen, gates), phase="dispatch(F)", **where).result()
        rows, d_rows = torch.randn(2, len(arrived.rows), c.d, generator=torch.Generator().manual_seed(11))
        sums = exchange.combine(rows, arrived, phase="combine(F)", **where).result()
        again = exchange.dispatch_again(dy, arrived, phase="combine(B)", **where).result()
        back = exchange.combine_gradients(d_rows, arrived.gates, arrived, phase="dispatch(B)", **where).result()
        return [arrived.rows, arrived.gates, sums, as_float(again), *back]

    for got, want in zip(results(KernelMover(sms, trace)), results(IndexingMover()), strict=True):
        assert torch.equal(got, want)
    records = trace.drain()
    assert records.launches == ("dispatch", "combine", "dispatch", "combine")
    assert set(records.rows["role"]) == {1}
    assert set(records.rows["unit"]) <= set(range(sms))


def test_no_slots_and_no_tokens() -> None:
    q, s = plain.quantised(3, 128, 6)
    assert dispatch(q, s, torch.zeros(0, dtype=torch.int32))[0].shape == (0, 128)
    assert combine(torch.zeros(3, 128).bfloat16(), torch.zeros(0, 2, dtype=torch.int32)).shape == (0, 128)


def test_what_does_not_fit_is_named() -> None:
    q, s = plain.quantised(3, 128, 7)
    with pytest.raises(ValueError, match="source is int64: give int32"):
        dispatch(q, s, torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"scale has shape \[2, 1\]: give \[3, \*\]"):
        dispatch(q, s[:2], torch.zeros(2, dtype=torch.int32))
    with pytest.raises(ValueError, match=r"weights has shape \[1, 2\]: give \[2, 2\]"):
        combine(torch.zeros(3, 8), torch.zeros(2, 2, dtype=torch.int32), torch.zeros(1, 2))


def test_every_tile_is_recorded_once_with_its_unit_and_role() -> None:
    trace = Trace("cpu", programs=8, capacity=16)
    xq, xs = plain.quantised(300, 128, 8)
    wq, ws = plain.blocks(260, 128, 9)
    plainly = gemm(xq, xs, wq, ws, sms=2)
    assert torch.equal(gemm(xq, xs, wq, ws, sms=2, trace=trace), plainly)
    dispatch(xq, xs, torch.arange(300, dtype=torch.int32), sms=3, trace=trace)
    quantise_tiles(torch.ones(40, 300), sms=1, trace=trace)
    records = trace.drain()
    assert records.launches == ("gemm", "dispatch", "quantise_tiles")
    assert records.dropped == 0
    rows = records.rows
    of_gemm = rows[rows["launch"] == 0]
    assert sorted(of_gemm["tile"]) == list(range(9))
    assert set(of_gemm["unit"]) == {0, 1}
    assert all(of_gemm["unit"] == of_gemm["tile"] % 2)
    assert set(of_gemm["role"]) == {0}
    assert sorted(rows[rows["launch"] == 1]["tile"]) == [0, 1]
    assert set(rows[rows["launch"] == 1]["role"]) == {1}
    assert sorted(rows[rows["launch"] == 2]["tile"]) == list(range(6))
    assert (rows["start_ns"] <= rows["end_ns"]).all()
    for lane in (of_gemm[of_gemm["unit"] == 0], of_gemm[of_gemm["unit"] == 1]):
        assert (lane["start_ns"][1:] >= lane["end_ns"][:-1]).all()
    columns = records.unit_intervals(rank=3, offset_ns=1000)
    assert columns["role"].count("comm") == 2
    assert (columns["start_ns"] - rows["start_ns"] == 1000).all()
    assert (columns["end_ns"] - rows["end_ns"] == 1000).all()
    assert set(columns["rank"]) == {3}


def test_a_drained_trace_starts_anew() -> None:
    trace = Trace("cpu", programs=4, capacity=8)
    quantise_tiles(torch.ones(4, 128), trace=trace)
    assert len(trace.drain().rows) == 1
    assert len(trace.drain().rows) == 0
    quantise_tiles(torch.ones(4, 128), trace=trace)
    records = trace.drain()
    assert records.launches == ("quantise_tiles",)
    assert list(records.rows["launch"]) == [0]


def test_records_that_do_not_fit_are_counted() -> None:
    trace = Trace("cpu", programs=8, capacity=1)
    quantise_tiles(torch.ones(1, 128 * 10), sms=1, trace=trace)
    records = trace.drain()
    assert len(records.rows) == 8
    assert records.dropped == 2


def test_a_launch_with_more_programs_than_lanes_is_refused() -> None:
    with pytest.raises(ValueError, match="has 8 programs, the trace 1 lanes"):
        quantise_tiles(torch.ones(1, 128 * 10), sms=1, trace=Trace("cpu", programs=1, capacity=4))


@triton.jit
def _someone_elses_kernel(x, n, trace):  # type: ignore[no-untyped-def]
    written = record_open(trace)
    for i in range(tl.program_id(0), n, tl.num_programs(0)):
        start = record_begin(trace)
        tl.store(x + i, tl.load(x + i) + 1)
        record_end(trace, start, written + i // tl.num_programs(0), i * 10, OTHER)


def test_any_kernel_can_make_records() -> None:
    x, trace = torch.zeros(5), Trace("cpu", programs=2, capacity=5)
    _someone_elses_kernel[(2,)](x, 5, None)
    _someone_elses_kernel[(2,)](x, 5, trace.launched("mine", 2))
    records = trace.drain()
    assert (x == 2).all()
    assert sorted(records.rows["tile"]) == [0, 10, 20, 30, 40]
    assert set(records.unit_intervals()["role"]) == {"other"}


def test_the_offset_of_a_clock_from_itself_is_within_its_uncertainty() -> None:
    offset = clock_offset(torch.device("cpu"))
    assert abs(offset.offset_ns) <= offset.uncertainty_ns
