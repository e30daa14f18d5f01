"""E4M3, the one FP8 format of all operands (arXiv 2412.19437 section 3.3.2), and the rules of its scales."""

from __future__ import annotations

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
E4M3_OVERFLOW = 464.0
"""Halfway to 480, where the next value would be: up to here rounding alone gives 448."""
TILE = 128
"""N_C of the paper: width of a tile, side of a block."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


def scale_of(amax: torch.Tensor, power_of_2: bool) -> torch.Tensor:
    """Scale that brings `amax` to 448; 1 where amax is 0.

    amax: [...] float32, finite, >= 0
    power_of_2: round the scale up to a power of 2, so that scaling is exact and nothing saturates
    returns: [...] float32
    """
    scale = (amax / E4M3_MAX).clamp_min(SMALLEST_SCALE)
    if power_of_2:
        mantissa, exponent = torch.frexp(scale)
        scale = torch.ldexp(torch.ones_like(scale), exponent - (mantissa == 0.5).to(exponent.dtype))
    return torch.where(amax > 0, scale, 1.0)


_VALUES = torch.arange(256, dtype=torch.uint8).view(E4M3).float()


def to_float32(q: torch.Tensor) -> torch.Tensor:
    """E4M3 to float32, exactly, the same shape; by table, which the CPU does four times as fast as its own cast."""
    codes = q.contiguous().view(torch.uint8).reshape(-1).int()
    return _VALUES.index_select(0, codes).reshape(q.shape)
