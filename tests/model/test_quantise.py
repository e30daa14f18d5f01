"""Quantisation against a slow reference that walks over elements, and on tokens with outliers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.numerics.counts import counts  # noqa: E402
from moescope.instrumented_model.numerics.formats import to_float32  # noqa: E402
from moescope.instrumented_model.numerics.quantise import (  # noqa: E402
    dequantise,
    quantise_blocks,
    quantise_columns,
    quantise_tiles,
    requantised,
    transposed,
)


def _e4m3(value: float) -> float:
    """Nearest E4M3 value by arithmetic on the format's definition: 3 fraction bits, exponents -6..8, ties to even."""
    if value == 0:
        return 0.0
    magnitude = min(abs(value), 448.0)
    exponent = max(math.frexp(magnitude)[1] - 1, -6)
    step = 2.0 ** (exponent - 3)
    return math.copysign(round(magnitude / step) * step, value)  # round() takes ties to even


def _reference(x: np.ndarray, rows: int, power_of_2: bool) -> tuple[np.ndarray, np.ndarray]:
    n, k = x.shape
    scale = np.ones((-(-n // rows), -(-k // 128)), np.float32)
    q = np.zeros((n, k), np.float32)
    for i in range(scale.shape[0]):
        for j in range(scale.shape[1]):
            where = np.s_[i * rows : (i + 1) * rows, j * 128 : (j + 1) * 128]
            amax = np.abs(x[where]).max()
            if amax > 0:
                s = max(np.float32(amax / np.float32(448)), np.float32(2.0**-126))
                if power_of_2:
                    s = np.float32(2.0 ** math.ceil(math.log2(float(s))))
                scale[i, j] = s
            scaled = x[where] / scale[i, j]
            q[where] = np.vectorize(_e4m3, otypes=[np.float32])(scaled)
    return q, scale


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(1, 140),
    k=st.integers(1, 300),
    magnitude=st.integers(-30, 30),
    seed=st.integers(0, 2**31),
    power_of_2=st.booleans(),
    blocks=st.booleans(),
)
def test_values_and_scales_are_bit_equal_to_the_reference(
    n: int, k: int, magnitude: int, seed: int, power_of_2: bool, blocks: bool
) -> None:
    n = n if blocks else min(n, 9)
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((n, k)) * np.exp(2 * rng.standard_normal((n, k))) * 2.0**magnitude).astype(np.float32)
    x[rng.random((n, k)) < 0.05] = 0
    quantised = (quantise_blocks if blocks else quantise_tiles)(torch.from_numpy(x), power_of_2=power_of_2)
    q, scale = _reference(x, 128 if blocks else 1, power_of_2)
    assert np.array_equal(quantised.scale.numpy(), scale)
    assert np.array_equal(quantised.q.float().numpy(), q)
    element = np.repeat(np.repeat(scale, 128, 1)[:, :k], 128 if blocks else 1, 0)[:n]
    assert np.array_equal(dequantise(quantised).numpy(), q * element)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, 300), min_size=1, max_size=4), k=st.integers(1, 40), power_of_2=st.booleans())
def test_tiles_along_tokens_are_those_of_each_groups_transpose(rows: list[int], k: int, power_of_2: bool) -> None:
    rng = np.random.default_rng(sum(rows) + k)
    x = rng.standard_normal((sum(rows), k)).astype(np.float32)
    got = transposed(quantise_columns(torch.from_numpy(x), groups=rows, power_of_2=power_of_2))
    start, tile = 0, 0
    for count, end in zip(rows, np.cumsum(rows), strict=True):
        q, scale = _reference(np.ascontiguousarray(x[end - count : end].T), 1, power_of_2)
        covered = -(-count // 128)
        assert np.array_equal(got.q.float().numpy()[:, start : start + count], q)
        assert not got.q.float()[:, start + count : start + 128 * covered].any()
        assert np.array_equal(got.scale.numpy()[:, tile : tile + covered], scale)
        start, tile = start + 128 * covered, tile + covered
    assert got.q.shape == (k, start)
    assert torch.equal(dequantise(got), dequantise(transposed(got)).mT)


def test_rows_that_are_not_those_of_the_groups_are_refused() -> None:
    with pytest.raises(ValueError, match="do not sum to the 5 rows"):
        quantise_columns(torch.zeros(5, 8), groups=[2, 2])


def test_one_tensor_may_end_in_a_partial_tile_either_way() -> None:
    x = torch.randn(130, 200)
    columns, tiles = quantise_columns(x), quantise_tiles(x.T.contiguous())
    assert (columns.q.shape, columns.scale.shape) == ((130, 200), (2, 200))
    assert torch.equal(dequantise(columns), dequantise(tiles).T)


def test_requantising_the_other_way_is_exact_with_power_of_2_scales_and_loses_2_6_percent_with_fp32_scales() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 512)

    def added_error(power_of_2: bool) -> float:
        once = quantise_tiles(x, power_of_2=power_of_2)
        twice = requantised(once, power_of_2=power_of_2)
        assert (twice.rows, twice.columns) == (128, 1)
        return float((dequantise(twice) - dequantise(once)).norm() / dequantise(once).norm())

    assert added_error(power_of_2=True) == 0
    assert 0.02 < added_error(power_of_2=False) < 0.03


def test_leading_axes_are_quantised_each_on_its_own() -> None:
    w = torch.randn(3, 130, 200) * torch.tensor([1.0, 10.0, 100.0])[:, None, None]
    together = quantise_blocks(w)
    for i in range(3):
        alone = quantise_blocks(w[i])
        assert torch.equal(together.scale[i], alone.scale)
        assert torch.equal(together.q[i].float(), alone.q.float())


def test_power_of_2_scales_are_rounded_up_and_lose_nothing_more() -> None:
    x = torch.randn(16, 256)
    exact, rounded = quantise_tiles(x), quantise_tiles(x, power_of_2=True)
    assert torch.equal(torch.frexp(rounded.scale)[0], torch.full_like(rounded.scale, 0.5))
    assert (rounded.scale >= exact.scale).all()
    assert (rounded.scale < 2 * exact.scale).all()


def test_an_amax_of_448_times_a_power_of_2_keeps_its_scale() -> None:
    assert quantise_tiles(torch.full((1, 128), 448.0 * 4), power_of_2=True).scale.item() == 4.0


def test_outlier_tokens_harm_only_themselves_in_tiles_but_all_rows_of_a_block() -> None:
    torch.manual_seed(0)
    x = torch.randn(128, 128)
    x[5] *= 3e5

    def worst_row_error(y: torch.Tensor) -> float:
        return float(((y - x).norm(dim=1) / x.norm(dim=1)).max())

    assert worst_row_error(dequantise(quantise_tiles(x))) < 0.035
    assert worst_row_error(dequantise(quantise_blocks(x))) > 0.85


def test_what_is_not_finite_is_counted_and_does_not_move_the_scale() -> None:
    x = torch.linspace(-1, 1, 128).repeat(2, 1)
    y = x.clone()
    y[0, 3], y[0, 4], y[0, 5] = torch.inf, -torch.inf, torch.nan
    y[1, 7] = 1e-9
    quantised = quantise_tiles(y)
    assert quantised.scale[0, 0] == quantise_tiles(x).scale[0, 0]
    q = quantised.q.float()
    assert q[0, 3] == 448
    assert q[0, 4] == -448
    assert q[0, 5].isnan()
    c = counts(y, quantised)
    assert (c.saturated, c.flushed, c.nonfinite, c.elements, c.amax) == (2, 1, 3, 256, 1.0)


def test_zeros_and_no_rows_are_quantised_to_themselves() -> None:
    assert not dequantise(quantise_tiles(torch.zeros(2, 130))).any()
    assert dequantise(quantise_tiles(torch.zeros(0, 256))).shape == (0, 256)
    assert dequantise(quantise_tiles(torch.zeros(5, 0))).shape == (5, 0)


def test_every_code_of_the_table_is_the_cast_of_the_framework() -> None:
    q = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).reshape(2, 128).T
    assert torch.equal(to_float32(q).nan_to_num(1e6), q.float().nan_to_num(1e6))
