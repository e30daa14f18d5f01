"""torch's own scaled product, with the recipes of 1x128 tiles and 128x128 blocks: cuBLASLt on compute capability 9.0.

Not yet run on a GPU. Layouts of the scales, as torch's own samples give them: those of 1x128 tiles [n, k/128] stored by
columns; those of 128x128 blocks [k/128 up to a multiple of 4, n/128], also stored by columns.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

from moescope.instrumented_model.gemm.backend import ByGroup
from moescope.instrumented_model.numerics.formats import E4M3, TILE
from moescope.instrumented_model.numerics.quantise import Quantised

_ROWS = 16
"""cuBLASLt wants rows of operands and of scales aligned to 16 bytes."""


class ScaledMm(ByGroup):
    """`Backend` by `torch.nn.functional.scaled_mm`, 1x128 by 128x128 or 1x128. Not yet run on a GPU."""

    name = "scaled_mm"
    arithmetic = "E4M3 operands, torch scaled_mm (cuBLASLt) on tensor cores"
    finest = 128

    def why_not(self, device: torch.device) -> str | None:
        if not hasattr(F, "scaled_mm"):
            return f"torch {torch.__version__} has no scaled_mm"
        return needs_hopper(device)

    def leave(self, sms: int) -> bool:
        limit = getattr(torch._C, "_set_sm_carveout_experimental", None)
        if limit is None:
            return sms == 0
        limit(sms or None)
        return True

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        m, n = a.q.shape[0], b.q.shape[0]
        blocks = b.rows == TILE
        left, right = filled(a.q, _ROWS), filled(b.q, TILE if blocks else _ROWS)
        if left.numel() == 0 or right.numel() == 0:
            return torch.zeros(m, n, dtype=out_dtype, device=a.q.device)
        tilewise, blockwise = F.ScalingType.BlockWise1x128, F.ScalingType.BlockWise128x128
        result: torch.Tensor = F.scaled_mm(
            left,
            right.T,
            _by_columns(a.scale, left.shape[0]),
            tilewise,
            _of_blocks(b.scale) if blocks else _by_columns(b.scale, right.shape[0]),
            blockwise if blocks else tilewise,
            output_dtype=out_dtype,
        )
        return result[:m, :n]


def needs_hopper(device: torch.device) -> str | None:
    """Why kernels for Hopper cannot run on tensors of `device`."""
    if device.type != "cuda":
        return f"needs a GPU of compute capability 9.0, tensors are on the {device.type}"
    capability = torch.cuda.get_device_capability(device)
    return (
        None if capability == (9, 0) else f"needs compute capability 9.0, {device} has {'.'.join(map(str, capability))}"
    )


def filled(q: torch.Tensor, rows: int) -> torch.Tensor:
    """Zeros behind rows and columns up to multiples of `rows` and 128. returns: [n, k] float8_e4m3fn, contiguous"""
    n, k = q.shape
    if n % rows or k % TILE:
        return F.pad(q.contiguous().view(torch.uint8), (0, -k % TILE, 0, -n % rows)).view(E4M3)
    return q.contiguous()


def _by_columns(scale: torch.Tensor, rows: int) -> torch.Tensor:
    """[n, tiles] to [rows, tiles] stored by columns, 1 in what was filled up"""
    return F.pad(scale.T, (0, rows - scale.shape[0]), value=1.0).contiguous().T


def _of_blocks(scale: torch.Tensor) -> torch.Tensor:
    """[n/128, tiles] to [tiles up to a multiple of 4, n/128] stored by columns"""
    return F.pad(scale, (0, -scale.shape[1] % 4), value=1.0).contiguous().T
