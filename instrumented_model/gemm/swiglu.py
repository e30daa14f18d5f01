"""SwiGLU and the Linear after it as one: the two inputs are kept in FP8, the product is computed anew in backward.

(arXiv 2412.19437 sections 3.2.3 and 3.3.3.) Kept are 2 bytes and two scales for each element of silu(a) * b; neither it
nor its FP8 form for Wgrad is. An expert's gate (equation 12) is applied here, before the Linear, which comes to the
same: so the gradient that comes back over the wire is that of the Linear's result, and is multiplied as it came.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.gemm.backend import Counts
from moescope.instrumented_model.gemm.beside import WireGradient
from moescope.instrumented_model.gemm.linear import Fp8Linear
from moescope.instrumented_model.gemm.quantisers import quantise_tiles
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise


def swiglu(ab: torch.Tensor) -> torch.Tensor:
    """silu(a) * b. ab: [m, 2 f], a then b; returns: [m, f]"""
    a, b = ab.chunk(2, dim=-1)
    return F.silu(a) * b


def swiglu_gradient(ab: torch.Tensor, dx: torch.Tensor) -> torch.Tensor:
    """Gradient of `swiglu` at ab. ab: [m, 2 f]; dx: [m, f]; returns: [m, 2 f]"""
    a, b = ab.chunk(2, dim=-1)
    sigmoid = torch.sigmoid(a)
    silu = a * sigmoid
    return torch.cat([dx * b * (sigmoid + silu * (1 - sigmoid)), dx * silu], dim=-1)


def swiglu_linear(
    ab: torch.Tensor,
    down: Fp8Linear,
    rows: Counts | None = None,
    gates: torch.Tensor | None = None,
    gradient: WireGradient | None = None,
) -> torch.Tensor:
    """W (silu(a) * b * gate) for each group of rows.

    ab: [m, 2 f] float32, a then b; down: f to n; rows: [groups], summing to m
    gates: [m] float32, 1 where not given; gradient: where that of the result is put if it comes over the wire
    returns: [m, n] float32
    raises: ValueError on shapes that do not multiply
    """
    if ab.dim() != 2 or ab.shape[1] != 2 * down.k:
        raise ValueError(
            f"{down.name}: input {list(ab.shape)} is not two times [rows, {down.k}]: give [rows, {2 * down.k}]"
        )
    if not down.arithmetic.fp8:
        x = _gated(swiglu(ab), gates)
        return down.unquantised(x, down.checked(x, rows))
    rows = down.checked(ab[:, : down.k], rows)
    record = torch.is_grad_enabled()
    result: torch.Tensor = _SwigluProduct.apply(ab, gates, down.weight, down, rows, gradient, record)  # type: ignore[no-untyped-call]
    return result


class _SwigluProduct(torch.autograd.Function):
    """y = W (silu(a) b gate): ab and gates are kept, ab in FP8; W gets its gradient as a side effect."""

    @staticmethod
    def forward(
        ctx: Any,
        ab: torch.Tensor,
        gates: torch.Tensor | None,
        weight: nn.Parameter,
        down: Fp8Linear,
        rows: Counts,
        gradient: WireGradient | None,
        record: bool,
    ) -> torch.Tensor:
        ctx.down, ctx.rows, ctx.gradient = down, rows, gradient
        if record:
            kept = quantise_tiles(_tile_aligned(ab))
            observe.quantised(f"{down.name}.ab", _tile_aligned(ab), kept)
            ctx.save_for_backward(kept.q, kept.scale, gates)
        return down.fprop(down.quantised_input(_gated(swiglu(ab), gates)), rows)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        down: Fp8Linear = ctx.down
        """dy: [m, n], or what stands for it where `gradient` has it; returns: of ab [m, 2 f] and of gates [m]"""
        q, scale, gates = ctx.saved_tensors
        gates = None if gates is None else gates.detach()
        came = None if ctx.gradient is None else ctx.gradient.take()
        of_y = dy if came is None else came

        def again() -> torch.Tensor:
            """The inputs as FP8 holds them. returns: [m, 2 f] float32"""
            return _from_tile_aligned(dequantise(Quantised(q, scale, 1)), 2 * down.k)

        dab = dgates = None
        if ctx.needs_input_grad[0]:
            ab, dx = again(), down.dgrad(of_y, ctx.rows)
            dgates = None if gates is None else (dx * swiglu(ab)).sum(-1)
            dab = swiglu_gradient(ab, _gated(dx, gates))
        down.wgrad(of_y, lambda: _gated(swiglu(again()), gates), ctx.rows)
        return dab, dgates, None, None, None, None, None


def _gated(x: torch.Tensor, gates: torch.Tensor | None) -> torch.Tensor:
    """x: [m, f]; gates: [m]"""
    return x if gates is None else x * gates.unsqueeze(-1)


def _tile_aligned(ab: torch.Tensor) -> torch.Tensor:
    """a and b one after the other along the rows where no tile may hold both: [m, 2 f], or [2 m, f]"""
    return ab if ab.shape[1] // 2 % TILE == 0 else torch.cat(ab.chunk(2, dim=-1))


def _from_tile_aligned(ab: torch.Tensor, width: int) -> torch.Tensor:
    """Inverse of `_tile_aligned`. returns: [m, width]"""
    return ab if ab.shape[1] == width else torch.cat(ab.chunk(2), dim=-1)
