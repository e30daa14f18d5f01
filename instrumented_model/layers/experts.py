"""Experts as SwiGLU feed-forward networks: those of a rank, the shared ones, and a dense layer's
(arXiv 2412.19437 section 2.1.2)."""

from __future__ import annotations

import torch
from torch import nn

from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.backend import Counts
from moescope.instrumented_model.gemm.beside import WireGradient
from moescope.instrumented_model.gemm.linear import Fp8Linear
from moescope.instrumented_model.gemm.swiglu import swiglu_linear
from moescope.instrumented_model.numerics.quantise import Quantised


class Experts(nn.Module):
    """W_down(silu(W_gate x) * W_up x) for each group of rows; gate and up are one product.

    name: `mlp`, `shared`, `dense`
    """

    def __init__(self, name: str, d: int, d_expert: int, groups: int, arithmetic: Arithmetic) -> None:
        super().__init__()
        travels = name == "mlp"  # its input and its gradient come over the wire, with power-of-2 scales (section 3.3.3)
        self.gate_up = Fp8Linear(
            f"{name}.up", d, 2 * d_expert, groups=groups, arithmetic=arithmetic, power_of_2_x=travels
        )
        self.down = Fp8Linear(f"{name}.down", d_expert, d, groups=groups, arithmetic=arithmetic, power_of_2_dy=travels)

    def forward(
        self,
        x: torch.Tensor,
        rows: Counts | None = None,
        gates: torch.Tensor | None = None,
        *,
        wire: Quantised | None = None,
        gradient: WireGradient | None = None,
    ) -> torch.Tensor:
        """x: [m, d] float32 ordered by expert; rows: [groups] summing to m, [m] where not given
        gates: [m] float32, factors on what comes out (equation 12); 1 where not given
        wire: x as it came in FP8, x then stands for it in the graph; gradient: where that of the result is put if it
            comes so

        returns: [m, d] float32
        """
        return swiglu_linear(self.gate_up(x, rows, wire=wire), self.down, rows, gates, gradient)
