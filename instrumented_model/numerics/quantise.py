"""Fine-grained quantisation: 1x128 tiles and 128x128 blocks (arXiv 2412.19437 section 3.3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from moescope.instrumented_model.numerics.formats import E4M3, E4M3_MAX, E4M3_OVERFLOW, TILE, scale_of, to_float32


@dataclass(frozen=True)
class Quantised:
    """values ~ q * scale of the element's tile.

    q: [..., n, k] float8_e4m3fn
    scale: [..., n, ceil(k/128)] float32 for tiles, [..., ceil(n/128), ceil(k/128)] for blocks
    rows: 1 for 1x128 tiles, 128 for 128x128 blocks
    """

    q: torch.Tensor
    scale: torch.Tensor
    rows: int


@dataclass(frozen=True)
class Counts:
    """What quantisation did to the elements of a tensor.

    saturated: beyond the largest value by more than rounding (|x/scale| > 464), infinities among them
    flushed: not zero before, zero after
    nonfinite: infinities and NaN before
    """

    amax: float
    scale_min: float
    scale_max: float
    saturated: int
    flushed: int
    nonfinite: int
    elements: int


def _finite_amax(x: torch.Tensor, dim: tuple[int, ...]) -> torch.Tensor:
    amax = x.abs().amax(dim)
    if torch.isfinite(amax).all():
        return amax
    return torch.where(torch.isfinite(x), x.abs(), 0.0).amax(dim)


def _cast(scaled: torch.Tensor) -> torch.Tensor:
    """Round to E4M3, ties to even. Clamped first: what the cast itself does beyond 448 differs between backends."""
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def quantise_tiles(x: torch.Tensor, *, power_of_2: bool = False) -> Quantised:
    """Quantise in 1x128 tiles along the last axis; the last tile may be partial.

    x: [..., k] float32 or bfloat16; infinities saturate and NaN stay, both outside the amax
    returns: q [..., k], scale [..., ceil(k/128)]
    """
    k = x.shape[-1]
    tiles = -(-k // TILE)
    padded = F.pad(x.float(), (0, tiles * TILE - k)) if k % TILE else x.float()
    tiled = padded.reshape(*x.shape[:-1], tiles, TILE)
    scale = scale_of(_finite_amax(tiled, (-1,)), power_of_2)
    q = _cast(tiled / scale.unsqueeze(-1)).reshape(padded.shape)
    return Quantised(q[..., :k] if k % TILE else q, scale, 1)


def quantise_blocks(w: torch.Tensor, *, power_of_2: bool = False) -> Quantised:
    """Quantise in 128x128 blocks over the last two axes; the last row and column of blocks may be partial.

    w: [..., n, k] float32 or bfloat16
    returns: q [..., n, k], scale [..., ceil(n/128), ceil(k/128)]
    """
    n, k = w.shape[-2:]
    rows, columns = -(-n // TILE), -(-k // TILE)
    padded = F.pad(w.float(), (0, columns * TILE - k, 0, rows * TILE - n))
    blocked = padded.reshape(*w.shape[:-2], rows, TILE, columns, TILE)
    scale = scale_of(_finite_amax(blocked, (-3, -1)), power_of_2)
    q = _cast(blocked / scale[..., :, None, :, None]).reshape(padded.shape)
    return Quantised(q[..., :n, :k], scale, TILE)


def expanded_scale(x: Quantised) -> torch.Tensor:
    """Scale of each element. returns: [..., n, k] float32"""
    k = x.q.shape[-1]
    scale = x.scale.repeat_interleave(TILE, -1)[..., :k]
    if x.rows == TILE:
        scale = scale.repeat_interleave(TILE, -2)[..., : x.q.shape[-2], :]
    return scale


def dequantise(x: Quantised) -> torch.Tensor:
    """q * scale in float32. returns: [..., n, k] float32, the shape of `x.q`"""
    if x.rows == 1 and x.q.shape[-1] % TILE == 0:  # the common case, without expanding the scales
        tiled = to_float32(x.q).reshape(*x.scale.shape, TILE)
        return (tiled * x.scale.unsqueeze(-1)).reshape(x.q.shape)
    return to_float32(x.q) * expanded_scale(x)


def counts(x: torch.Tensor, quantised: Quantised) -> Counts:
    """Count what quantising `x` to `quantised` changed.

    x: the tensor that was quantised, the shape of `quantised.q`
    """
    original = x.float()
    if original.numel() == 0:
        return Counts(0.0, 0.0, 0.0, 0, 0, 0, 0)
    finite = torch.isfinite(original)
    scaled = original / expanded_scale(quantised)
    return Counts(
        amax=float(torch.where(finite, original.abs(), 0.0).amax()),
        scale_min=float(quantised.scale.min()),
        scale_max=float(quantised.scale.max()),
        saturated=int((scaled.abs() > E4M3_OVERFLOW).sum()),
        flushed=int(((original != 0) & (quantised.q.float() == 0)).sum()),
        nonfinite=int((~finite).sum()),
        elements=original.numel(),
    )
