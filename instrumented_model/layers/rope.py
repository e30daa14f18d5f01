"""Rotary positions: pairs of values turned by an angle that grows with the position (section 2.1.1)."""

from __future__ import annotations

from functools import lru_cache

import torch

THETA = 10000.0


def table(longest: int, d_rope: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every angle, kept. returns: [at least longest, d_rope / 2] float32 each"""
    return _table(1 << max(longest - 1, 0).bit_length(), d_rope // 2, device)


@lru_cache(maxsize=8)
def _table(length: int, half: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """returns: [length, half] float32 each"""
    steps = THETA ** (-torch.arange(half, device=device) / half)
    angle = torch.arange(length, device=device).float()[:, None] * steps
    return angle.cos(), angle.sin()


def angles(positions: torch.Tensor, longest: int, d_rope: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine at `positions`, by table.

    positions: [tokens] int64, each below `longest`
    returns: [tokens, d_rope / 2] float32 each
    """
    cos, sin = table(longest, d_rope, positions.device)
    return cos[positions], sin[positions]


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the i-th value with the one half the width further on.

    x: [tokens, d_rope] or [tokens, heads, d_rope]; cos, sin: [tokens, d_rope / 2]
    returns: the shape of x
    """
    if x.dim() == 3:
        cos, sin = cos[:, None], sin[:, None]
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
