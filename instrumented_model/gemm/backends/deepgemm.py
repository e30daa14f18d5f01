"""DeepGEMM (github.com/deepseek-ai/DeepGEMM), where it is installed. Not yet run on a GPU.

Weights in 128x128 blocks go to its 1D2D kernel, which gives BF16 (an FP32 result is that, widened); both operands in
tiles (Wgrad) go to its 1D1D kernel, which adds to an FP32 result. Its grouped kernel wants each group's rows filled up
to a multiple of 128 and gives BF16.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

import torch

from moescope.instrumented_model.device import brought
from moescope.instrumented_model.gemm.backend import ByGroup, Counts
from moescope.instrumented_model.gemm.backends.scaled_mm import filled, needs_hopper
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised, group_starts, padded_rows


def _library() -> Any:
    return importlib.import_module("deep_gemm")


class DeepGemm(ByGroup):
    """`Backend` by github.com/deepseek-ai/DeepGEMM, grouped K by group. Not yet run on a GPU."""

    name = "deepgemm"
    arithmetic = "E4M3 operands, DeepGEMM on tensor cores, promoted to FP32 every 128"
    finest = 128

    def leave(self, sms: int) -> bool:
        _library().set_num_sms(torch.cuda.get_device_properties().multi_processor_count - sms)
        return True

    def why_not(self, device: torch.device) -> str | None:
        if importlib.util.find_spec("deep_gemm") is None:
            return "deep_gemm is not installed"
        return needs_hopper(device)

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        left, right = (filled(a.q, 1), a.scale.contiguous()), (filled(b.q, 1), b.scale.contiguous())
        shape = (a.q.shape[0], b.q.shape[0])
        if b.rows == TILE:
            result = torch.empty(shape, dtype=torch.bfloat16, device=a.q.device)
            _library().fp8_gemm_nt(left, right, result, disable_ue8m0_cast=True)
        else:
            result = torch.zeros(shape, dtype=torch.float32, device=a.q.device)
            _library().fp8_gemm_nt(left, right, result, c=result, recipe=(1, 1, TILE), disable_ue8m0_cast=True)
        return result.to(out_dtype)

    def grouped_m(
        self, a: Quantised, b: Quantised, rows: Counts, interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        assert not isinstance(rows, torch.Tensor)  # `counts_stay` is asked first
        device, total = a.q.device, padded_rows(rows)
        counts = torch.tensor(list(rows))
        of_row = torch.arange(len(rows)).repeat_interleave(counts)
        filled_up = torch.tensor(group_starts(rows)) - (counts.cumsum(0) - counts)
        group, at = brought(torch.stack([of_row, filled_up[of_row] + torch.arange(a.q.shape[0])]), device)
        q = torch.zeros(total, a.q.shape[1], dtype=torch.uint8, device=device).view(a.q.dtype)
        q.view(torch.uint8)[at] = a.q.view(torch.uint8)
        scale = torch.ones(total, a.scale.shape[1], device=device)
        scale[at] = a.scale
        indices = torch.full((total,), -1, dtype=torch.int32, device=device)
        indices[at] = group.int()
        result = torch.empty(total, b.q.shape[1], dtype=torch.bfloat16, device=device)
        right = (b.q.contiguous(), b.scale.contiguous())
        _library().m_grouped_fp8_gemm_nt_contiguous((q, scale), right, result, indices, disable_ue8m0_cast=True)
        return result[at].to(out_dtype)
