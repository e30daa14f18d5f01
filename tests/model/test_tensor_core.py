"""The tensor core's accumulation, bit for bit against exact fractions, and its error against the promotion interval."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.numerics.formats import E4M3  # noqa: E402
from moescope.instrumented_model.numerics.tensor_core import INTERVALS, accumulate  # noqa: E402


def _exponent(x: Fraction) -> int:
    """floor(log2 |x|), x not 0"""
    e = abs(x.numerator).bit_length() - x.denominator.bit_length()
    return e if Fraction(2) ** e <= abs(x) else e - 1


def _toward_zero(x: Fraction, unit: Fraction) -> Fraction:
    return int(x / unit) * unit  # int() drops the fraction


def _step(a: list[Fraction], b: list[Fraction], c: Fraction) -> Fraction:
    """c + a . b: terms cut to 13 bits below the largest exponent, summed, stored with 13 fraction bits."""
    terms = [(x * y, max(_exponent(x), -6) + max(_exponent(y), -6)) for x, y in zip(a, b, strict=True) if x and y]
    if c:
        terms.append((c, _exponent(c)))
    if not terms:
        return Fraction(0)
    unit = Fraction(2) ** (max(e for _, e in terms) - 13)
    total = sum((_toward_zero(value, unit) for value, _ in terms), Fraction(0))
    return _toward_zero(total, Fraction(2) ** (_exponent(total) - 13)) if total else total


def _reference(a: list[float], b: list[float], interval: int | None, scales: list[np.float32] | None) -> np.float32:
    """One element of the product. scales: the products of both operands' scales, one a tile of 128"""
    k, result = len(a), np.float32(0)
    period = k if interval is None else interval
    for start in range(0, k, period):
        partial = Fraction(0)
        for first in range(start, min(start + period, k), 32):
            last = min(first + 32, start + period, k)
            partial = _step([Fraction(v) for v in a[first:last]], [Fraction(v) for v in b[first:last]], partial)
        promoted = np.float32(float(partial))
        if scales is not None:
            promoted = promoted * scales[start // 128]
        result = result + promoted
    return result


def _codes(seed: int, rows: int, k: int, spread: bool) -> torch.Tensor:
    """E4M3 operands: all finite codes alike, so with zeros, subnormals and any signs, or normally distributed."""
    rng = np.random.default_rng(seed)
    if spread:
        codes = torch.from_numpy(rng.integers(0, 127, (rows, k)).astype(np.uint8) | (rng.random((rows, k)) < 0.5) * 128)
        return codes.to(torch.uint8).view(E4M3)
    return torch.from_numpy(rng.standard_normal((rows, k)).astype(np.float32)).to(E4M3)


@settings(max_examples=30, deadline=None)
@given(
    m=st.integers(1, 3),
    n=st.integers(1, 3),
    k=st.integers(1, 300),
    interval=st.sampled_from([32, 64, 128, 256, None]),
    seed=st.integers(0, 2**31),
    spread=st.booleans(),
)
def test_every_bit_is_that_of_exact_fractions(
    m: int, n: int, k: int, interval: int | None, seed: int, spread: bool
) -> None:
    a, b = _codes(seed, m, k, spread), _codes(seed + 1, n, k, spread)
    got = accumulate(a, b, interval)
    for i in range(m):
        for j in range(n):
            assert got[i, j].item() == _reference(a[i].float().tolist(), b[j].float().tolist(), interval, None)


@settings(max_examples=10, deadline=None)
@given(k=st.integers(1, 400), interval=st.sampled_from([32, 128]), seed=st.integers(0, 2**31))
def test_scales_are_applied_where_partial_sums_are_promoted(k: int, interval: int, seed: int) -> None:
    a, b = _codes(seed, 2, k, spread=False), _codes(seed + 1, 2, k, spread=False)
    rng = np.random.default_rng(seed)
    a_scale, b_scale = (rng.random((2, -(-k // 128))).astype(np.float32) for _ in range(2))
    got = accumulate(a, b, interval, (torch.from_numpy(a_scale), torch.from_numpy(b_scale)))
    for i in range(2):
        for j in range(2):
            scales = list(a_scale[i] * b_scale[j])
            want = _reference(a[i].float().tolist(), b[j].float().tolist(), interval, scales)
            assert got[i, j].item() == want


def test_error_grows_with_the_promotion_interval() -> None:
    torch.manual_seed(0)
    a, b = torch.rand(8, 4096).to(E4M3), torch.rand(8, 4096).to(E4M3)
    exact = a.double() @ b.double().T
    errors = [float(((accumulate(a, b, i) - exact) / exact).abs().mean()) for i in INTERVALS]
    assert errors == sorted(errors)
    assert errors[0] < 1e-4
    assert errors[1] < 1e-3
    assert errors[-1] > 0.05


def test_rows_that_are_taken_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = _codes(0, 7, 96, spread=False), _codes(1, 3, 96, spread=False)
    whole = accumulate(a, b, 32)
    monkeypatch.setattr("moescope.instrumented_model.numerics.tensor_core._CHUNK_ELEMENTS", 200)
    assert torch.equal(accumulate(a, b, 32), whole)


def test_what_cannot_be_accumulated_is_refused() -> None:
    a = torch.ones(2, 256).to(E4M3)
    with pytest.raises(ValueError, match="interval 48 is no multiple of 32"):
        accumulate(a, a, 48)
    with pytest.raises(ValueError, match=r"\[2, 256\] and \[2, 128\] do not multiply"):
        accumulate(a, a[:, :128], 32)
    changing = torch.tensor([[1.0, 2.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match="scales of a change within the promotion interval at k = 0"):
        accumulate(a, a, None, (changing, torch.ones(2, 2)))
    assert torch.equal(accumulate(a, a, None, (torch.ones(2, 2), torch.ones(2, 2))), torch.full((2, 2), 256.0))
