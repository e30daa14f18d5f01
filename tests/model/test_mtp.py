"""Multi-token prediction: loss and gradients equal those of plain autograd over single positions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model, MoELayer  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training.recipe import Recipe  # noqa: E402
from moescope.instrumented_model.training.train import Trainer, gradients  # noqa: E402

C = replace(
    size("tiny"), name="small", layers=1, d=64, heads=2, d_head=16, d_rope=8, d_latent=32, d_query_latent=32,
    d_expert=32, d_dense=64, experts=4, sequence_length=9, sequences=2, mtp_depth=2, mtp_weight=0.7, fp8=False,
)  # fmt: skip


class _Rounded(torch.autograd.Function):
    """What travels in BF16, there and back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g.bfloat16().float()


def _rms(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + torch.finfo(torch.float32).eps).sqrt() * weight


def _block(layer: MoELayer, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """One sequence through a layer, every expert on every token masked by its gate. h: [positions, d]"""
    residual, x, gates, balance, chosen = layer.attend(h, 1, None)

    def swiglu(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
        a, b = (x @ up.T).chunk(2, dim=-1)
        return (torch.nn.functional.silu(a) * b) @ down.T

    assert layer.shared is not None
    y = residual + swiglu(x, layer.shared.gate_up.weight[0], layer.shared.down.weight[0])
    routed = torch.zeros_like(y)
    for e in range(len(layer.experts.down.weight)):
        gate = (gates * (chosen == e)).sum(1, keepdim=True)
        routed = routed + gate * swiglu(
            _Rounded.apply(x), layer.experts.gate_up.weight[e], layer.experts.down.weight[e]
        )
    return y + _Rounded.apply(routed), balance


def _reference(
    model: Model, tokens: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Next-byte loss, mean further loss, balance loss: sequence by sequence, position by position."""
    c = model.c
    main, further, balances = torch.zeros(()), torch.zeros(()), torch.zeros(())
    for sequence, following in zip(tokens, targets, strict=True):
        t = torch.cat([sequence, following[-1:]])  # t[i - 1] is the report's t_i, i = 1 to T + 1
        T = len(sequence)
        h, balance = _block(model.layer(0), model.embedding.weight[sequence])
        balances = balances + balance
        logits = _rms(h, model.norm.weight) @ model.head.weight.T
        for i in range(1, T + 1):
            main = main - logits[i - 1].log_softmax(-1)[t[i]] / T
        for k in range(1, c.mtp_depth + 1):
            module = model.mtp[k - 1]
            merged = [
                module.projection.weight[0]
                @ torch.cat(
                    [
                        _rms(h[i - 1], module.hidden_norm.weight),
                        _rms(model.embedding.weight[t[i + k - 1]], module.embedding_norm.weight),
                    ]
                )
                for i in range(1, T - k + 1)
            ]
            h, balance = _block(module.layer, torch.stack(merged))
            balances = balances + balance
            logits = _rms(h, module.norm.weight) @ model.head.weight.T
            for i in range(2 + k, T + 2):  # P^k_i is made at position i - k - 1
                further = further - logits[i - k - 2].log_softmax(-1)[t[i - 1]] / T / c.mtp_depth
    n = len(tokens)
    return main / n, further / n, balances / n


def test_losses_and_gradients_equal_plain_autograd_over_positions() -> None:
    model, reference = Model(C, seed=1), Model(C, seed=1)
    torch.manual_seed(0)
    passage = torch.randint(256, (2, 10))
    mb = MicroBatch(0, passage[:, :-1], passage[:, 1:])
    exchange = open_exchange(C, Ranks(0, 1), NO_LINK)
    try:
        loss = gradients(model, exchange, [mb], "serial")
    finally:
        exchange.close()
    main, further, balance = _reference(reference, mb.tokens, passage[:, 1:])
    assert loss == pytest.approx(float(main.detach()), rel=1e-4)
    assert mb.further / 2 == pytest.approx(float(further.detach()), rel=1e-4)
    assert mb.balance == pytest.approx(float(balance.detach()), rel=1e-4)
    (main + C.mtp_weight * further + balance).backward()
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        got, want = parameter.grad, wanted[name].grad
        assert got is not None, name
        assert want is not None, name
        assert float((got - want).norm() / want.norm().clamp_min(1e-12)) < 3e-3, name


def test_training_with_further_predictions_learns_them_and_balances_their_experts() -> None:
    exchange = open_exchange(C, Ranks(0, 1), NO_LINK)
    text = torch.tensor(list(b"def f(x):\n    return x * x\n" * 20), dtype=torch.uint8)
    trainer = Trainer(Model(C, seed=1), exchange, Recipe(), schedule="interleaved", text=text)
    try:
        batches = trainer.micro_batches()
        gradients(trainer.model, exchange, batches, "interleaved")
        trainer.optimizer.zero_grad()
        before = sum(mb.further for mb in batches)
        for _ in range(30):
            result = trainer.run_step()
        batches = trainer.micro_batches()
        gradients(trainer.model, exchange, batches, "interleaved")
    finally:
        trainer.close()
        exchange.close()
    assert sum(mb.further for mb in batches) < before / 2
    assert list(trainer.model.moe_layers()) == [0, 1, 2]
    assert result.load.sum(1).tolist() == [2 * 2 * 2 * 9, 2 * 2 * 2 * 8, 2 * 2 * 2 * 7]
    assert all(layer.bias.any() for layer in trainer.model.moe_layers().values())


def test_a_depth_that_leaves_nothing_to_predict_is_refused() -> None:
    with pytest.raises(ConfigError, match="mtp_depth 9 leaves no token"):
        Model(replace(C, mtp_depth=9))
