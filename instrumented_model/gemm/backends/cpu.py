"""FP32 products of the dequantised operands: E4M3 values times their scales, formed in FP32, added up in FP32.

It is what promotion after every addition would give: nothing of the tensor core's 14 bits is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moescope.instrumented_model.gemm.backend import Counts, Plain
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise, group_starts


class Cpu(Plain):
    """`Backend` in FP32 by torch's own GEMM, on any device: every promotion interval is honoured."""

    name = "cpu"
    arithmetic = "E4M3 operands, dequantised, FP32 products"
    finest = 0

    def why_not(self, device: torch.device) -> str | None:
        return None

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        return _as(dequantise(a) @ b.dequantised.mT, out_dtype)

    def grouped_m(
        self, a: Quantised, b: Quantised, rows: Counts, interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        assert not isinstance(rows, torch.Tensor)  # `counts_stay` is asked first
        left, right = dequantise(a), b.dequantised
        result = left.new_empty(left.shape[0], right.shape[1])
        first = 0
        for group, count in enumerate(rows):
            if count:
                part = slice(first, first + count)
                torch.mm(left[part], right[group].mT, out=result[part])
            first += count
        return _as(result, out_dtype)

    def grouped_k(
        self, a: Quantised, b: Quantised, rows: Sequence[int], interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        left, right = dequantise(a), dequantise(b)
        result = left.new_zeros(len(rows), left.shape[0], right.shape[0])
        for group, (start, count) in enumerate(zip(group_starts(rows), rows, strict=True)):
            if count:
                part = slice(start, start + count)
                torch.mm(left[:, part], right[:, part].mT, out=result[group])
        return _as(result, out_dtype)


def _as(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return x if x.dtype == dtype else x.to(dtype)
