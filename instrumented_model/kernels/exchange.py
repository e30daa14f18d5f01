"""Dispatch and combine on a set number of SMs, between virtual ranks whose buffers lie in the same HBM.

One GPU stands for several ranks: what would cross a link is copied from one rank's part of a buffer to another's, by
programs that hold the SMs that the report gives to communication, 20 of 132 (arXiv 2412.19437 section 3.2.2). A program
has 32 warps, so by registers alone it does not fit onto an SM beside a product's. Compiled for sm_90 in the tests; not
yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.kernels import check
from moescope.instrumented_model.kernels.device import cast
from moescope.instrumented_model.kernels.groups import power_of_2_at_least
from moescope.instrumented_model.kernels.trace import COMMUNICATION, Trace, record_begin, record_end, record_open

SMS = 20
"""10 channels of 2 (section 3.2.2)."""
WARPS = 32
ELEMENTS = 32768
"""Of a dispatch program's block, one byte each: 2 x 16 bytes a thread in flight."""
SUMMED = 8192
"""Of a combine program's block, two bytes each."""


@triton.jit(do_not_specialize=["slots"])
def dispatch_kernel(
    x, s, to, to_s, source, slots, d, tiles,
    stride_x, stride_s_row, stride_s_tile, stride_to, stride_to_s_row, stride_to_s_tile,
    trace, ROWS: tl.constexpr, WIDTH: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """x: [n, d] bytes; to: [slots, d]; s: [n, tiles] float32 or None; source: [slots] int32, below 0 for zeros"""
    programs = tl.num_programs(0)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.cdiv(slots, ROWS), programs):
        start = record_begin(trace)
        slot = block * ROWS + tl.arange(0, ROWS)
        row = tl.load(source + slot, mask=slot < slots, other=-1)
        from_at = row.to(tl.int64)
        to_at = slot.to(tl.int64)
        for first in range(0, d, WIDTH):
            column = first + tl.arange(0, WIDTH)
            across = (column < d)[None, :]
            values = tl.load(
                x + from_at[:, None] * stride_x + column[None, :], mask=(row >= 0)[:, None] & across, other=0
            )
            tl.store(to + to_at[:, None] * stride_to + column[None, :], values, mask=(slot < slots)[:, None] & across)
        if s is not None:
            tile = tl.arange(0, TILES)
            across = (tile < tiles)[None, :]
            scale_at = s + from_at[:, None] * stride_s_row + tile[None, :] * stride_s_tile
            scales = tl.load(scale_at, mask=(row >= 0)[:, None] & across, other=1.0)
            to_scale_at = to_s + to_at[:, None] * stride_to_s_row + tile[None, :] * stride_to_s_tile
            tl.store(to_scale_at, scales, mask=(slot < slots)[:, None] & across)
        record_end(trace, start, written + block // programs, block, COMMUNICATION)


@triton.jit(do_not_specialize=["tokens"])
def combine_kernel(
    rows, slot, weights, y, tokens, d, stride_rows, stride_slot, stride_weights, stride_y,
    trace, TOP_K: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """rows: [slots, d]; slot: [tokens, TOP_K] int32, below 0: none; weights: [tokens, TOP_K] or None; y: [tokens, d]"""
    programs = tl.num_programs(0)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.cdiv(tokens, ROWS), programs):
        start = record_begin(trace)
        token = block * ROWS + tl.arange(0, ROWS)
        at = token.to(tl.int64)
        for first in range(0, d, WIDTH):
            column = first + tl.arange(0, WIDTH)
            across = (column < d)[None, :]
            total = tl.zeros([ROWS, WIDTH], tl.float32)
            for choice in tl.static_range(TOP_K):  # unrolled, so that the loads of all are in flight together
                row = tl.load(slot + at * stride_slot + choice, mask=token < tokens, other=-1)
                there = (row >= 0)[:, None] & across
                value = tl.load(rows + row.to(tl.int64)[:, None] * stride_rows + column[None, :], mask=there, other=0.0)
                if weights is None:
                    total += value.to(tl.float32)
                else:
                    weight = tl.load(weights + at * stride_weights + choice, mask=token < tokens, other=0.0)
                    total += value.to(tl.float32) * weight[:, None]
            y_at = y + at[:, None] * stride_y + column[None, :]
            tl.store(y_at, cast(total, y.dtype.element_ty), mask=(token < tokens)[:, None] & across)
        record_end(trace, start, written + block // programs, block, COMMUNICATION)


def _block(width: int, elements: int) -> tuple[int, int]:
    """Rows and columns of a program's block of `elements`, for rows of `width`."""
    columns = min(power_of_2_at_least(width), elements)
    return elements // columns, columns


def dispatch(
    q: torch.Tensor,
    scale: torch.Tensor | None,
    source: torch.Tensor,
    *,
    sms: int | None = SMS,
    trace: Trace | None = None,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Rows and their scales to the buffers of the ranks that they go to: to[i] = q[source[i]], a linear copy.

    q: [n, d] of 1 byte an element (float8_e4m3fn, uint8), rows of all ranks
    scale: [n, tiles] float32 that travels with them, or None
    source: [slots] int32, the row that slot i gets, slots ordered by the rank and expert they belong to; below 0 for
        a slot that stays empty: zeros, with scale 1. Unchecked, since that would wait for the device: all lie below n
    sms: SMs to use, each by one program; None for all
    returns: [slots, d] of q's dtype, [slots, tiles] float32 or None
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("q", q, (None, None), torch.float8_e4m3fn, torch.uint8)
    check.rows_contiguous("q", q)
    n, d = q.shape
    if scale is not None:
        check.tensor("scale", scale, (n, None), torch.float32)
    check.tensor("source", source, (None,), torch.int32)
    check.rows_contiguous("source", source)
    check.same_device(q, scale, source)
    slots = source.shape[0]
    tiles = 0 if scale is None else scale.shape[1]
    to = torch.empty(slots, d, dtype=q.dtype, device=q.device)
    to_scale = None if scale is None else torch.empty(slots, tiles, dtype=torch.float32, device=q.device)
    if slots and d:
        height, width = _block(d, ELEMENTS)
        programs = check.programs(-(-slots // height), sms, q.device)
        dispatch_kernel[(programs,)](
            q.view(torch.uint8), scale, to.view(torch.uint8), to_scale, source, slots, d, tiles,
            q.stride(0), *_strides(scale), to.stride(0), *_strides(to_scale),
            trace and trace.launched("dispatch", programs),
            ROWS=height, WIDTH=width, TILES=power_of_2_at_least(tiles), num_warps=WARPS,
        )  # fmt: skip
    return to, to_scale


def combine(
    rows: torch.Tensor,
    slot: torch.Tensor,
    weights: torch.Tensor | None = None,
    *,
    sms: int | None = SMS,
    trace: Trace | None = None,
) -> torch.Tensor:
    """y[t] = sum over j of rows[slot[t, j]], times weights[t, j] where they are given: dispatch transposed.

    rows: [slots, d] bfloat16 or float32
    slot: [tokens, top_k] int32, below 0 for none; weights: [tokens, top_k] float32
    sms: SMs to use, each by one program; None for all
    returns: [tokens, d] bfloat16, summed in float32 in the order of j
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("rows", rows, (None, None), torch.bfloat16, torch.float32)
    check.rows_contiguous("rows", rows)
    check.tensor("slot", slot, (None, None), torch.int32)
    check.rows_contiguous("slot", slot)
    tokens, top_k = slot.shape
    if weights is not None:
        check.tensor("weights", weights, (tokens, top_k), torch.float32)
        check.rows_contiguous("weights", weights)
    check.same_device(rows, slot, weights)
    d = rows.shape[1]
    y = torch.empty(tokens, d, dtype=torch.bfloat16, device=rows.device)
    if y.numel():
        height, width = _block(d, SUMMED)
        programs = check.programs(-(-tokens // height), sms, rows.device)
        combine_kernel[(programs,)](
            rows, slot, weights, y, tokens, d,
            rows.stride(0), slot.stride(0), 0 if weights is None else weights.stride(0), y.stride(0),
            trace and trace.launched("combine", programs), TOP_K=top_k, ROWS=height, WIDTH=width, num_warps=WARPS,
        )  # fmt: skip
    return y


def _strides(t: torch.Tensor | None) -> tuple[int, int]:
    return (0, 0) if t is None else (t.stride(0), t.stride(1))
