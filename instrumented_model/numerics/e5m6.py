"""E5M6: FP16 less 4 fraction bits, 12 bits an element (arXiv 2412.19437 section 3.3.3).

Sign, 5 exponent bits with bias 15, 6 fraction bits; subnormals are multiples of 2^-20. Two elements are packed in three
bytes: a0 = low 8 bits of the first, a1 = its high 4 bits and the low 4 of the second, a2 = high 8 bits of the second.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moescope.instrumented_model.numerics.formats import E5M6_FORMAT, TILE
from moescope.instrumented_model.numerics.quantise import scaled_tiles

_DROPPED = 23 - 6
"""Fraction bits of float32 that E5M6 has no room for."""
_SUBNORMAL_STEP = 2.0**-20
_SMALLEST_NORMAL = 2.0**-14


@dataclass(frozen=True)
class E5M6Tiles:
    """x in 1x128 tiles of E5M6: 1.5 bytes an element and a scale a tile.

    packed: [..., 3 * ceil(k/2)] uint8
    scale: [..., ceil(k/128)] float32
    """

    packed: torch.Tensor
    scale: torch.Tensor
    k: int


def rounded(x: torch.Tensor) -> torch.Tensor:
    """Nearest E5M6 value, ties to even; beyond the largest it saturates, infinities too; NaN stays.

    x: [...] float32; returns: [...] float32
    """
    x = x.clamp(-E5M6_FORMAT.largest, E5M6_FORMAT.largest)
    bits = x.contiguous().view(torch.int32)
    half_less_one_even = (1 << _DROPPED - 1) - 1 + (bits >> _DROPPED & 1)
    normal = (bits + half_less_one_even & ~((1 << _DROPPED) - 1)).view(torch.float32)
    small = (x * (1 / _SUBNORMAL_STEP)).round() * _SUBNORMAL_STEP
    return torch.where(x.abs() < _SMALLEST_NORMAL, small, torch.where(x.isnan(), x, normal))


def pack(x: torch.Tensor) -> torch.Tensor:
    """x: [..., k] float32, rounded to E5M6 here; returns: [..., 3 * ceil(k/2)] uint8"""
    # FP16 holds every E5M6 value, with zeros in its last four fraction bits.
    code = rounded(x).half().view(torch.int16).int() >> 4 & 0xFFF
    if code.shape[-1] % 2:
        code = F.pad(code, (0, 1))
    first, second = code[..., 0::2], code[..., 1::2]
    three = torch.stack([first & 0xFF, first >> 8 | (second & 0xF) << 4, second >> 4], dim=-1)
    return three.to(torch.uint8).flatten(-2)


def unpack(packed: torch.Tensor, k: int) -> torch.Tensor:
    """Inverse of `pack`, exactly. packed: [..., 3 * ceil(k/2)] uint8; returns: [..., k] float32

    Raises ValueError where so many bytes do not hold k elements.
    """
    if packed.shape[-1] != -(-k // 2) * 3:
        raise ValueError(f"{packed.shape[-1]} bytes do not hold {k} elements of E5M6: give {-(-k // 2) * 3}")
    three = packed.reshape(*packed.shape[:-1], -(-k // 2), 3).int()
    first = three[..., 0] | (three[..., 1] & 0xF) << 8
    second = three[..., 1] >> 4 | three[..., 2] << 4
    code = torch.stack([first, second], dim=-1).flatten(-2)[..., :k]
    return (code << 4).to(torch.int16).view(torch.float16).float()


def quantise_e5m6(x: torch.Tensor, *, power_of_2: bool = True) -> E5M6Tiles:
    """Quantise in 1x128 tiles along the last axis; the last tile may be partial.

    x: [..., k] float32 or bfloat16; scales are powers of 2 as the paper has them, unless told otherwise
    """
    scaled, scale = scaled_tiles(x, power_of_2, E5M6_FORMAT)
    return E5M6Tiles(pack(scaled), scale, x.shape[-1])


def dequantise_e5m6(x: E5M6Tiles) -> torch.Tensor:
    """returns: [..., k] float32"""
    return unpack(x.packed, x.k) * x.scale.repeat_interleave(TILE, -1)[..., : x.k]
