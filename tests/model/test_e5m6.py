"""E5M6 against the format's definition, walked over value by value, and its packing in three bytes a pair."""

from __future__ import annotations

import bisect

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.numerics.counts import counts, format_name  # noqa: E402
from moescope.instrumented_model.numerics.e5m6 import (  # noqa: E402
    dequantise_e5m6,
    pack,
    quantise_e5m6,
    rounded,
    unpack,
)
from moescope.instrumented_model.numerics.quantise import dequantise, quantise_tiles  # noqa: E402

MAGNITUDES = [m * 2.0**-20 for m in range(64)] + [
    (64 + m) / 64 * 2.0**exponent for exponent in range(-14, 16) for m in range(64)
]
"""All 31 * 64 of them in order, so that the index is even where the last fraction bit is."""
VALUES = MAGNITUDES + [-v for v in MAGNITUDES]


def _nearest(x: float) -> float:
    """By search, ties to the even code, saturating."""
    magnitude = min(abs(x), MAGNITUDES[-1])
    above = min(bisect.bisect_left(MAGNITUDES, magnitude), len(MAGNITUDES) - 1)
    below = max(above - 1, 0)
    up, down = MAGNITUDES[above] - magnitude, magnitude - MAGNITUDES[below]
    best = above if up < down or (up == down and above % 2 == 0) else below
    return MAGNITUDES[best] if x >= 0 else -MAGNITUDES[best]


def test_its_own_values_survive_packing_exactly_in_one_and_a_half_bytes_an_element() -> None:
    x = torch.tensor(VALUES)
    packed = pack(x)
    assert packed.numel() * 2 == 3 * x.numel()
    assert torch.equal(unpack(packed, x.numel()), x)


@settings(max_examples=300, deadline=None)
@given(
    st.one_of(
        st.floats(-70000, 70000, width=32),
        st.floats(-(2.0**-12), 2.0**-12, width=32),
        st.tuples(st.sampled_from(range(len(MAGNITUDES) - 1)), st.sampled_from([-1.0, 1.0])).map(
            lambda t: t[1] * (MAGNITUDES[t[0]] + MAGNITUDES[t[0] + 1]) / 2
        ),
    )
)
def test_rounding_is_to_nearest_even_saturating_with_subnormals(x: float) -> None:
    assert rounded(torch.tensor([x])).item() == _nearest(x)
    assert unpack(pack(torch.tensor([x, 1.0])), 2).tolist() == [_nearest(x), 1.0]


def test_what_is_not_finite_saturates_or_stays_nan_and_is_counted() -> None:
    x = torch.linspace(-1, 1, 128)[None].clone()
    x[0, 0], x[0, 1], x[0, 2], x[0, 3] = torch.inf, -torch.inf, torch.nan, 1e-12
    stored = quantise_e5m6(x)
    values = unpack(stored.packed, 128)
    assert (values[0, 0], values[0, 1]) == (65024, -65024)
    assert values[0, 2].isnan()
    c = counts(x, stored)
    assert (c.saturated, c.nonfinite, c.flushed, c.elements) == (2, 3, 1, 128)
    assert format_name(stored) == "e5m6 1x128"


@pytest.mark.parametrize("shape", [(3, 256), (5, 131), (1, 1), (0, 128), (2, 2, 66)])
def test_tiles_of_any_shape_come_back_with_six_fraction_bits(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    stored = quantise_e5m6(x)
    assert stored.packed.shape[-1] == 3 * -(-shape[-1] // 2)
    y = dequantise_e5m6(stored)
    assert y.shape == x.shape
    assert bool(((y - x).abs() <= x.abs() * 2.0**-7).all())


def test_scales_are_powers_of_2_and_e4m3_from_it_loses_little_more_than_e4m3_from_the_source() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256)
    stored = quantise_e5m6(x)
    assert torch.equal(torch.frexp(stored.scale)[0], torch.full_like(stored.scale, 0.5))
    direct, by_way = (dequantise(quantise_tiles(t, power_of_2=True)) for t in (x, dequantise_e5m6(stored)))
    assert (by_way - x).norm() < 1.05 * (direct - x).norm()


def test_bytes_that_cannot_hold_the_elements_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes do not hold 3 elements of E5M6: give 6"):
        unpack(torch.zeros(4, dtype=torch.uint8), 3)
