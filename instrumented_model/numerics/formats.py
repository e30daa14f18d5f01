"""The two formats of quantised values and the rules of their scales (arXiv 2412.19437 sections 3.3.2 and 3.3.3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch

E4M3 = torch.float8_e4m3fn
E4M3_MAX = 448.0
TILE = 128
"""N_C of the paper: width of a tile, side of a block."""
SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Format:
    """What quantisation has to know of a format.

    largest: its largest value, where scales bring the amax and beyond which values saturate
    overflow: halfway to where the next value would be; up to here rounding alone gives the largest
    """

    name: str
    largest: float
    overflow: float


E4M3_FORMAT = Format("e4m3", E4M3_MAX, 464.0)
"""All operands of products."""
E5M6_FORMAT = Format("e5m6", 65024.0, 65280.0)
"""What is kept for backward of the input of the Linear after attention."""


def scale_of(amax: torch.Tensor, power_of_2: bool, largest: float = E4M3_MAX) -> torch.Tensor:
    """Scale that brings `amax` to `largest`; 1 where amax is 0.

    amax: [...] float32, finite, >= 0
    power_of_2: round the scale up to a power of 2, so that scaling is exact and nothing saturates
    returns: [...] float32
    """
    scale = (amax / largest).clamp_min(SMALLEST_SCALE)
    if power_of_2:
        scale = rounded_up_to_power_of_2(scale)
    return torch.where(amax > 0, scale, 1.0)


def rounded_up_to_power_of_2(scale: torch.Tensor) -> torch.Tensor:
    """The smallest power of 2 not below. scale: [...] float32, normal, > 0 and at most 2^127"""
    fraction_bits = (1 << 23) - 1  # a carry out of the fraction is the next exponent
    return ((scale.contiguous().view(torch.int32) + fraction_bits) & ~fraction_bits).view(torch.float32)


_VALUES = torch.arange(256, dtype=torch.uint8).view(E4M3).float()


def to_float32(q: torch.Tensor) -> torch.Tensor:
    """Exactly; by table, which the CPU does four times as fast as its own cast.

    q: [...] float8_e4m3fn; returns: [...] float32
    """
    if q.device.type != "cpu":
        return q.float()
    codes = q.contiguous().view(torch.uint8).reshape(-1).int()
    return _VALUES.index_select(0, codes).reshape(q.shape)
