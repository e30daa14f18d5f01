"""Quantisation, SwiGLU and transposition by kernels, bit for bit where arithmetic is exact."""

from __future__ import annotations

import pytest
import torch

from moescope.instrumented_model.kernels.quantise import quantise_tiles, swiglu_backward_quantise, swiglu_quantise
from moescope.instrumented_model.kernels.transpose import transpose_blocks, transpose_quantise
from tests.model.interpreted import plain

# exp(-a) of a large negative a: infinity, whose reciprocal 0 is the sigmoid.
pytestmark = pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning")


def _spread(m: int, k: int, seed: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Values over many binades, zeros among them, and a tile of zeros."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=generator) * torch.exp(2 * torch.randn(m, k, generator=generator))
    x[torch.rand(m, k, generator=generator) < 0.05] = 0
    x[0, :128] = 0
    return x.to(dtype)


@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize(
    ("m", "k", "dtype"), [(1, 128, torch.float32), (70, 300, torch.bfloat16), (33, 576, torch.float32)]
)
def test_values_and_scales_are_bit_equal_to_the_reference(m: int, k: int, dtype: torch.dtype, power_of_2: bool) -> None:
    x = _spread(m, k, m, dtype)
    q, s = quantise_tiles(x, power_of_2=power_of_2)
    want_q, want_s = plain.tiles(x, power_of_2)
    assert torch.equal(s, want_s)
    assert torch.equal(q.float().double(), want_q)


def test_every_tie_and_neighbour_rounds_as_the_format_says() -> None:
    codes = torch.arange(0x7F, dtype=torch.uint8).view(plain.E4M3).float()
    between = (codes[1:] + codes[:-1]) / 2
    x = torch.cat([codes, between, torch.nextafter(between, codes[1:]), torch.nextafter(between, codes[:-1])])
    x = torch.cat([x, -x, torch.full((-2 * len(x) % 127,), 1.0)]).reshape(-1, 127)
    x = torch.cat([x, torch.full((len(x), 1), 448.0)], 1)  # scale 1
    q, s = quantise_tiles(x)
    assert (s == 1).all()
    assert torch.equal(q.float().double(), plain.e4m3(x))


def test_what_is_not_finite_saturates_or_stays_and_does_not_move_the_scale() -> None:
    x = torch.linspace(-1, 1, 128).repeat(2, 1)
    y = x.clone()
    y[0, 3], y[0, 4], y[0, 5] = torch.inf, -torch.inf, torch.nan
    q, s = quantise_tiles(y)
    assert torch.equal(s, quantise_tiles(x)[1])
    assert q[0, 3].float() == 448
    assert q[0, 4].float() == -448
    assert q[0, 5].float().isnan()
    assert q.float().isnan().sum() == 1


def test_rows_of_a_wider_matrix_are_read_with_its_stride() -> None:
    x = _spread(40, 512, 5)
    assert torch.equal(
        quantise_tiles(x[:, 128:384])[0].view(torch.uint8),
        quantise_tiles(x[:, 128:384].contiguous())[0].view(torch.uint8),
    )


def test_no_rows_give_no_rows() -> None:
    q, s = quantise_tiles(torch.zeros(0, 256))
    assert q.shape == (0, 256)
    assert s.shape == (0, 2)


def _dequantised_within_half_a_step(q: torch.Tensor, s: torch.Tensor, want: torch.Tensor) -> None:
    """q * s is `want` rounded to E4M3 after scaling, give or take float32 noise at the ties."""
    got = plain.values(q, s)
    scaled = (want / s.double()[:, torch.arange(want.shape[1]) // 128]).abs()
    half_step = torch.ldexp(torch.ones_like(scaled), torch.frexp(scaled.clamp(2.0**-6, 448))[1] - 5)
    bound = half_step * s.double()[:, torch.arange(want.shape[1]) // 128] * (1 + 1e-4)
    assert ((got - want).abs() <= bound + 1e-5 * want.abs()).all()


def _silu(a: torch.Tensor) -> torch.Tensor:
    return a / (1 + torch.exp(-a))


@pytest.mark.parametrize("cached", [False, True])
def test_swiglu_is_quantised_with_its_gates(cached: bool) -> None:
    m, f = 37, 256
    if cached:
        h, hs = plain.quantised(m, 2 * f, 1)
        hs /= 32
        ab = plain.values(h, hs)
    else:
        h, hs = _spread(m, 2 * f, 2, torch.bfloat16), None
        ab = h.double()
    gates = torch.rand(m, generator=torch.Generator().manual_seed(3))
    want = _silu(ab[:, :f]) * ab[:, f:] * gates.double()[:, None]
    q, s = swiglu_quantise(h, hs, gates=gates, power_of_2=True)
    assert (torch.frexp(s)[0] == 0.5).all()
    _dequantised_within_half_a_step(q, s, want)
    amax = want.abs().reshape(m, -1, 128).amax(-1)
    assert (amax / s.double() <= 448 * (1 + 1e-5)).all()
    assert ((amax / s.double() > 224 * (1 - 1e-5)) | (amax == 0)).all()
    without, scale_without = swiglu_quantise(h, hs)
    _dequantised_within_half_a_step(without, scale_without, _silu(ab[:, :f]) * ab[:, f:])


def test_swiglu_of_partial_tiles() -> None:
    h = _spread(5, 2 * 200, 4)
    q, s = swiglu_quantise(h)
    assert s.shape == (5, 2)
    _dequantised_within_half_a_step(q, s, _silu(h[:, :200].double()) * h[:, 200:].double())


@pytest.mark.parametrize("cached", [False, True])
def test_gradient_of_swiglu_is_that_of_autograd(cached: bool) -> None:
    m, f = 34, 256
    h, hs = plain.quantised(m, 2 * f, 6)
    hs /= 32
    ab = plain.values(h, hs).requires_grad_()
    dy = torch.randn(m, f, generator=torch.Generator().manual_seed(7)).bfloat16()
    (_silu(ab[:, :f]) * ab[:, f:]).backward(dy.double())
    assert ab.grad is not None
    q, s = swiglu_backward_quantise(dy, h, hs) if cached else swiglu_backward_quantise(dy, ab.detach().float())
    _dequantised_within_half_a_step(q, s, ab.grad)


@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("rows", [[300], [0, 1, 130, 0, 128, 41, 0], [1]])
def test_groups_are_transposed_and_quantised_each_in_tiles_of_its_own(rows: list[int], power_of_2: bool) -> None:
    d = 200
    x, s = plain.quantised(sum(rows), d, 8)
    q, qs = transpose_quantise(x, s, rows=rows, power_of_2=power_of_2)
    column = 0
    for group in torch.split(plain.values(x, s).float(), rows):
        width = -(-len(group) // 128) * 128
        want_q, want_s = plain.tiles(group.T, power_of_2)
        assert torch.equal(q[:, column : column + len(group)].float().double(), want_q)
        assert not q[:, column + len(group) : column + width].float().any()
        assert torch.equal(qs[:, column // 128 : (column + width) // 128], want_s)
        column += width
    assert q.shape == (d, column)


def test_bfloat16_is_transposed_and_quantised_at_once() -> None:
    x = _spread(140, 130, 9, torch.bfloat16)
    q, qs = transpose_quantise(x)
    want_q, want_s = plain.tiles(x.T, False)
    assert torch.equal(q[:, :140].float().double(), want_q)
    assert torch.equal(qs, want_s)


def test_requantisation_with_power_of_2_scales_adds_no_error() -> None:
    x = torch.randn(256, 256, generator=torch.Generator().manual_seed(10))
    exact, fp32 = quantise_tiles(x, power_of_2=True), quantise_tiles(x)
    again, again_s = transpose_quantise(*exact, power_of_2=True)
    assert torch.equal(plain.values(again, again_s).T, plain.values(*exact))
    lossy, lossy_s = transpose_quantise(*fp32)
    assert not torch.equal(plain.values(lossy, lossy_s).T, plain.values(*fp32))


def test_blocks_are_transposed_exactly() -> None:
    q, s = plain.blocks(200, 300, 11)
    assert torch.equal(plain.values(*transpose_blocks(q, s), rows=128), plain.values(q, s, rows=128).T)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: quantise_tiles(torch.zeros(2, 2, dtype=torch.int32)), "x is int32: give bfloat16 or float32"),
        (lambda: quantise_tiles(torch.zeros(2)), r"x has shape \[2\]: give \[\*, \*\]"),
        (lambda: quantise_tiles(torch.zeros(4, 4).T), "last axis of x has stride 4"),
        (lambda: quantise_tiles(torch.zeros(4, 4), sms=0), "sms is 0"),
        (lambda: swiglu_quantise(torch.zeros(2, 5)), "h has 5 columns: give an even number"),
        (lambda: swiglu_quantise(*plain.quantised(2, 200, 0)), "half of h is 100 wide"),
        (lambda: transpose_quantise(torch.zeros(5, 8), rows=[2, 2]), "rows sums to 4, there are 5 rows"),
        (lambda: transpose_quantise(torch.zeros(5, 8), rows=[6, -1]), "group of -1 rows"),
    ],
)
def test_what_does_not_fit_is_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=message):
        call()


def test_a_layer_s_products_and_gradients_are_the_same_by_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.instrumented_model.gemm import quantisers
    from moescope.instrumented_model.gemm.linear import Fp8Linear
    from moescope.instrumented_model.gemm.swiglu import swiglu_linear

    torch.manual_seed(0)
    up, down = Fp8Linear("up", 200, 288, groups=3, power_of_2_x=True), Fp8Linear("down", 144, 96, groups=3)
    x, rows, gates = torch.randn(140, 200), [70, 0, 70], torch.rand(140)
    found = []
    for kernels in (False, True):
        monkeypatch.setattr(quantisers, "by_kernels", lambda device, kernels=kernels: kernels)
        given = x.clone().requires_grad_()
        for layer in (up, down):
            layer.weight.grad = None
        y = swiglu_linear(up(given, rows), down, rows, gates)
        y.backward(torch.cos(y.detach()))
        found.append([y.detach(), given.grad, up.weight.grad, down.weight.grad])
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
