"""SwiGLU with its inputs kept in FP8: gradients against plain autograd on what was kept, and the bytes kept."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

import torch.nn.functional as F  # noqa: E402

from moescope.instrumented_model.gemm.arithmetic import Arithmetic  # noqa: E402
from moescope.instrumented_model.gemm.linear import Fp8Linear  # noqa: E402
from moescope.instrumented_model.gemm.swiglu import swiglu_linear  # noqa: E402
from moescope.instrumented_model.numerics.quantise import (  # noqa: E402
    dequantise,
    quantise_blocks,
    quantise_columns,
    quantise_tiles,
)


def _kept(a: torch.Tensor) -> torch.Tensor:
    return dequantise(quantise_tiles(a)).double()


@pytest.mark.parametrize("f", [128, 200])
def test_gradients_are_those_of_autograd_on_the_dequantised_inputs(f: int) -> None:
    torch.manual_seed(0)
    rows, n = [5, 0, 131], 96
    down = Fp8Linear("t.down", f, n, groups=3, power_of_2_dy=True)
    ab = torch.randn(sum(rows), 2 * f, requires_grad=True)
    dy = torch.randn(sum(rows), n)
    y = swiglu_linear(ab, down, rows)
    y.backward(dy)

    a, b = (_kept(t).requires_grad_() for t in ab.detach().chunk(2, dim=-1))
    w = dequantise(quantise_blocks(down.weight.detach())).double()
    x = F.silu(a) * b
    reference = torch.cat([t @ w[e].T for e, t in enumerate(x.split(rows))])
    reference.backward(dequantise(quantise_tiles(dy, power_of_2=True)).double())
    assert ab.grad is not None
    assert a.grad is not None
    assert b.grad is not None
    torch.testing.assert_close(ab.grad.double(), torch.cat([a.grad, b.grad], -1), rtol=1e-4, atol=1e-5)

    # Forward has the inputs themselves.
    forward = dequantise(quantise_tiles(F.silu(ab.detach()[:, :f]) * ab.detach()[:, f:])).double()
    want = torch.cat([t @ w[e].T for e, t in enumerate(forward.split(rows))])
    torch.testing.assert_close(y.detach().double(), want, rtol=1e-4, atol=1e-5)

    assert down.weight.grad is not None
    for e, (t, g) in enumerate(zip(x.detach().float().split(rows), dy.split(rows), strict=True)):
        if rows[e]:
            dy_t, x_t = dequantise(quantise_columns(g, power_of_2=True)), dequantise(quantise_columns(t))
            want = dy_t.double().T @ x_t.double()
            # Values at a rounding boundary may fall to either side when x is computed anew.
            assert float((down.weight.grad[e] - want).norm() / want.norm()) < 2e-3
        else:
            assert not down.weight.grad[e].any()


def test_what_is_saved_is_the_two_inputs_in_fp8_with_their_scales() -> None:
    m, f = 64, 256
    saved: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved.append(t)
        return t

    def bytes_of(fp8: bool) -> int:
        saved.clear()
        ab = torch.randn(m, 2 * f, requires_grad=True)
        down = Fp8Linear("t.down", f, 128, arithmetic=Arithmetic(fp8=fp8))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            swiglu_linear(ab, down)
        stores = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in saved}
        stores.pop(down.weight.untyped_storage().data_ptr(), None)
        return sum(stores.values())

    assert bytes_of(fp8=True) == m * (2 * f + 4 * 2 * f // 128)
    # In FP32: a and b, silu(a) and its product with b.
    assert bytes_of(fp8=False) == m * 4 * (2 * f + f + f)


def test_no_graph_saves_nothing_and_gives_the_same() -> None:
    torch.manual_seed(0)
    down = Fp8Linear("t.down", 128, 64)
    ab = torch.randn(7, 256)
    with torch.no_grad():
        without = swiglu_linear(ab, down)
    assert torch.equal(without, swiglu_linear(ab, down).detach())


def test_an_input_that_is_not_two_times_the_width_is_named() -> None:
    with pytest.raises(
        ValueError, match=r"t.down: input \[7, 128\] is not two times \[rows, 128\]: give \[rows, 256\]"
    ):
        swiglu_linear(torch.ones(7, 128), Fp8Linear("t.down", 128, 64))
