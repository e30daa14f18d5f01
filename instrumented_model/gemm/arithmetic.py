"""How the products of a Linear are computed: what a configuration may choose, and a backend must honour."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.products import N_C


@dataclass(frozen=True)
class Arithmetic:
    """fp8: E4M3 operands; False: FP32 products, to compare with, which the rest does not touch
    interval: the most elements of k between promotions to FP32 (N_C, arXiv 2412.19437 section 3.3.2), None: no bound
    out_dtype: float32 or bfloat16, what Fprop and Dgrad come out in; Wgrad comes out in FP32, as gradients are kept
    """

    fp8: bool = True
    interval: int | None = N_C
    out_dtype: torch.dtype = torch.float32

    @classmethod
    def of(cls, c: Config) -> Arithmetic:
        """As a configuration has it."""
        return cls(c.fp8, c.promotion_interval or None, getattr(torch, c.product_dtype))

    def __str__(self) -> str:
        bound = "no bound on promotion" if self.interval is None else f"promotion every {self.interval} elements"
        return f"{bound}, results in {str(self.out_dtype).removeprefix('torch.')}"
