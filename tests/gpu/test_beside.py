"""An exchange on a stream of its own, quantisers by one kernel, and decode steps in a CUDA graph.

Not yet run on a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.gemm.arithmetic import Arithmetic  # noqa: E402
from moescope.instrumented_model.gemm.backends.cpu import Cpu  # noqa: E402
from moescope.instrumented_model.gemm.choice import choose  # noqa: E402
from moescope.instrumented_model.gemm.products import leave, use  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402

pytestmark = pytest.mark.gpu

C = replace(size("tiny"), sequence_length=32, decode_sequences=4)


@pytest.fixture(autouse=True)
def _triton(device) -> Iterator[None]:
    choose("triton", device, Arithmetic.of(C))
    yield
    leave(0)
    use(Cpu())


def test_quantisers_on_the_device_give_the_bits_of_the_reference(device) -> None:
    from moescope.instrumented_model.gemm import quantisers
    from moescope.instrumented_model.numerics import quantise

    if device.type == "cuda":
        assert quantisers.by_kernels(device)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(300, 200, generator=generator)
    x[3, 5], x[7, 9] = torch.inf, torch.nan
    for power_of_2 in (False, True):
        for got, want in (
            (quantisers.quantise_tiles(x.to(device), power_of_2=power_of_2),
             quantise.quantise_tiles(x, power_of_2=power_of_2)),
            (quantisers.quantise_columns(x.to(device), groups=[130, 0, 170], power_of_2=power_of_2),
             quantise.quantise_columns(x, groups=[130, 0, 170], power_of_2=power_of_2)),
        ):  # fmt: skip
            assert (got.rows, got.columns, got.q.shape) == (want.rows, want.columns, want.q.shape)
            assert torch.equal(got.q.cpu().view(torch.uint8), want.q.view(torch.uint8))
            assert torch.equal(got.scale.cpu(), want.scale)


def test_an_exchange_beside_computation_changes_no_result(device) -> None:
    from moescope.instrumented_model.parallel.lane import InTurn, lane_for
    from moescope.instrumented_model.parallel.mover import KernelMover
    from moescope.instrumented_model.parallel.virtual import VirtualExchange
    from moescope.instrumented_model.training.recipe import Recipe
    from moescope.instrumented_model.training.train import Trainer

    losses = []
    for lane in (InTurn(), lane_for(device)):
        mover = KernelMover()
        if device.type == "cuda":
            assert leave(mover.sms)
        trainer = Trainer(
            Model(C, seed=0).to(device), VirtualExchange(C, 4, mover, lane), Recipe(seed=0), schedule="overlapped"
        )
        losses.append([trainer.run_step().loss for _ in range(4)])
        trainer.close()
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_graph_s_steps_give_the_tokens_of_steps_one_by_one(device) -> None:
    from moescope.instrumented_model.inference.graphs import GraphedDecode
    from moescope.instrumented_model.inference.steps import decode
    from moescope.instrumented_model.parallel.lane import lane_for
    from moescope.instrumented_model.parallel.mover import KernelMover
    from moescope.instrumented_model.parallel.virtual import VirtualExchange

    if device.type != "cuda":
        pytest.skip("a rehearsal: there is nothing to capture")
    model, exchange = Model(C, seed=0).to(device), VirtualExchange(C, 4, KernelMover(), lane_for(device))
    found = []
    for cache in ("contiguous", "paged"):
        for graphed in (None, partial(GraphedDecode, model, exchange, "overlapped")):
            taken = decode(model, exchange, steps=8, schedule="overlapped", seed=0, cache=cache, graphed=graphed)
            found.append([(s.ends, [t.cpu() for t in s.logits]) for s in taken])
    # A graph adds up over all the room that there is: rounding may differ, and with it a later token.
    for other in found[1:]:
        assert [ends for ends, _ in other] == [ends for ends, _ in found[0]]
        for a, b in zip(other[0][1], found[0][0][1], strict=True):
            torch.testing.assert_close(a, b, rtol=0.05, atol=0.05)
        alike = [
            torch.equal(a.argmax(-1), b.argmax(-1))
            for (_, one), (_, two) in zip(other, found[0], strict=True)
            for a, b in zip(one, two, strict=True)
        ]
        assert sum(alike) >= len(alike) // 2
