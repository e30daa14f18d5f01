"""Rows as bytes: what of a token travels, and in which format (arXiv 2412.19437 section 3.3.3)."""

from __future__ import annotations

import torch

from moescope.instrumented_model import observe
from moescope.instrumented_model.numerics.formats import E4M3, TILE
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise, quantise_tiles


def pack_tokens(x: torch.Tensor, fp8: bool, name: str) -> list[torch.Tensor]:
    """Rows in FP8, E4M3 values and the FP32 form of a power-of-2 scale for each 128 of them; or in BF16.

    x: [rows, d] float32; name: what the profiler calls the tensor
    returns: parts to be laid side by side, [rows, bytes] uint8 each
    """
    if not fp8:
        return [x.bfloat16().view(torch.uint8)]
    xq = quantise_tiles(x, power_of_2=True)
    observe.quantised(name, x, xq)
    return [xq.q.contiguous().view(torch.uint8), xq.scale.view(torch.uint8)]


def unpack_tokens(wire: torch.Tensor, d: int, fp8: bool) -> torch.Tensor:
    """Inverse of `pack_tokens`. wire: [rows, at least token_bytes(d)] uint8; returns: [rows, d] float32"""
    if not fp8:
        return wire[:, : 2 * d].contiguous().view(torch.bfloat16).float()
    scale = wire[:, d : token_bytes(d, fp8)].contiguous().view(torch.float32)
    return dequantise(Quantised(wire[:, :d].contiguous().view(E4M3), scale, 1))


def token_bytes(d: int, fp8: bool) -> int:
    """Bytes of a row of `pack_tokens`."""
    return d + 4 * -(-d // TILE) if fp8 else 2 * d


def column(wire: torch.Tensor, at: int, count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` values of 4 bytes from byte `at` of each row. wire: [rows, bytes] uint8; returns: [rows, count]"""
    return wire[:, at : at + 4 * count].contiguous().view(dtype)
