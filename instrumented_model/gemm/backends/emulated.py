"""Products as Hopper's tensor cores add them up, emulated: 14 bits between promotions to FP32."""

from __future__ import annotations

import torch

from moescope.instrumented_model.gemm.backend import ByGroup
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised
from moescope.instrumented_model.numerics.tensor_core import STEP, accumulate


class Emulated(ByGroup):
    """Scales are applied at promotions, so intervals beyond 128 need scales that do not change within them."""

    name = "emulated"
    arithmetic = "E4M3 operands, 14-bit accumulation promoted to FP32, emulated"
    finest = STEP

    def why_not(self, device: torch.device) -> str | None:
        return None

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        return accumulate(a.q, b.q, interval, (a.scale, row_scale(b))).to(out_dtype)


def row_scale(x: Quantised) -> torch.Tensor:
    """The scale of each row's tiles. returns: [n, ceil(k/128)] float32"""
    return x.scale.repeat_interleave(TILE, 0)[: x.q.shape[0]] if x.rows == TILE else x.scale
