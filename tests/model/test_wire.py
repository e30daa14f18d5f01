"""Rows that came over the wire in FP8 are multiplied as they came: the same bits, and nothing quantised twice."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.gemm import linear  # noqa: E402
from moescope.instrumented_model.gemm.beside import WireGradient, stand_in  # noqa: E402
from moescope.instrumented_model.gemm.linear import Fp8Linear  # noqa: E402
from moescope.instrumented_model.gemm.swiglu import swiglu_linear  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.numerics.quantise import dequantise, quantise_blocks, quantise_tiles  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, as_float, finished  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training.train import gradients  # noqa: E402

C = replace(size("tiny"), name="test", d=136, d_expert=72, layers=2, sequence_length=24)


def _unpacked(exchange: Exchange) -> Exchange:
    """The same exchange, but rows are handed on in float32, so that experts must quantise them."""
    dispatch, again = exchange.dispatch, exchange.dispatch_again

    def floats(*operands: Any, **told: Any) -> Handle[Arrived]:
        arrived = dispatch(*operands, **told).result()
        return Handle(finished(replace(arrived, came=arrived.rows)), lambda a: a)

    def floats_again(*operands: Any, **told: Any) -> Handle[Any]:
        return Handle(finished(as_float(again(*operands, **told).result())), lambda rows: rows)

    exchange.dispatch, exchange.dispatch_again = floats, floats_again  # type: ignore[method-assign]
    return exchange


def test_the_bits_are_those_of_quantising_anew_and_each_row_is_quantised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(256, (1, C.sequence_length))
    pairs = C.sequence_length * C.top_k
    quantised: Counter[int] = Counter()
    original = linear.quantise_tiles

    def counted(x: torch.Tensor, **options: Any) -> Any:
        quantised[x.shape[0]] += 1
        return original(x, **options)

    monkeypatch.setattr(linear, "quantise_tiles", counted)
    found = []
    for unpacked in (False, True):
        exchange = open_exchange(C, Ranks(0, 1), NO_LINK)
        exchange = _unpacked(exchange) if unpacked else exchange
        model = Model(C, seed=3)
        quantised.clear()
        loss = gradients(model, exchange, [MicroBatch(0, tokens, tokens.roll(1))], "serial")
        found.append((loss, quantised[pairs], {name: p.grad for name, p in model.named_parameters()}))
    (loss, once, wire), (other_loss, twice, floats) = found
    assert loss == other_loss
    for name, gradient in wire.items():
        assert gradient is not None, name
        assert torch.equal(gradient, floats[name]), name
    # Rows of experts: the input of down and the gradient of up have not travelled. Up's input and down's gradient have.
    assert (once, twice) == (2 * C.layers, 4 * C.layers)


@pytest.mark.parametrize("f", [128, 72])
def test_gates_inside_have_the_gradients_of_gates_outside(f: int) -> None:
    torch.manual_seed(0)
    rows, n = [5, 0, 131], 96
    down = Fp8Linear("t.down", f, n, groups=3, power_of_2_dy=True)
    ab, gates = torch.randn(sum(rows), 2 * f, requires_grad=True), torch.rand(sum(rows), requires_grad=True)
    came, gradient = quantise_tiles(torch.randn(sum(rows), n), power_of_2=True), WireGradient()
    y = swiglu_linear(ab, down, rows, gates, gradient)
    gradient.came = came
    y.backward(stand_in(came))
    assert gradient.take() is None

    kept = torch.cat([dequantise(quantise_tiles(t)) for t in ab.detach().chunk(2, dim=-1)], -1).double()
    kept, g = kept.requires_grad_(), gates.detach().double().requires_grad_()
    a, b = kept.chunk(2, dim=-1)
    w = dequantise(quantise_blocks(down.weight.detach())).double()
    x = F.silu(a) * b
    outside = torch.cat([t @ w[e].T for e, t in enumerate(x.split(rows))]) * g[:, None]
    outside.backward(dequantise(came).double())
    for got, want in ((ab.grad, kept.grad), (gates.grad, g.grad)):
        assert got is not None
        assert want is not None
        torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-4)
    # Forward has rounded neither input; its last operand is rounded to E4M3, gate and all.
    assert float((y.detach() - outside.detach()).norm() / outside.detach().norm()) < 0.06
