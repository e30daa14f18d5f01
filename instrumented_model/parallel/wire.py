"""Rows as bytes: what of a token travels, and in which format (arXiv 2412.19437 section 3.3.3)."""

from __future__ import annotations

import torch

from moescope.instrumented_model import observe
from moescope.instrumented_model.gemm.quantisers import quantise_tiles
from moescope.instrumented_model.numerics.formats import E4M3, TILE
from moescope.instrumented_model.numerics.quantise import Quantised
from moescope.instrumented_model.parallel.exchange import Rows


def pack_tokens(x: torch.Tensor, fp8: bool, name: str) -> list[torch.Tensor]:
    """Rows in FP8, E4M3 values and the FP32 form of a power-of-2 scale for each 128 of them; or in BF16.

    x: [rows, d] float32; name: what the profiler calls the tensor
    returns: parts to be laid side by side, [rows, bytes] uint8 each
    """
    if not fp8:
        return [as_bytes(x.bfloat16())]
    xq = quantise_tiles(x, power_of_2=True)
    observe.quantised(name, x, xq)
    return [as_bytes(xq.q), as_bytes(xq.scale)]


def as_bytes(x: torch.Tensor) -> torch.Tensor:
    """x: [rows, n]; returns: [rows, bytes of a row] uint8, the same memory where x is contiguous"""
    # Flat first: where there is no row, one column may have a stride of 0, which no view of other sizes takes.
    return x.reshape(-1).view(torch.uint8).reshape(x.shape[0], x.shape[1] * x.element_size())


def unpack_tokens(wire: torch.Tensor, row: torch.Tensor, d: int, fp8: bool) -> Rows:
    """Copies of what `pack_tokens` packed, still in FP8 where it travelled so.

    wire: [rows, at least token_bytes(d)] uint8; row: [copies] int64, which row each is of
    returns: [copies, d]
    """
    if not fp8:
        return unpack_sums(wire, d).index_select(0, row)
    q, scale = (part.contiguous().index_select(0, row) for part in (wire[:, :d], wire[:, d : token_bytes(d, fp8)]))
    return Quantised(q.view(E4M3), scale.view(torch.float32), 1)


def unpack_sums(wire: torch.Tensor, d: int) -> torch.Tensor:
    """Rows that travelled in BF16. wire: [rows, at least 2 d] uint8; returns: [rows, d] float32"""
    return wire[:, : 2 * d].contiguous().view(torch.bfloat16).float()


def token_bytes(d: int, fp8: bool) -> int:
    """Bytes of a row of `pack_tokens`."""
    return d + 4 * -(-d // TILE) if fp8 else 2 * d


def column(wire: torch.Tensor, at: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` values of 4 bytes from byte `at` of each row. wire: [rows, bytes] uint8; returns: [rows, count]"""
    return wire[:, at : at + 4 * count].contiguous().view(dtype)
