"""The three FP8 products of a linear layer: Fprop, Dgrad, Wgrad (arXiv 2412.19437 section 3.3.1, figure 6).

All operands are E4M3; products go through the backend that was chosen at start-up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.gemm import products
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.backend import Counts
from moescope.instrumented_model.gemm.beside import WEIGHT_GRADIENTS
from moescope.instrumented_model.gemm.quantisers import quantise_columns, quantise_tiles
from moescope.instrumented_model.numerics.e5m6 import E5M6Tiles, dequantise_e5m6, quantise_e5m6
from moescope.instrumented_model.numerics.quantise import (
    Quantised,
    dequantise,
    quantise_blocks,
    transposed,
)


@dataclass(frozen=True)
class Weights:
    """E4M3 weights both ways: a 128x128 block serves both, so W is quantised once.

    w: [groups, n, k], for Fprop; w_t: [groups, k, n], for Dgrad; without the first axis where there is one group
    """

    w: Quantised
    w_t: Quantised


class _Fp8Product(torch.autograd.Function):
    """y[rows of e] = x[rows of e] W_e^T; x is kept for backward quantised. W gets its gradient as a side effect."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: nn.Parameter,
        layer: Fp8Linear,
        rows: Counts,
        wire: Quantised | None,
        record: bool,
    ) -> torch.Tensor:
        xq = layer.quantised_input(x) if wire is None else wire
        ctx.layer, ctx.rows, ctx.k = layer, rows, None
        if record:
            if layer.keep == "e5m6" and wire is None:
                stored = quantise_e5m6(x)
                observe.quantised(f"{layer.name}.x", x, stored)
                ctx.k = stored.k
                ctx.save_for_backward(stored.packed, stored.scale)
            else:
                ctx.save_for_backward(xq.q, xq.scale)
        return layer.fprop(xq, rows)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[torch.Tensor | None, None, None, None, None, None]:
        """dy: [m, n] float32; returns: dx [m, k] float32"""
        layer: Fp8Linear = ctx.layer
        rows, k = ctx.rows, ctx.k
        kept, scale = ctx.saved_tensors
        dx = layer.dgrad(dy, rows) if ctx.needs_input_grad[0] else None
        if k is None:
            layer.wgrad(dy, lambda: dequantise(Quantised(kept, scale, 1)), rows)
        else:
            layer.wgrad(dy, lambda: dequantise_e5m6(E5M6Tiles(kept, scale, k)), rows)
        return dx, None, None, None, None, None


class Fp8Linear(nn.Module):
    """Linear layers without bias, one a group of rows: FP8 operands, FP32 weights, gradients and results.

    weight: [groups, n, k] float32, the master weights; groups is 1 but for experts
    name: what the profiler calls it
    arithmetic: of the three products; results are rounded to its type, and FP32 tensors in the graph all the same
    power_of_2_x, power_of_2_dy: scales of the input and of the gradient that comes in are powers of 2, so that 1x128
        tiles become 128x1 tiles without further error (section 3.3.3)
    keep: what the input is kept in for backward: as it is multiplied, or finer
    """

    def __init__(
        self,
        name: str,
        k: int,
        n: int,
        *,
        groups: int = 1,
        arithmetic: Arithmetic = Arithmetic(),
        power_of_2_x: bool = False,
        power_of_2_dy: bool = False,
        keep: Literal["e4m3", "e5m6"] = "e4m3",
    ) -> None:
        super().__init__()
        self.name, self.k, self.n, self.arithmetic = name, k, n, arithmetic
        self.power_of_2_x, self.power_of_2_dy, self.keep = power_of_2_x, power_of_2_dy, keep
        self.weight = nn.Parameter(torch.randn(groups, n, k) * k**-0.5)
        self._weights: tuple[int, Weights] | None = None

    def weights(self) -> Weights:
        """The weights in E4M3, quantised once for each update."""
        version = self.weight._version
        if self._weights is None or self._weights[0] != version:
            w = self.weight.detach()
            wq = quantise_blocks(w)
            observe.quantised(f"{self.name}.w", w, wq)
            if wq.q.shape[0] == 1:
                wq = Quantised(wq.q[0], wq.scale[0], wq.rows)
            _ = wq.dequantised if w.device.type == "cpu" else None  # before the transposed view, which then shares it
            self._weights = (version, Weights(wq, transposed(wq)))
        return self._weights[1]

    @property
    def quantised(self) -> Weights | None:
        """The weights in E4M3 as they were used last."""
        return None if self._weights is None else self._weights[1]

    def dequantised(self) -> torch.Tensor:
        """The weights as E4M3 holds them. returns: [groups, n, k] float32"""
        return self.weights().w.dequantised.view_as(self.weight) if self.arithmetic.fp8 else self.weight.detach()

    def count(self, rows: Counts) -> None:
        """Tell the profiler of one product for each group that has rows, where these are known."""
        if isinstance(rows, torch.Tensor):
            return
        dtype = observe.FP8 if self.arithmetic.fp8 else observe.BF16
        for m in rows:
            if m:
                observe.product(m, self.n, self.k, dtype=dtype)

    def quantised_input(self, x: torch.Tensor) -> Quantised:
        """x: [m, k] float32; returns: in 1x128 tiles, reported"""
        xq = quantise_tiles(x, power_of_2=self.power_of_2_x)
        observe.quantised(f"{self.name}.x", x, xq)
        return xq

    def fprop(self, x: Quantised, rows: Counts) -> torch.Tensor:
        """Y = X W^T. x: [m, k] in 1x128 tiles; returns: [m, n] float32"""
        y = self._product(x, self.weights().w, rows)
        self.count(rows)
        return y

    def dgrad(self, dy: torch.Tensor | Quantised, rows: Sequence[int]) -> torch.Tensor:
        """dX = dY W. dy: [m, n] float32, or in 1x128 tiles already; returns: [m, k] float32"""
        if isinstance(dy, Quantised):
            dyq = dy
        else:
            dyq = quantise_tiles(dy, power_of_2=self.power_of_2_dy)
            observe.quantised(f"{self.name}.dy", dy, dyq)
        dx = self._product(dyq, self.weights().w_t, rows)
        self.count(rows)
        return dx

    def wgrad(self, dy: torch.Tensor | Quantised, x: Callable[[], torch.Tensor], rows: Sequence[int]) -> None:
        """dW += dY^T X, put off where `WEIGHT_GRADIENTS` says so.

        dy: [m, n] float32, or in 1x128 tiles already; x: gives the input back, [m, k] float32
        """

        def compute() -> None:
            """Read out, dequantise, quantise anew in 128x1 tiles, expert by expert (section 3.5.2)."""
            again, of_y = x(), dequantise(dy) if isinstance(dy, Quantised) else dy
            dy_t = quantise_columns(of_y, groups=rows, power_of_2=self.power_of_2_dy)
            x_t = quantise_columns(again, groups=rows, power_of_2=self.power_of_2_x)
            observe.quantised(f"{self.name}.dy", of_y, dy_t, rows)
            observe.quantised(f"{self.name}.x", again, x_t, rows)
            gradient = products.grouped_k(transposed(dy_t), transposed(x_t), rows, interval=self.arithmetic.interval)
            self.weight.grad = gradient if self.weight.grad is None else self.weight.grad.add_(gradient)
            self.count(rows)

        WEIGHT_GRADIENTS.put(compute)

    def forward(self, x: torch.Tensor, rows: Counts | None = None, *, wire: Quantised | None = None) -> torch.Tensor:
        """x: [m, k] float32, ordered by group; rows: [groups], how many each group has, summing to m
        wire: x in 1x128 tiles already, as it came from another rank; x then stands for it in the graph alone

        returns: [m, n] float32
        raises: ValueError on shapes that do not multiply
        """
        rows = self.checked(x, rows)
        if not self.arithmetic.fp8:
            return self.unquantised(x, rows)
        if wire is not None and wire.q.shape != x.shape:
            raise ValueError(
                f"{self.name}: wire {list(wire.q.shape)} does not stand for x {list(x.shape)}: give one of it"
            )
        record = torch.is_grad_enabled()
        result: torch.Tensor = _Fp8Product.apply(x, self.weight, self, rows, wire, record)  # type: ignore[no-untyped-call]
        return result

    def checked(self, x: torch.Tensor, rows: Counts | None) -> Counts:
        """x: [m, k]; rows: [groups], None for one. returns: [groups], rows. Raises ValueError where they do not fit."""
        if x.dim() != 2 or x.shape[1] != self.k:
            raise ValueError(
                f"{self.name}: input {list(x.shape)} does not multiply with weights [{self.n}, {self.k}]: "
                f"give [rows, {self.k}]"
            )
        rows = [x.shape[0]] if rows is None else rows
        if isinstance(rows, torch.Tensor):
            if self.arithmetic.fp8 and not torch.is_grad_enabled():
                return rows
            raise ValueError(f"{self.name}: rows on {rows.device} are for inference in FP8: give a list")
        if len(rows) != self.weight.shape[0] or sum(rows) != x.shape[0]:
            raise ValueError(
                f"{self.name}: rows {list(rows)} do not share out {x.shape[0]} rows over "
                f"{self.weight.shape[0]} groups: give one number a group"
            )
        return rows

    def unquantised(self, x: torch.Tensor, rows: Counts) -> torch.Tensor:
        """Y = X W^T in FP32, to compare with. x: [m, k] float32; rows: [groups], sum m; returns: [m, n] float32"""
        assert not isinstance(rows, torch.Tensor)  # `checked` lets none through
        self.count(rows)
        y = [a @ self.weight[e].mT for e, a in enumerate(torch.split(x, list(rows)))]
        return y[0] if len(y) == 1 else torch.cat(y)

    def _product(self, a: Quantised, w: Quantised, rows: Counts) -> torch.Tensor:
        interval, out_dtype = self.arithmetic.interval, self.arithmetic.out_dtype
        if w.q.dim() == 2:
            return products.dense(a, w, interval=interval, out_dtype=out_dtype).float()
        return products.grouped_m(a, w, rows, interval=interval, out_dtype=out_dtype).float()
