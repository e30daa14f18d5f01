"""Exchange between virtual ranks by kernels, records made inside kernels, and the stack on the device.

Not yet run on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.model.interpreted import plain  # noqa: E402

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("sms", [1, 20])
@pytest.mark.parametrize(("n", "d"), [(17, 256), (1, 144), (600, 7168)])
def test_rows_and_scales_are_copied_and_summed_bit_for_bit(n: int, d: int, sms: int, device) -> None:
    from moescope.instrumented_model.parallel.mover import IndexingMover, KernelMover

    generator = torch.Generator().manual_seed(1)
    q, s = plain.quantised(n, d, 2)
    source = torch.randint(0, n, (500,), generator=generator, dtype=torch.int32)
    rows = torch.randn(500, d, generator=generator).bfloat16()
    slot = torch.randint(0, 500, (n, 8), generator=generator, dtype=torch.int32)
    kernels, indexing = KernelMover(sms), IndexingMover()
    to, to_s = kernels.dispatch(q.to(device), s.to(device), source.to(device))
    want, want_s = indexing.dispatch(q, s, source)
    assert torch.equal(to.cpu().view(torch.uint8), want.view(torch.uint8))
    assert torch.equal(to_s.cpu(), want_s)
    assert torch.equal(kernels.combine(rows.to(device), slot.to(device)).cpu(), indexing.combine(rows, slot))


def test_a_device_is_given_the_kernels(device) -> None:
    from moescope.instrumented_model.parallel.mover import KernelMover, mover_for

    if device.type != "cuda":
        pytest.skip("a rehearsal: tensors lie on the CPU")
    mover, said = mover_for(device)
    assert isinstance(mover, KernelMover)
    assert said == "copied by Triton kernels on 20 SMs"


def test_training_on_virtual_ranks_lowers_the_loss(device) -> None:
    from moescope.instrumented_model.config import size
    from moescope.instrumented_model.gemm.arithmetic import Arithmetic
    from moescope.instrumented_model.gemm.backends.cpu import Cpu
    from moescope.instrumented_model.gemm.choice import choose
    from moescope.instrumented_model.gemm.products import use
    from moescope.instrumented_model.layers.model import Model
    from moescope.instrumented_model.parallel.mover import KernelMover
    from moescope.instrumented_model.parallel.virtual import VirtualExchange
    from moescope.instrumented_model.training.recipe import Recipe
    from moescope.instrumented_model.training.train import Trainer

    c = replace(size("tiny"), sequence_length=32)
    choose(None, device, Arithmetic.of(c))
    try:
        trainer = Trainer(Model(c, seed=0).to(device), VirtualExchange(c, 4, KernelMover()), Recipe(seed=0))
        losses = [trainer.run_step().loss for _ in range(6)]
        trainer.close()
    finally:
        use(Cpu())
    assert losses[-1] < losses[0] - 0.3


def test_a_product_and_the_exchange_beside_it_hold_different_sms(device) -> None:
    from moescope.instrumented_model.kernels.check import sm_count
    from moescope.instrumented_model.kernels.exchange import SMS, dispatch
    from moescope.instrumented_model.kernels.gemm import gemm
    from moescope.instrumented_model.kernels.trace import Trace

    if device.type != "cuda":
        pytest.skip("a rehearsal: programs run one after another")
    rest = sm_count(device) - SMS
    (xq, xs), (wq, ws) = plain.quantised(8192, 2048, 3), plain.blocks(4096, 2048, 4)
    operands = [t.to(device) for t in (xq, xs, wq, ws)]
    rows = operands[0]
    source = torch.arange(64 * len(rows), device=device, dtype=torch.int32) % len(rows)
    traces = [Trace(device, programs=256, capacity=4096) for _ in range(2)]
    plainly = gemm(*operands, sms=rest)
    stream = torch.cuda.Stream(device)
    for _ in range(2):  # the first compiles; the second runs both at a time
        torch.cuda.synchronize(device)
        with torch.cuda.stream(stream):
            dispatch(rows, None, source, trace=traces[1])
        for _ in range(8):
            together = gemm(*operands, sms=rest, trace=traces[0])
        torch.cuda.synchronize(device)
        computing, communicating = (trace.drain() for trace in traces)
    assert torch.equal(together, plainly)
    assert computing.dropped == communicating.dropped == 0
    ours = communicating.rows
    begin, end = ours["start_ns"].min(), ours["end_ns"].max()
    beside = computing.rows[(computing.rows["start_ns"] < end) & (computing.rows["end_ns"] > begin)]
    assert len(beside), "they did not run at the same time"
    assert len(set(ours["unit"].tolist())) <= SMS
    assert len(set(computing.rows["unit"].tolist())) <= rest
    assert not set(ours["unit"].tolist()) & set(beside["unit"].tolist())


def test_records_lie_between_what_the_host_saw(device) -> None:
    from moescope.collectors import emit
    from moescope.instrumented_model.kernels.quantise import quantise_tiles
    from moescope.instrumented_model.kernels.trace import Trace, clock_offset

    x = torch.randn(4096, 512).to(device)
    trace = Trace(device)
    quantise_tiles(x, trace=trace)
    trace.drain()
    offset = clock_offset(device)
    before = emit.clock_ns()
    quantise_tiles(x, trace=trace)
    rows = trace.drain().rows
    after = emit.clock_ns()
    assert len(rows) == 128 * 4
    slack = offset.uncertainty_ns + 2000  # the device's clock moves in steps
    assert (rows["start_ns"] + offset.offset_ns >= before - slack).all()
    assert (rows["end_ns"] + offset.offset_ns <= after + slack).all()
    assert (rows["start_ns"] <= rows["end_ns"]).all()
