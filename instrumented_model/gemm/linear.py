"""The three FP8 products of a linear layer: Fprop, Dgrad, Wgrad (arXiv 2412.19437 section 3.3.1, figure 6).

Arithmetic of the CPU backend, exactly: both operands are E4M3 values times their FP32 scales, formed in FP32 and
multiplied in one FP32 product with FP32 accumulation. It is what promotion after every addition would give; the
14-bit accumulation of the tensor cores between promotions is not emulated here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise, quantise_blocks, quantise_tiles


def fprop(x: Quantised, w: Quantised) -> torch.Tensor:
    """Y = X W^T.

    x: [m, k] in 1x128 tiles; w: [n, k] in 128x128 blocks
    returns: [m, n] float32
    """
    return dequantise(x) @ dequantise(w).mT


def dgrad(dy: Quantised, w: Quantised) -> torch.Tensor:
    """dX = dY W; a 128x128 block serves both directions, so W is not quantised anew.

    dy: [m, n] in 1x128 tiles; w: [n, k] in 128x128 blocks
    returns: [m, k] float32
    """
    return dequantise(dy) @ dequantise(w)


def wgrad(dy_t: Quantised, x_t: Quantised) -> torch.Tensor:
    """dW = dY^T X, both in 128x1 tiles: 1x128 tiles of the transposed operands.

    dy_t: [n, m]; x_t: [k, m]
    returns: [n, k] float32
    """
    return dequantise(dy_t) @ dequantise(x_t).mT


def transposed_tiles(x: torch.Tensor) -> Quantised:
    """Quantise [m, k] in 128x1 tiles. returns: q [k, m], scale [k, ceil(m/128)]"""
    return quantise_tiles(x.mT.contiguous())


class WeightGradients:
    """Weight gradients put off until `flush`, so that a schedule can run them as chunks of their own (W).

    Without `deferred` they are computed at once.
    """

    def __init__(self) -> None:
        self.deferred = False
        self._pending: list[Callable[[], None]] = []

    def put(self, compute: Callable[[], None]) -> None:
        if self.deferred:
            self._pending.append(compute)
        else:
            compute()

    def take(self) -> list[Callable[[], None]]:
        """What was put off since the last call, in order; the caller runs it."""
        pending, self._pending = self._pending, []
        return pending


WEIGHT_GRADIENTS = WeightGradients()


def _accumulate(weight: nn.Parameter, gradient: torch.Tensor) -> None:
    weight.grad = gradient if weight.grad is None else weight.grad.add_(gradient)


class _Fp8Product(torch.autograd.Function):
    """y[rows of e] = x[rows of e] W_e^T; x is kept for backward in FP8. W gets its gradient as a side effect."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: nn.Parameter, layer: Fp8Linear, rows: Sequence[int]) -> torch.Tensor:
        xq = quantise_tiles(x)
        observe.quantised(f"{layer.name}.x", x, xq)
        ctx.save_for_backward(xq.q, xq.scale)
        ctx.layer, ctx.rows = layer, rows
        w = layer.dequantised()
        y = [a @ w[e].mT for e, a in enumerate(torch.split(dequantise(xq), list(rows)))]
        layer.count(rows)
        return y[0] if len(y) == 1 else torch.cat(y)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None]:
        layer: Fp8Linear = ctx.layer
        rows = list(ctx.rows)
        q, scale = ctx.saved_tensors

        def weight_gradient() -> None:
            """Read out, dequantise, transpose, quantise anew in 128x1 tiles, expert by expert (section 3.5.2)."""
            x = torch.split(dequantise(Quantised(q, scale, 1)), rows)
            parts = [
                wgrad(transposed_tiles(g), transposed_tiles(a)) for g, a in zip(torch.split(dy, rows), x, strict=True)
            ]
            _accumulate(layer.weight, torch.stack(parts))
            layer.count(rows)

        dx = None
        if ctx.needs_input_grad[0]:
            dyq = quantise_tiles(dy)
            observe.quantised(f"{layer.name}.dy", dy, dyq)
            w = layer.dequantised()
            parts = [g @ w[e] for e, g in enumerate(torch.split(dequantise(dyq), rows))]
            dx = parts[0] if len(parts) == 1 else torch.cat(parts)
            layer.count(rows)
        WEIGHT_GRADIENTS.put(weight_gradient)
        return dx, None, None, None


class Fp8Linear(nn.Module):
    """Linear layers without bias, one a group of rows: FP8 operands, FP32 weights, gradients and results.

    weight: [groups, n, k] float32, the master weights; groups is 1 but for experts
    name: what the profiler calls it
    fp8: False multiplies in FP32, to compare with
    """

    def __init__(self, name: str, k: int, n: int, *, groups: int = 1, fp8: bool = True) -> None:
        super().__init__()
        self.name, self.k, self.n, self.fp8 = name, k, n, fp8
        self.weight = nn.Parameter(torch.randn(groups, n, k) * k**-0.5)
        self._quantised: tuple[int, torch.Tensor] | None = None

    def dequantised(self) -> torch.Tensor:
        """The weights as E4M3 holds them, quantised once for each update. returns: [groups, n, k] float32"""
        version = self.weight._version
        if self._quantised is None or self._quantised[0] != version:
            w = self.weight.detach()
            if self.fp8:
                wq = quantise_blocks(w)
                observe.quantised(f"{self.name}.w", w, wq)
                w = dequantise(wq)
            self._quantised = (version, w)
        return self._quantised[1]

    def count(self, rows: Sequence[int]) -> None:
        """Tell the profiler of one product for each group that has rows."""
        dtype = observe.FP8 if self.fp8 else observe.BF16
        for m in rows:
            if m:
                observe.product(m, self.n, self.k, dtype=dtype)

    def forward(self, x: torch.Tensor, rows: Sequence[int] | None = None) -> torch.Tensor:
        """x: [m, k] float32, ordered by group; rows: [groups], how many each group has, summing to m

        returns: [m, n] float32
        """
        rows = [x.shape[0]] if rows is None else rows
        if not self.fp8:
            self.count(rows)
            y = [a @ self.weight[e].mT for e, a in enumerate(torch.split(x, list(rows)))]
            return y[0] if len(y) == 1 else torch.cat(y)
        result: torch.Tensor = _Fp8Product.apply(x, self.weight, self, rows)  # type: ignore[no-untyped-call]
        return result
