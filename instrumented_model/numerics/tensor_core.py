"""How Hopper's tensor cores add FP8 products up: about 14 bits, until a partial sum is promoted to FP32.

Source: MMA-Sim (arXiv 2511.10909), the truncated fused dot product with 13 fractional bits; promotion: arXiv 2412.19437
section 3.3.2. One step takes k = 32: the 32 products and the running sum are aligned to the largest exponent among
them, the exponent of a product being the sum of those of its factors; each is truncated toward zero to 13 fractional
bits at that exponent; they are added exactly; the sum is stored as E8M13 (FP32 less 10 fraction bits), again toward
zero. Every `interval` elements of k the running sum is scaled, added to an FP32 accumulator, and begins at zero.

Everything is exact in float32: aligned terms are integers below 2^15, sums of 33 of them below 2^21.
"""

from __future__ import annotations

import torch

from moescope.instrumented_model.numerics.formats import TILE, to_float32

STEP = 32
"""Elements of k in one step of the FP8 MMA."""
FRACTION_BITS = 13
INTERVALS: tuple[int | None, ...] = (32, 128, 512, 1024, None)
"""Promotion intervals that are compared; None never promotes, 128 is the paper's N_C."""

_SMALLEST_EXPONENT = -6
"""Of E4M3's normal numbers, and of all its subnormals."""
_CHUNK_ELEMENTS = 1 << 21
"""Products of one step held at once."""


def dropped_bits(x: torch.Tensor) -> torch.Tensor:
    """FP32 to E8M13, toward zero. x: [...] float32"""
    return (x.view(torch.int32) & ~((1 << 23 - FRACTION_BITS) - 1)).view(torch.float32)


def _power(x: torch.Tensor) -> torch.Tensor:
    """2^exponent of normal numbers, 0 of zero. x: [...] float32"""
    return (x.view(torch.int32) & 0xFF << 23).view(torch.float32)


def _factor_power(a: torch.Tensor) -> torch.Tensor:
    """2^exponent of E4M3 values, as the MMA takes it: subnormals have the smallest normal exponent, zeros none."""
    return torch.where(a == 0, 0.0, _power(a).clamp_min(2.0**_SMALLEST_EXPONENT))


def step(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """One MMA step: c + a . b as the tensor core gives it.

    a: [m, k], b: [n, k] float32 with E4M3 values, k <= 32; c: [m, n] float32 with E8M13 values
    returns: [m, n] float32 with E8M13 values
    """
    return _step(a, b, _factor_power(a), _factor_power(b), c)


def _step(
    a: torch.Tensor, b: torch.Tensor, a_power: torch.Tensor, b_power: torch.Tensor, c: torch.Tensor
) -> torch.Tensor:
    """`step` with the 2^exponent of each factor known: a_power [m, k], b_power [n, k], 0 where a factor is 0."""
    largest = (a_power[:, None] * b_power).amax(-1).maximum(_power(c))
    shift = 2.0**FRACTION_BITS / torch.where(largest == 0, 1.0, largest)
    terms = (a[:, None] * b).mul_(shift.unsqueeze(-1)).trunc_()
    total = terms.sum(-1).add_((c * shift).trunc_())
    return dropped_bits(total) / shift


def accumulate(
    a: torch.Tensor,
    b: torch.Tensor,
    interval: int | None = TILE,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """a b^T as a chain of MMA steps with promotion every `interval` elements of k.

    At a promotion the partial sum times (scale of a * scale of b) is added to the accumulator, each rounded to FP32.

    a: [m, k], b: [n, k] float8_e4m3fn
    interval: a multiple of 32, or None to promote at the end alone
    scales: of a [m, ceil(k/128)] and of b [n, ceil(k/128)] float32, None for 1; they must not change within an interval
    returns: [m, n] float32
    raises: ValueError for another interval, for shapes that do not match, for scales that change within an interval
    """
    m, k = a.shape
    if b.dim() != 2 or b.shape[1] != k:
        raise ValueError(f"shapes {list(a.shape)} and {list(b.shape)} do not multiply: give [m, k] and [n, k]")
    if interval is not None and (interval < STEP or interval % STEP):
        raise ValueError(f"promotion interval {interval} is no multiple of {STEP}: give one, or None for never")
    period = max(k, 1) if interval is None else interval
    for name, scale in zip("ab", scales or (), strict=False):
        _check_scale(name, scale, period, k)
    result = torch.zeros(m, b.shape[0], device=a.device)
    rows = max(1, _CHUNK_ELEMENTS // max(1, b.shape[0] * STEP))
    right = to_float32(b)
    for first in range(0, m, rows):
        part = slice(first, first + rows)
        result[part] = _accumulate(
            to_float32(a[part]), right, period, None if scales is None else (scales[0][part], scales[1])
        )
    return result


def _accumulate(
    a: torch.Tensor, b: torch.Tensor, period: int, scales: tuple[torch.Tensor, torch.Tensor] | None
) -> torch.Tensor:
    k = a.shape[1]
    a_power, b_power = _factor_power(a), _factor_power(b)
    total = torch.zeros(a.shape[0], b.shape[0], device=a.device)
    for start in range(0, k, period):
        partial = torch.zeros_like(total)
        for first in range(start, min(start + period, k), STEP):
            at = slice(first, min(first + STEP, start + period, k))
            partial = _step(a[:, at], b[:, at], a_power[:, at], b_power[:, at], partial)
        if scales is not None:
            partial = partial * (scales[0][:, start // TILE, None] * scales[1][:, start // TILE])
        total += partial
    return total


def _check_scale(name: str, scale: torch.Tensor, period: int, k: int) -> None:
    if TILE % period == 0:
        return
    for start in range(0, k, period):
        first, last = start // TILE, (min(start + period, k) - 1) // TILE
        if (scale[:, first : last + 1] != scale[:, first : first + 1]).any():
            raise ValueError(
                f"scales of {name} change within the promotion interval at k = {start}: a running sum cannot be scaled "
                f"twice; promote every {STEP}, {2 * STEP} or {TILE} elements"
            )
