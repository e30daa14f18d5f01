"""The three FP8 products against FP64, and the autograd function against plain autograd on dequantised operands."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.gemm.linear import (  # noqa: E402
    WEIGHT_GRADIENTS,
    Fp8Linear,
    dgrad,
    fprop,
    transposed_tiles,
    wgrad,
)
from moescope.instrumented_model.numerics.quantise import dequantise, quantise_blocks, quantise_tiles  # noqa: E402


def _sqnr_db(got: torch.Tensor, want: torch.Tensor) -> float:
    noise = (got.double() - want.double()).pow(2).sum()
    return float(10 * torch.log10(want.double().pow(2).sum() / noise))


@pytest.mark.parametrize("shape", [(64, 256, 384), (100, 130, 576), (1, 128, 128)])
def test_products_have_25_db_unquantised_and_100_db_to_fp64_of_their_operands(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    torch.manual_seed(1)
    x, w, dy = torch.randn(m, k), torch.randn(n, k), torch.randn(m, n)
    xq, wq, dyq = quantise_tiles(x), quantise_blocks(w), quantise_tiles(dy)
    x_t, dy_t = transposed_tiles(x), transposed_tiles(dy)
    xd, wd, dyd, x_td, dy_td = (dequantise(t).double() for t in (xq, wq, dyq, x_t, dy_t))
    x64, w64, dy64 = x.double(), w.double(), dy.double()
    for got, of_operands, unquantised in (
        (fprop(xq, wq), xd @ wd.T, x64 @ w64.T),
        (dgrad(dyq, wq), dyd @ wd, dy64 @ w64),
        (wgrad(dy_t, x_t), dy_td @ x_td.T, dy64.T @ x64),
    ):
        assert _sqnr_db(got, of_operands) > 100
        assert _sqnr_db(got, unquantised) > 25


def test_gradients_of_the_layer_are_those_of_autograd_on_dequantised_operands() -> None:
    torch.manual_seed(2)
    rows = [5, 0, 131]
    layer = Fp8Linear("t", 200, 150, groups=3)
    x = torch.randn(sum(rows), 200, requires_grad=True)
    dy = torch.randn(sum(rows), 150)
    y = layer(x, rows)
    y.backward(dy)

    xd = dequantise(quantise_tiles(x.detach()))
    wd = dequantise(quantise_blocks(layer.weight.detach()))
    dyd = dequantise(quantise_tiles(dy))
    x64 = xd.double().requires_grad_()
    w64 = wd.double().requires_grad_()
    reference = torch.cat([a @ w64[e].T for e, a in enumerate(x64.split(rows))])
    assert _sqnr_db(y.detach(), reference.detach()) > 100
    reference.backward(dyd.double())
    assert x.grad is not None
    assert _sqnr_db(x.grad, x64.grad) > 100
    assert layer.weight.grad is not None
    assert not layer.weight.grad[1].any()
    for e, (a, g) in enumerate(zip(xd.split(rows), dy.split(rows), strict=True)):
        if rows[e]:
            want = dequantise(transposed_tiles(g)).double() @ dequantise(transposed_tiles(a)).double().T
            assert _sqnr_db(layer.weight.grad[e], want) > 100
            assert _sqnr_db(layer.weight.grad[e], g.double().T @ a.double()) > 25


def test_deferred_weight_gradients_equal_immediate_ones() -> None:
    torch.manual_seed(3)
    layer = Fp8Linear("t", 64, 32)
    x, dy = torch.randn(10, 64), torch.randn(10, 32)
    layer(x).backward(dy)
    immediate = layer.weight.grad
    layer.weight.grad = None
    WEIGHT_GRADIENTS.deferred = True
    try:
        layer(x).backward(dy)
        assert layer.weight.grad is None
        for compute in WEIGHT_GRADIENTS.take():
            compute()
    finally:
        WEIGHT_GRADIENTS.deferred = False
    assert torch.equal(layer.weight.grad, immediate)
    assert WEIGHT_GRADIENTS.take() == []


def test_an_updated_weight_is_quantised_anew() -> None:
    layer = Fp8Linear("t", 64, 32)
    before = layer.dequantised()
    assert layer.dequantised() is before
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(layer.dequantised(), 2 * before)
