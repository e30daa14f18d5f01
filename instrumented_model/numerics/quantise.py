"""Fine-grained quantisation to E4M3: 1x128 and 128x1 tiles, 128x128 blocks (arXiv 2412.19437 section 3.3.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F

from moescope.instrumented_model.numerics.formats import (
    E4M3,
    E4M3_FORMAT,
    E4M3_MAX,
    TILE,
    Format,
    scale_of,
    to_float32,
)


@dataclass(frozen=True)
class Quantised:
    """values ~ q * scale of the element's tile of `rows` x `columns`.

    q: [..., n, k] float8_e4m3fn
    scale: [..., ceil(n/rows), ceil(k/columns)] float32
    rows, columns: 1, 128 for tiles along the last axis; 128, 1 for tiles along the one before; 128, 128 for blocks
    """

    q: torch.Tensor
    scale: torch.Tensor
    rows: int
    columns: int = TILE

    @cached_property
    def dequantised(self) -> torch.Tensor:
        """`dequantise` of it, kept: for what takes part in more than one product. [..., n, k] float32"""
        return dequantise(self)


def transposed(x: Quantised) -> Quantised:
    """The same values with the last two axes exchanged, as views; 128x1 tiles become 1x128 tiles."""
    result = Quantised(x.q.mT, x.scale.mT, x.columns, x.rows)
    if "dequantised" in vars(x):  # what was kept serves both ways
        vars(result)["dequantised"] = x.dequantised.mT
    return result


def tiles(n: int) -> int:
    """Tiles of 128 that cover `n` elements."""
    return -(-n // TILE)


def _finite_amax(x: torch.Tensor, dim: tuple[int, ...]) -> torch.Tensor:
    amax = x.abs().amax(dim)
    if x.device.type == "cpu" and torch.isfinite(amax).all():  # a GPU is not asked: the host would wait for it
        return amax
    return torch.where(torch.isfinite(x), x.abs(), 0.0).amax(dim)


def _cast(scaled: torch.Tensor) -> torch.Tensor:
    """Round to E4M3, ties to even. Clamped first: what the cast itself does beyond 448 differs between backends."""
    return scaled.clamp(-E4M3_MAX, E4M3_MAX).to(E4M3)


def scaled_tiles(x: torch.Tensor, power_of_2: bool, to: Format) -> tuple[torch.Tensor, torch.Tensor]:
    """x over the scales of its 1x128 tiles, not yet rounded.

    x: [..., k] float32 or bfloat16
    returns: [..., k] float32 within the largest value of the format but for what is not finite, and the scales
    [..., ceil(k/128)] float32
    """
    k = x.shape[-1]
    count = tiles(k)
    padded = F.pad(x.float(), (0, count * TILE - k)) if k % TILE else x.float()
    tiled = padded.reshape(*x.shape[:-1], count, TILE)
    scale = scale_of(_finite_amax(tiled, (-1,)), power_of_2, to.largest)
    scaled = (tiled / scale.unsqueeze(-1)).reshape(padded.shape)
    return scaled[..., :k] if k % TILE else scaled, scale


def quantise_tiles(x: torch.Tensor, *, power_of_2: bool = False) -> Quantised:
    """Quantise in 1x128 tiles along the last axis; the last tile may be partial.

    x: [..., k] float32 or bfloat16; infinities saturate and NaN stay, both outside the amax
    returns: q [..., k], scale [..., ceil(k/128)]
    """
    scaled, scale = scaled_tiles(x, power_of_2, E4M3_FORMAT)
    return Quantised(_cast(scaled), scale, 1)


def quantise_columns(x: torch.Tensor, *, groups: Sequence[int] | None = None, power_of_2: bool = False) -> Quantised:
    """Quantise in 128x1 tiles, along the tokens, as Wgrad contracts over them.

    x: [m, k] float32 or bfloat16
    groups: rows of each group, summing to m; each group's rows then begin at a multiple of 128 and are followed by
    zeros up to the next, so that no tile has rows of two groups
    returns: q [m, k] or [128 * sum of ceil(rows/128), k], scale [ceil(m/128) or sum of ceil(rows/128), k]
    """
    rows, k = x.shape
    if groups is not None and sum(groups) != rows:
        raise ValueError(f"groups of {list(groups)} rows do not sum to the {rows} rows of x: give what each has")
    if groups is None or len(groups) == 1:
        missing = -rows % TILE
        padded = F.pad(x.float(), (0, 0, 0, missing)) if missing else x.float()
    else:
        padded = x.new_zeros(padded_rows(groups), k, dtype=torch.float32)
        for part, start in zip(torch.split(x, list(groups)), group_starts(groups), strict=True):
            padded[start : start + part.shape[0]] = part
    if groups is not None:
        rows = padded.shape[0]
    tiled = padded.reshape(-1, TILE, k)
    scale = scale_of(_finite_amax(tiled, (1,)), power_of_2)
    q = _cast(tiled / scale.unsqueeze(1)).reshape(padded.shape)
    return Quantised(q[:rows], scale, TILE, 1)


def group_starts(groups: Sequence[int]) -> list[int]:
    """Where the rows of each group begin when each begins at a multiple of 128."""
    starts = [0]
    for rows in groups[:-1]:
        starts.append(starts[-1] + tiles(rows) * TILE)
    return starts


def padded_rows(groups: Sequence[int]) -> int:
    """Rows of all groups, each filled up to a multiple of 128."""
    return sum(tiles(rows) for rows in groups) * TILE


def quantise_blocks(w: torch.Tensor, *, power_of_2: bool = False) -> Quantised:
    """Quantise in 128x128 blocks over the last two axes; the last row and column of blocks may be partial.

    w: [..., n, k] float32 or bfloat16
    returns: q [..., n, k], scale [..., ceil(n/128), ceil(k/128)]
    """
    n, k = w.shape[-2:]
    rows, columns = tiles(n), tiles(k)
    padded = F.pad(w.float(), (0, columns * TILE - k, 0, rows * TILE - n))
    blocked = padded.reshape(*w.shape[:-2], rows, TILE, columns, TILE)
    scale = scale_of(_finite_amax(blocked, (-3, -1)), power_of_2)
    q = _cast(blocked / scale[..., :, None, :, None]).reshape(padded.shape)
    return Quantised(q[..., :n, :k], scale, TILE)


def requantised(x: Quantised, *, groups: Sequence[int] | None = None, power_of_2: bool = False) -> Quantised:
    """1x128 tiles to 128x1 tiles: read out, dequantised, quantised anew (section 3.5.2).

    Adds no error where the scales of `x` and the new ones are powers of 2 and no value becomes subnormal.

    x: [m, k] in 1x128 tiles; groups: as in `quantise_columns`
    """
    return quantise_columns(dequantise(x), groups=groups, power_of_2=power_of_2)


def expanded_scale(x: Quantised) -> torch.Tensor:
    """Scale of each element. returns: [..., n, k] float32"""
    n, k = x.q.shape[-2:] if x.q.dim() > 1 else (1, x.q.shape[-1])
    scale = x.scale
    if x.columns == TILE:
        scale = scale.repeat_interleave(TILE, -1)[..., :k]
    if x.rows == TILE:
        scale = scale.repeat_interleave(TILE, -2)[..., :n, :]
    return scale


def dequantise(x: Quantised) -> torch.Tensor:
    """q * scale in float32. returns: [..., n, k] float32, the shape of `x.q`"""
    if x.q.dim() == 2 and not x.q.is_contiguous() and x.q.mT.is_contiguous():  # a transposed view: as it lies
        return dequantise(Quantised(x.q.mT, x.scale.mT, x.columns, x.rows)).mT
    values = to_float32(x.q)
    if (x.rows, x.columns) == (1, TILE) and x.q.shape[-1] % TILE == 0:  # without expanding the scales
        return (values.reshape(*x.scale.shape, TILE) * x.scale.unsqueeze(-1)).reshape(x.q.shape)
    if (x.rows, x.columns) == (TILE, 1) and x.q.shape[-2] % TILE == 0:
        tiled = values.reshape(*x.scale.shape[:-1], TILE, x.scale.shape[-1])
        return (tiled * x.scale.unsqueeze(-2)).reshape(x.q.shape)
    return values * expanded_scale(x)
