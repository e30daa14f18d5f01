"""Two real ranks over gloo: expert parallelism equals a dense masked mixture, overlap changes no gradient.

Run as a program this file is one rank of the test.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, size  # noqa: E402
from moescope.instrumented_model.layers.model import DenseLayer, Model, MoELayer  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Exchange  # noqa: E402
from moescope.instrumented_model.parallel.link import parse_link  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import joined, world  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402
from moescope.instrumented_model.training.train import gradients, routed, sync, train  # noqa: E402
from tests.model.ranks import run_ranks  # noqa: E402

SMALL = replace(size("tiny"), name="test", d=160, d_expert=72, layers=2, sequences=2, sequence_length=24)
PLAIN = replace(
    SMALL, fp8=False, layers=3, dense_layers=1, d_dense=96, shared_experts=2, routed_scale=2.5, balance_weight=0.1
)
"""Without quantisation, to be held against plain autograd, and with everything a layer may have."""


def _micro_batches(c: Config, rank: int) -> list[MicroBatch]:
    text = data.corpus()
    shape = {"sequences": c.sequences, "positions": c.sequence_length, "seed": 5}
    return [MicroBatch(m, *data.batch(text, step=0, rank=rank, micro_batch=m, **shape)) for m in range(2)]


class _Rounded(torch.autograd.Function):
    """What travels in BF16, there and back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.bfloat16().float()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g.bfloat16().float()


def _swiglu(x: torch.Tensor, up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    a, b = (x @ up.T).chunk(2, dim=-1)
    return (torch.nn.functional.silu(a) * b) @ down.T


def _dense_loss(model: Model, mb: MicroBatch, ranks: int) -> torch.Tensor:
    """Every expert on every token, masked by the gates, in plain autograd: the independent reference.

    Each rank's sum is rounded as it travels.
    """
    c, h, loss = model.c, model.embed(mb.tokens), torch.zeros(())
    for n in range(c.layers):
        layer = model.layer(n)
        if isinstance(layer, DenseLayer):
            residual, x = layer.attended(h, c.sequences, None)
            h = residual + _swiglu(x, layer.dense.gate_up.weight[0], layer.dense.down.weight[0])
            continue
        residual, x, gates, balance, chosen = layer.attend(h, c.sequences, None)
        loss = loss + balance
        h = residual
        if layer.shared is not None:
            h = h + _swiglu(x, layer.shared.gate_up.weight[0], layer.shared.down.weight[0])
        for experts in torch.arange(c.experts).chunk(ranks):
            y = torch.zeros_like(h)
            for e in experts.tolist():
                gate = (gates * (chosen == e)).sum(1, keepdim=True)
                weights = layer.experts.gate_up.weight[e], layer.experts.down.weight[e]
                y = y + gate * _swiglu(_Rounded.apply(x), *weights)
            h = h + _Rounded.apply(y)
    return loss + model.loss(h, mb.targets)[0]


def _close(got: torch.Tensor | None, want: torch.Tensor | None, tolerance: float, what: str) -> None:
    assert got is not None, what
    assert want is not None, what
    error = float((got - want).norm() / want.norm().clamp_min(1e-12))
    assert error < tolerance, f"{what}: relative error {error}"


def _check_dense(rank: int, exchange: Exchange) -> None:
    c = PLAIN
    model, reference = Model(c, rank=rank, ranks=2, seed=3), Model(c, seed=3)
    mine = _micro_batches(c, rank)
    loss = gradients(model, exchange, mine, "overlapped")
    load = sync(model, exchange, routed(mine))
    assert load.sum(1).tolist() == [2 * 2 * c.sequences * c.sequence_length * c.top_k] * (c.layers - c.dense_layers)
    own = []
    for r in range(2):
        for mb in _micro_batches(c, r):
            dense = _dense_loss(reference, mb, 2)
            (dense / 4).backward()
            if r == rank:
                own.append(float(dense.detach()))
    balance = sum(mb.balance for mb in mine)
    assert balance > 0
    assert abs(loss + balance / 2 - sum(own) / 2) < 1e-4, (loss, own)
    wanted = dict(reference.named_parameters())
    for name, parameter in model.named_parameters():
        want = wanted[name].grad
        assert want is not None, name
        _close(parameter.grad, want.chunk(2)[rank] if ".experts." in name else want, 2e-3, name)


def _check_schedules(rank: int, exchange: Exchange) -> None:
    """Five micro-batches, so that the interleaved schedule has a steady state; with multi-token prediction."""
    c = replace(SMALL, mtp_depth=2)
    text, shape = data.corpus(), {"sequences": 1, "positions": 24, "seed": 5}
    found = []
    for schedule in ("serial", "overlapped", "interleaved"):
        model = Model(c, rank=rank, ranks=2, seed=3)
        mine = [MicroBatch(m, *data.batch(text, step=0, rank=rank, micro_batch=m, **shape)) for m in range(5)]
        found.append((gradients(model, exchange, mine, schedule), {n: p.grad for n, p in model.named_parameters()}))
    loss, serial = found[0]
    for other_loss, others in found[1:]:
        assert loss == other_loss
        for name, gradient in serial.items():
            assert gradient is not None, name
            assert gradient.any(), name
            assert torch.equal(gradient, others[name]), name


def _check_idle_rank(rank: int, exchange: Exchange) -> None:
    """All tokens to rank 0's experts: zero-size splits."""
    model = Model(SMALL, rank=rank, ranks=2, seed=3)
    for n in range(SMALL.layers):
        layer = model.layer(n)
        assert isinstance(layer, MoELayer)
        layer.bias[: SMALL.experts // 2] = 10.0
    mine = _micro_batches(SMALL, rank)
    loss = gradients(model, exchange, mine, "overlapped")
    assert loss == loss
    assert not routed(mine)[:, SMALL.experts // 2 :].any()
    if rank == 1:
        assert not any(p.grad is not None and p.grad.any() for p in model.expert_parameters())


def _check_learning(rank: int, exchange: Exchange) -> None:
    model = Model(SMALL, rank=rank, ranks=2, seed=0)
    losses = [t.loss for t in train(model, exchange, steps=12, schedule="overlapped", seed=0)]
    assert losses[-1] < losses[0] - 1, losses


def _check_no_shared_expert(rank: int, exchange: Exchange) -> None:
    c = replace(PLAIN, shared_experts=0, dense_layers=0, layers=1)
    model, mb = Model(c, rank=rank, ranks=2, seed=3), _micro_batches(c, rank)[0]
    loss = gradients(model, exchange, [mb], "serial")
    want = float(_dense_loss(Model(c, seed=3), mb, 2).detach())
    assert abs(loss + mb.balance - want) < 1e-4


CHECKS = (_check_dense, _check_no_shared_expert, _check_schedules, _check_idle_rank, _check_learning)


def _rank_main() -> None:
    ranks = world()
    with joined(ranks, 60.0):
        for check in CHECKS:
            c = PLAIN if check in (_check_dense, _check_no_shared_expert) else SMALL
            exchange = open_exchange(c, ranks, parse_link("1GB/s:10us"))
            try:
                check(ranks.rank, exchange)
                print(f"{check.__name__} held", flush=True)
            finally:
                exchange.close()


def test_two_ranks_equal_the_dense_mixture_and_both_schedules_agree() -> None:
    for code, out, err in run_ranks([], module="tests.model.test_exchange"):
        assert code == 0, err
        assert out.count("held") == len(CHECKS)


@pytest.mark.parametrize("stage", ["train", "prefill", "decode"])
def test_the_program_runs_on_two_ranks_and_rank_0_alone_talks(stage: str) -> None:
    command = [stage, "--steps", "2", "--link", "1GB/s:10us"]
    (code, out, err), (other_code, other_out, other_err) = run_ranks(command)
    assert code == 0, err
    assert other_code == 0, other_err
    first = out.splitlines()[0]
    assert "backend cpu" in first
    assert "E4M3" in first
    assert "1000 MB/s" in first
    assert "median step" in out
    assert other_out == ""


def test_what_cannot_work_is_one_line_and_exit_2() -> None:
    for arguments, count, words in (
        ([], 3, "3 ranks do not divide 8 experts"),
        (["--size", "huge"], 1, "choose one of"),
        (["--link", "fast"], 1, "1GB/s:50us"),
        (["--steps", "0"], 1, "--steps"),
    ):
        for code, out, err in run_ranks(["train", *arguments], count):
            assert code == 2
            assert out == ""
            assert len(err.splitlines()) == 1
            assert words in err


if __name__ == "__main__":
    _rank_main()
