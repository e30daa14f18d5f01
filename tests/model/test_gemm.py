"""The three FP8 products against FP64, and the autograd function against plain autograd on dequantised operands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.gemm import products  # noqa: E402
from moescope.instrumented_model.gemm.arithmetic import Arithmetic  # noqa: E402
from moescope.instrumented_model.gemm.backend import Backend  # noqa: E402
from moescope.instrumented_model.gemm.backends.cpu import Cpu  # noqa: E402
from moescope.instrumented_model.gemm.backends.emulated import Emulated  # noqa: E402
from moescope.instrumented_model.gemm.beside import WEIGHT_GRADIENTS  # noqa: E402
from moescope.instrumented_model.gemm.linear import Fp8Linear  # noqa: E402
from moescope.instrumented_model.numerics.quantise import dequantise, quantise_blocks, quantise_tiles  # noqa: E402


def _sqnr_db(got: torch.Tensor, want: torch.Tensor) -> float:
    noise = (got.double() - want.double()).pow(2).sum()
    return float(10 * torch.log10(want.double().pow(2).sum() / noise))


@pytest.mark.parametrize("shape", [(64, 256, 384), (100, 130, 576), (1, 128, 128)])
@pytest.mark.parametrize("backend", [Cpu(), Emulated()])
def test_the_three_products_have_25_db_to_fp64_of_what_was_not_quantised(
    shape: tuple[int, int, int], backend: Backend
) -> None:
    m, n, k = shape
    torch.manual_seed(1)
    x, dy = torch.randn(m, k, requires_grad=True), torch.randn(m, n)
    layer = Fp8Linear("t", k, n)
    before = products.active()
    products.use(backend)
    try:
        y = layer(x)
        y.backward(dy)
    finally:
        products.use(before)
    w64, x64, dy64 = layer.weight.detach()[0].double(), x.detach().double(), dy.double()
    assert x.grad is not None
    assert layer.weight.grad is not None
    assert _sqnr_db(y.detach(), x64 @ w64.T) > 25
    assert _sqnr_db(x.grad, dy64 @ w64) > 25
    assert _sqnr_db(layer.weight.grad[0], dy64.T @ x64) > 25


def test_gradcheck_where_quantisation_is_exact() -> None:
    # Small whole numbers beside one 448, which sets the scale 1: all of them, and all one step away, are E4M3 values.
    # Along the tokens, where there is no 448, scales that are powers of 2 keep them exact.
    torch.manual_seed(0)
    k, n = 6, 5
    layer = Fp8Linear("t", k + 1, n, power_of_2_x=True, power_of_2_dy=True)
    with torch.no_grad():
        layer.weight.copy_(torch.randint(-4, 5, layer.weight.shape))
        layer.weight[0, 0, 0] = 448.0
    pinned = torch.full((3, 1), 448.0, dtype=torch.float64)

    def outputs(x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = layer(torch.cat([x, pinned], 1).float())
        return y.double()

    x = torch.randint(-4, 5, (3, k)).double().requires_grad_()
    assert torch.autograd.gradcheck(outputs, (x,), eps=1.0, atol=1e-6, rtol=1e-6, fast_mode=False)

    layer.weight.grad = None
    dy = torch.randint(-2, 3, (3, n)).float()
    dy[:, 0] = 448.0
    layer(torch.cat([x.detach(), pinned], 1).float()).backward(dy)
    gradient = layer.weight.grad

    def loss() -> float:
        return float((outputs(x.detach()).detach().float() * dy).sum())

    for row, column in ((1, 1), (2, 3), (n - 1, k)):
        found = []
        for change in (1.0, -1.0):
            with torch.no_grad():
                layer.weight[0, row, column] += change
            found.append(loss())
            with torch.no_grad():
                layer.weight[0, row, column] -= change
        assert gradient is not None
        assert gradient[0, row, column].item() == (found[0] - found[1]) / 2


def test_e5m6_keeps_the_input_finer_than_e4m3_in_half_a_byte_more() -> None:
    torch.manual_seed(0)
    x, dy = torch.randn(256, 256), torch.randn(256, 128)
    saved: list[torch.Tensor] = []

    def keep(t: torch.Tensor) -> torch.Tensor:
        saved.append(t)
        return t

    gradients, sizes = [], []
    for kept in ("e4m3", "e5m6"):
        torch.manual_seed(1)
        layer = Fp8Linear("t", 256, 128, power_of_2_x=True, power_of_2_dy=True, keep=kept)  # type: ignore[arg-type]
        saved.clear()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            y = layer(x)
        sizes.append(sum(t.numel() * t.element_size() for t in saved) - 256 * 2 * 4)
        y.backward(dy)
        gradients.append(layer.weight.grad)
    assert sizes == [256 * 256, 256 * 256 * 3 // 2]
    # Powers of 2 all the way: E4M3 that was kept and E4M3 made of E5M6 differ by the double rounding alone.
    assert _sqnr_db(gradients[1], gradients[0]) > 30


def test_an_input_that_came_over_the_wire_is_not_quantised_again() -> None:
    torch.manual_seed(0)
    layer = Fp8Linear("t", 256, 128, groups=2, power_of_2_x=True)
    x, dy = torch.randn(9, 256), torch.randn(9, 128)
    wire = quantise_tiles(x, power_of_2=True)
    results = []
    for given, more in ((dequantise(wire), {}), (torch.zeros(1, 1).expand(9, 256), {"wire": wire})):
        leaf = given.clone().requires_grad_() if not more else given.detach().requires_grad_()
        layer.weight.grad = None
        y = layer(leaf, [4, 5], **more)
        y.backward(dy)
        results.append((y.detach(), leaf.grad, layer.weight.grad))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    with pytest.raises(ValueError, match=r"wire \[9, 256\] does not stand for x \[8, 256\]"):
        layer(torch.zeros(8, 256), [4, 4], wire=wire)


@pytest.fixture
def emulated() -> Iterator[None]:
    """Products as the tensor core adds them up."""
    before = products.active()
    products.use(Emulated())
    yield
    products.use(before)


@pytest.mark.usefixtures("emulated")
def test_a_linear_promotes_and_rounds_its_three_products_as_its_arithmetic_says() -> None:
    """All positive, so that what 14 bits lose shows: it grows with the interval, in each of the three."""
    torch.manual_seed(0)
    x, dy = torch.rand(256, 256), torch.rand(256, 256)
    found: dict[Arithmetic, list[torch.Tensor]] = {}
    for arithmetic in (Arithmetic(interval=32), Arithmetic(), Arithmetic(interval=32, out_dtype=torch.bfloat16)):
        layer = Fp8Linear("t", 256, 256, arithmetic=arithmetic)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(1)))
        leaf = x.clone().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        assert leaf.grad is not None
        assert layer.weight.grad is not None
        found[arithmetic] = [y.detach(), leaf.grad, layer.weight.grad[0]]
    w = dequantise(quantise_blocks(torch.rand(1, 256, 256, generator=torch.Generator().manual_seed(1))))[0].double()
    xd, dyd = (dequantise(quantise_tiles(t)).double() for t in (x, dy))
    exact = [xd @ w.T, dyd @ w, _along_tokens(dy).T @ _along_tokens(xd.float())]
    fine, coarse, rounded = found.values()
    for a, b, want in zip(fine, coarse, exact, strict=True):
        errors = [float((t.double() - want).norm() / want.norm()) for t in (a, b)]
        assert 0 < 3 * errors[0] < errors[1] < 2e-3
    assert all(torch.equal(a.bfloat16().float(), b) for a, b in zip(fine[:2], rounded[:2], strict=True))
    assert torch.equal(fine[2], rounded[2])


@pytest.mark.parametrize(
    ("x", "rows", "why"),
    [
        ((3, 100), None, r"t: input \[3, 100\] does not multiply with weights \[32, 64\]: give \[rows, 64\]"),
        ((3, 64), [1, 1], r"rows \[1, 1\] do not share out 3 rows over 1 groups"),
    ],
)
def test_inputs_that_do_not_fit_are_named(x: tuple[int, int], rows: list[int] | None, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Fp8Linear("t", 64, 32)(torch.zeros(x), rows)


def _along_tokens(x: torch.Tensor) -> torch.Tensor:
    """x as 128x1 tiles hold it. returns: [m, k] float64"""
    return dequantise(quantise_tiles(x.T.contiguous())).T.double()


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
            want = _along_tokens(g).T @ _along_tokens(a)
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
    assert layer.dequantised().data_ptr() == before.data_ptr()
    with torch.no_grad():
        layer.weight.mul_(2)
    assert torch.equal(layer.dequantised(), 2 * before)
