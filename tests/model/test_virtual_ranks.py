"""Virtual ranks in one process compute what a rank alone does, forward and backward."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Exchange  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.parallel.virtual import VirtualExchange  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402
from moescope.instrumented_model.training.train import gradients  # noqa: E402

SMALL = replace(size("tiny"), name="test", d=136, d_expert=72, layers=1, sequence_length=16)


def _gradients(c: Config, exchange: Exchange) -> dict[str, torch.Tensor]:
    model = Model(c, seed=3)
    tokens, targets = data.batch(data.corpus(), step=0, rank=0, micro_batch=0, sequences=1, positions=16, seed=1)
    gradients(model, exchange, [MicroBatch(0, tokens, targets)], "serial")
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("fp8", [True, False])
def test_four_virtual_ranks_compute_the_gradients_of_one(fp8: bool) -> None:
    c = replace(SMALL, fp8=fp8)
    want = _gradients(c, open_exchange(c, Ranks(0, 1), NO_LINK))
    got = _gradients(c, VirtualExchange(c, 4))
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        # Each expert's row is rounded to BF16 here, and their sum there; E4M3 makes steps of that.
        assert float((gradient - want[name]).norm() / want[name].norm().clamp_min(1e-12)) < (6e-2 if fp8 else 1e-2), (
            name
        )


def test_rows_between_virtual_ranks_are_the_pairs_of_their_tokens_and_experts() -> None:
    exchange = VirtualExchange(SMALL, 4)
    torch.manual_seed(0)
    x, gates = torch.randint(-8, 9, (12, SMALL.d)).float(), torch.rand(12, 2)
    chosen = torch.rand(12, SMALL.experts).topk(2).indices
    where = {"layer": 0, "micro_batch": 0}
    arrived = exchange.dispatch(x, exchange.plan(chosen, gates), phase="dispatch(F)", **where).result()
    moved = arrived.way.moved.reshape(4, 4)
    for src in range(4):
        for dst in range(4):
            theirs = chosen[3 * src : 3 * src + 3] // 2
            assert moved[src, dst] == (theirs == dst).sum()
    sums = exchange.combine(arrived.rows, arrived, phase="combine(F)", **where).result()
    assert torch.equal(sums, 2 * x)
    _, back = exchange.combine_gradients(arrived.rows, arrived.gates, arrived, phase="dispatch(B)", **where).result()
    assert torch.equal(back, gates)
    thirteen = exchange.plan(chosen[:1].repeat(13, 1), gates[:1].repeat(13, 1))
    with pytest.raises(ConfigError, match="13 tokens"):
        exchange.dispatch(x[:1].repeat(13, 1), thirteen, phase="dispatch(F)", **where)
