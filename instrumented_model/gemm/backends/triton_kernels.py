"""The stack's own Hopper kernels in Triton. Imported when they are first needed; not yet run on a GPU."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import torch

from moescope.instrumented_model.gemm.backend import Counts
from moescope.instrumented_model.numerics.quantise import Quantised

_KERNELS = "moescope.instrumented_model.kernels"


def _kernels(module: str) -> Any:
    return importlib.import_module(f"{_KERNELS}.{module}")


class Triton:
    """Under `TRITON_INTERPRET=1` it takes CPU tensors too, for checks: slow, and only where it is named."""

    name = "triton"
    arithmetic = "E4M3 operands, Triton kernels on tensor cores, promoted to FP32 every 128"
    finest = 128
    counts_stay = True
    left = 0
    """SMs that it keeps off."""

    def leave(self, sms: int) -> bool:
        self.left = sms
        return True

    def _sms(self, device: torch.device) -> int | None:
        """The most SMs that a product may use."""
        return _kernels("check").sm_count(device) - self.left if self.left else None

    def why_not(self, device: torch.device) -> str | None:
        if importlib.util.find_spec(_KERNELS) is None:
            return "its kernels are not installed"
        package = importlib.import_module(_KERNELS)
        reason: str | None = package.why_not(device.index or 0)
        if reason is None and device.type != "cuda" and not package.interpreted():
            reason = f"needs a GPU of compute capability 9.0, tensors are on the {device.type}"
        return reason

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        result: torch.Tensor = _kernels("gemm").gemm(
            a.q.contiguous(), a.scale, b.q.contiguous(), b.scale, out_dtype=out_dtype, sms=self._sms(a.q.device)
        )
        return result

    def grouped_m(
        self, a: Quantised, b: Quantised, rows: Counts, interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result: torch.Tensor = _kernels("grouped_gemm").grouped_gemm(
            a.q.contiguous(),
            a.scale,
            b.q.contiguous(),
            b.scale,
            rows if isinstance(rows, torch.Tensor) else list(rows),
            out_dtype=out_dtype,
            sms=self._sms(a.q.device),
        )
        return result

    def grouped_k(
        self, a: Quantised, b: Quantised, rows: Sequence[int], interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        result: torch.Tensor = _kernels("grouped_gemm").grouped_gemm_k(
            a.q.contiguous(),
            a.scale,
            b.q.contiguous(),
            b.scale,
            list(rows),
            out_dtype=out_dtype,
            sms=self._sms(a.q.device),
        )
        return result
