"""FP64 products of the dequantised operands: what the others are held against."""

from __future__ import annotations

import torch

from moescope.instrumented_model.gemm.backend import ByGroup
from moescope.instrumented_model.numerics.quantise import Quantised, expanded_scale


class Reference(ByGroup):
    """`Backend` in FP64: slow, and exact but for the order of sums."""

    name = "reference"
    arithmetic = "E4M3 operands, dequantised, FP64 products"
    finest = 0

    def why_not(self, device: torch.device) -> str | None:
        return None

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        return (_exact(a) @ _exact(b).mT).to(out_dtype)


def _exact(x: Quantised) -> torch.Tensor:
    """q * scale without rounding. returns: [n, k] float64"""
    return x.q.float().double() * expanded_scale(x).double()
