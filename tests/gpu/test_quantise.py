"""Quantisation kernels give the bits of the plain reference. Not yet run on a GPU."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.model.interpreted import plain  # noqa: E402

pytestmark = pytest.mark.gpu


def _every_tie() -> torch.Tensor:
    """Every value of E4M3, what lies in the middle between neighbours, and what lies next to that, both signs."""
    values = torch.arange(127, dtype=torch.uint8).view(plain.E4M3).float()
    middles = (values[1:] + values[:-1]) / 2
    near = [torch.nextafter(middles, torch.tensor(to)) for to in (-1e9, 1e9)]
    one = torch.cat([values, middles, *near])
    return torch.cat([one, -one])


@pytest.mark.parametrize("power_of_2", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "k"), [(1, 128), (33, 576), (70, 200)])
def test_tiles_are_quantised_bit_for_bit(m: int, k: int, dtype: torch.dtype, power_of_2: bool, device) -> None:
    from moescope.instrumented_model.kernels.quantise import quantise_tiles

    torch.manual_seed(0)
    x = (torch.randn(m, k) * 10 ** (4 * torch.rand(m, 1) - 2)).to(dtype)
    x[0, 0], x[-1, -1] = 0, 1e-30
    q, s = quantise_tiles(x.to(device), power_of_2=power_of_2)
    want_q, want_s = plain.tiles(x, power_of_2)
    assert torch.equal(s.cpu(), want_s)
    assert torch.equal(q.cpu().double(), want_q)


def test_every_tie_of_the_format_goes_to_the_even_neighbour(device) -> None:
    from moescope.instrumented_model.kernels.quantise import quantise_tiles

    ties = _every_tie()
    x = torch.zeros(len(ties), 128)
    x[:, 0], x[:, 1] = 448, ties  # 448 makes the scale 1
    q, s = quantise_tiles(x.to(device))
    assert torch.equal(s.cpu(), torch.ones(len(ties), 1))
    assert torch.equal(q.cpu()[:, 1].double(), plain.e4m3(ties))


def test_infinities_saturate_and_nan_stays(device) -> None:
    from moescope.instrumented_model.kernels.quantise import quantise_tiles

    x = torch.full((1, 128), 2.0)
    x[0, :3] = torch.tensor([float("inf"), float("-inf"), float("nan")])
    q, s = quantise_tiles(x.to(device))
    assert float(s) == float(torch.tensor(2.0) / 448)
    assert q.cpu()[0, :2].float().tolist() == [448, -448]
    assert bool(q.cpu()[0, 2].float().isnan())


def test_swiglu_is_quantised_within_a_step_of_the_format(device) -> None:
    """The device's exponential is an approximation, so a value near a tie may fall to the other side."""
    from moescope.instrumented_model.kernels.quantise import swiglu_quantise

    torch.manual_seed(1)
    h = torch.randn(50, 512).bfloat16()
    q, s = swiglu_quantise(h.to(device))
    a, b = h.double().chunk(2, dim=1)
    y = a * torch.sigmoid(a) * b
    scale = s.cpu().double()
    assert torch.allclose(scale, y.reshape(50, 2, 128).abs().amax(2) / 448, rtol=1e-5)
    want, got = y / scale.repeat_interleave(128, 1), q.cpu().double()
    step = torch.ldexp(torch.ones_like(want), torch.frexp(want.abs().clamp_min(2**-6))[1] - 4)
    assert ((got - want).abs() <= 0.501 * step).all()


@pytest.mark.parametrize("rows", [[128], [5, 0, 130, 1]])
def test_columns_are_quantised_group_by_group(rows: list[int], device) -> None:
    from moescope.instrumented_model.kernels.transpose import transpose_quantise

    torch.manual_seed(2)
    x = torch.randn(sum(rows), 200).bfloat16()
    q, s = transpose_quantise(x.to(device), rows=rows, power_of_2=True)
    at = 0
    for group in x.split(rows):
        tiles = -(-len(group) // 128)
        want_q, want_s = plain.tiles(group.T, True) if len(group) else (torch.zeros(200, 0), torch.zeros(200, 0))
        assert torch.equal(s.cpu()[:, at : at + tiles], want_s)
        got = q.cpu()[:, 128 * at : 128 * (at + tiles)].double()
        assert torch.equal(got[:, : len(group)], want_q.double())
        assert not got[:, len(group) :].any()
        at += tiles
    assert s.shape[1] == at
