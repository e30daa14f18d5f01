"""Pipeline stages on two real ranks give the gradients of the model in one piece. As a program: one of the ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks, joined, world  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training.pipeline import Pipeline, Stage, stages_of  # noqa: E402
from moescope.instrumented_model.training.train import gradients  # noqa: E402
from tests.model.ranks import run_ranks  # noqa: E402

C = replace(
    size("tiny"), name="small", layers=5, dense_layers=1, d=64, heads=2, d_head=16, d_rope=8, d_latent=32,
    d_query_latent=32, d_expert=32, d_dense=64, experts=4, sequence_length=12, balance_weight=0.0, sequences=2,
)  # fmt: skip
MICRO_BATCHES = 6


def _in_one_piece(c: Config, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[Model, float]:
    """The chain of chunks that expert parallelism trains with, on one rank."""
    model, exchange = Model(c, seed=2), open_exchange(c, Ranks(0, 1), NO_LINK)
    batches = zip(tokens.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES), strict=True)
    try:
        loss = gradients(model, exchange, [MicroBatch(m, t, y) for m, (t, y) in enumerate(batches)], "serial")
    finally:
        exchange.close()
    return model, loss


def _stage_after_stage(c: Config, tokens: torch.Tensor, targets: torch.Tensor) -> tuple[Model, float]:
    """The stages' modules one after another, in one graph a micro-batch, weight gradients at once."""
    model, total = Model(c, seed=2), 0.0
    stages = [Stage(model, first, end) for first, end in stages_of(c.layers, 2)]
    for t, y in zip(tokens.chunk(MICRO_BATCHES), targets.chunk(MICRO_BATCHES), strict=True):
        for stage in stages:
            t = stage(t)
        one = torch.nn.functional.cross_entropy(t.flatten(0, 1), y.flatten())
        one.backward()
        total += float(one.detach())
    for parameter in model.parameters():  # at the end, as torch does: another factor would be quantised otherwise
        if parameter.grad is not None:
            parameter.grad /= MICRO_BATCHES
    return model, total / MICRO_BATCHES


def _rank_main() -> None:
    ranks = world()
    torch.manual_seed(0)
    passage = torch.randint(256, (MICRO_BATCHES * C.sequences, C.sequence_length + 1))
    tokens, targets = passage[:, :-1], passage[:, 1:]
    with joined(ranks, 60.0):
        for c, reference, tolerance in (
            (replace(C, fp8=False), _in_one_piece, 1e-2),  # BF16 on the way to the experts there, none here
            (C, _stage_after_stage, 1e-5),
        ):
            whole, want_loss = reference(c, tokens, targets)
            model = Model(c, seed=2)
            pipeline = Pipeline(model, ranks, MICRO_BATCHES)
            loss = pipeline.gradients(tokens, targets)
            assert (loss is None) == (ranks.rank == 1)
            assert loss is None or loss == pytest.approx(want_loss, rel=tolerance)
            held = {id(p) for stage in pipeline.stages.values() for p in stage.parameters()}
            assert len(held) > 10
            wanted = dict(whole.named_parameters())
            for name, parameter in model.named_parameters():
                got, want = parameter.grad, wanted[name].grad
                assert (got is None) == (id(parameter) not in held), name
                if got is not None:
                    assert want is not None, name
                    error = float((got - want).norm() / want.norm().clamp_min(1e-12))
                    assert error < tolerance, (name, error)
            print("held", flush=True)


def test_gradients_of_two_pipelined_ranks_equal_those_of_the_model_in_one_piece() -> None:
    for code, out, err in run_ranks(["-m", "tests.model.test_pipeline"]):
        assert code == 0, err
        assert out.count("held") == 2


def test_every_layer_is_in_one_stage_and_too_few_layers_are_refused() -> None:
    for layers in range(4, 12):
        cuts = stages_of(layers, 2)
        assert [n for first, end in cuts for n in range(first, end)] == list(range(layers))
        assert all(end > first for first, end in cuts)
    with pytest.raises(ConfigError, match="3 layers do not fill the 4 stages"):
        stages_of(3, 2)


if __name__ == "__main__":
    _rank_main()
