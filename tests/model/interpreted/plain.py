"""Slow and plain references for the kernels, from the formats' definitions, in float64."""

from __future__ import annotations

import math

import torch

E4M3 = torch.float8_e4m3fn


def e4m3(y: torch.Tensor) -> torch.Tensor:
    """Nearest value with 3 fraction bits and exponents -6..8, ties to even, saturating at 448. returns: float64"""
    y = y.double()
    exponent = torch.frexp(y.abs().clamp(2.0**-6, 448))[1] - 1
    step = torch.ldexp(torch.ones_like(y), exponent - 3)
    return (torch.round(y / step) * step).clamp(-448, 448)


def scale(amax: float, power_of_2: bool) -> float:
    if amax == 0:
        return 1.0
    s = max(float(torch.tensor(amax, dtype=torch.float32) / 448), 2.0**-126)
    return 2.0 ** math.ceil(math.log2(s)) if power_of_2 else s


def tiles(x: torch.Tensor, power_of_2: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """x: [n, k]; returns: values [n, k] float64 as E4M3 holds them, scales [n, ceil(k/128)] float32"""
    n, k = x.shape
    q = torch.zeros(n, k, dtype=torch.float64)
    s = torch.ones(n, -(-k // 128))
    for i in range(n):
        for j in range(s.shape[1]):
            part = x[i, 128 * j : 128 * j + 128].float()
            s[i, j] = scale(float(part.abs().nan_to_num(0, 0, 0).max()), power_of_2)
            q[i, 128 * j : 128 * j + 128] = e4m3(part / s[i, j])
    return q, s


def quantised(rows: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random E4M3 values and scales in 1x128 tiles: made as such, so that no quantiser is trusted."""
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(rows, k, generator=generator) * 30).to(E4M3)
    s = torch.rand(rows, -(-k // 128), generator=generator) + 0.25
    return q, s


def blocks(n: int, k: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q = (torch.randn(n, k, generator=generator) * 30).to(E4M3)
    s = torch.rand(-(-n // 128), -(-k // 128), generator=generator) + 0.25
    return q, s


def values(q: torch.Tensor, s: torch.Tensor, rows: int = 1) -> torch.Tensor:
    """q * s, element by element. rows: 1 for tiles, 128 for blocks; returns: [n, k] float64"""
    n, k = q.shape
    row = torch.arange(n) // rows
    column = torch.arange(k) // 128
    return q.float().double() * s.double()[row][:, column]


def assert_close(got: torch.Tensor, a: torch.Tensor, b: torch.Tensor, added: torch.Tensor | float = 0.0) -> None:
    """`got` is a b^T + added, within the rounding of float32 sums, or of bfloat16 if that is its type.

    a: [m, k], b: [n, k] float64
    """
    want = a @ b.T + added
    magnitude = a.abs() @ b.T.abs() + (added.abs() if isinstance(added, torch.Tensor) else 0.0)
    bound = 2e-6 * magnitude + (want.abs() * 2.0**-8 if got.dtype == torch.bfloat16 else 0.0)
    assert got.shape == want.shape
    assert ((got.double() - want).abs() <= bound).all(), float(((got.double() - want).abs() - bound).max())
