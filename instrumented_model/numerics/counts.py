"""What quantisation did to the elements of a tensor, counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moescope.instrumented_model.numerics.e5m6 import E5M6Tiles, unpack
from moescope.instrumented_model.numerics.formats import E4M3_FORMAT, E5M6_FORMAT, TILE, Format, to_float32
from moescope.instrumented_model.numerics.quantise import Quantised, expanded_scale, group_starts


@dataclass(frozen=True)
class Counts:
    """What became of the elements.

    saturated: beyond the largest value by more than rounding (|x/scale| > 464 for E4M3), infinities among them
    flushed: not zero before, zero after
    nonfinite: infinities and NaN before, whatever they became
    """

    amax: float
    scale_min: float
    scale_max: float
    saturated: int
    flushed: int
    nonfinite: int
    elements: int


def counts(x: torch.Tensor, quantised: Quantised | E5M6Tiles, groups: Sequence[int] | None = None) -> Counts:
    """Count what quantising `x` to `quantised` changed.

    x: [..., n, k], the tensor that was quantised, as it was before
    groups: rows of each group where `quantise_columns` was given them; what it filled up is not counted
    """
    original = x.float()
    if original.numel() == 0:
        return Counts(0.0, 0.0, 0.0, 0, 0, 0, 0)
    format, scale, after = _parts(quantised)
    if groups is not None:
        placed = zip(group_starts(groups), groups, strict=True)
        at = torch.cat([torch.arange(start, start + n, device=scale.device) for start, n in placed])
        scale, after = scale[at], after[at]
    finite = torch.isfinite(original)
    return Counts(
        amax=float(torch.where(finite, original.abs(), 0.0).amax()),
        scale_min=float(quantised.scale.min()),
        scale_max=float(quantised.scale.max()),
        saturated=int(((original / scale).abs() > format.overflow).sum()),
        flushed=int(((original != 0) & (after == 0)).sum()),
        nonfinite=int((~finite).sum()),
        elements=original.numel(),
    )


def format_name(quantised: Quantised | E5M6Tiles) -> str:
    """`e4m3 1x128`, `e4m3 128x1`, `e4m3 128x128`, `e5m6 1x128`"""
    if isinstance(quantised, E5M6Tiles):
        return f"{E5M6_FORMAT.name} 1x{TILE}"
    return f"{E4M3_FORMAT.name} {quantised.rows}x{quantised.columns}"


def _parts(quantised: Quantised | E5M6Tiles) -> tuple[Format, torch.Tensor, torch.Tensor]:
    """Format, scale of each element, values before scaling back."""
    if isinstance(quantised, E5M6Tiles):
        scale = quantised.scale.repeat_interleave(TILE, -1)[..., : quantised.k]
        return E5M6_FORMAT, scale, unpack(quantised.packed, quantised.k)
    return E4M3_FORMAT, expanded_scale(quantised), to_float32(quantised.q)
