"""Products of many experts in one launch: ragged rows against each expert's weights, and their weight gradients.

Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.kernels import check
from moescope.instrumented_model.kernels.gemm import result
from moescope.instrumented_model.kernels.groups import group_at, group_tiles, groups_of, power_of_2_at_least
from moescope.instrumented_model.kernels.mainloop import (
    LARGE,
    by_descriptor,
    operand,
    product_tile,
    shape_for,
    store_tile,
)
from moescope.instrumented_model.kernels.trace import COMPUTE, Trace, record_begin, record_end, record_open


@triton.jit
def grouped_gemm_m_kernel(
    x, xs, w, ws, y, offsets, groups, n, k,
    stride_x, stride_xs_row, stride_xs_tile, stride_w, stride_ws_group, stride_ws_row, stride_ws_tile, stride_y,
    trace,
    TMA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """x: [m, k], w: [groups * n, k] E4M3, pointers or descriptors; y: [m, n]; offsets: [groups + 1] int32"""
    across, k_tiles = tl.cdiv(n, COLUMNS), tl.cdiv(k, 128)
    programs = tl.num_programs(0)
    tiles, ends = group_tiles(offsets, groups, ROWS, GROUPS)
    tiles *= across
    ends *= across
    written = record_open(trace)
    for tile in range(tl.program_id(0), tl.sum(tiles), programs):
        start = record_begin(trace)
        group, before = group_at(tile, tiles, ends, GROUPS)
        first_row = tl.load(offsets + group)
        last_row = tl.load(offsets + group + 1)
        down = tl.cdiv(last_row - first_row, ROWS)  # rows first: tiles that share weights are near in time
        x_row = first_row + (tile - before) % down * ROWS
        w_row = (tile - before) // down * COLUMNS
        row = (x_row + tl.arange(0, ROWS)).to(tl.int64)
        column = w_row + tl.arange(0, COLUMNS)
        ws_at = ws + group.to(tl.int64) * stride_ws_group + (w_row // 128 + tl.zeros([ROWS], tl.int32)) * stride_ws_row
        sums = product_tile(
            x, w, xs + row * stride_xs_row, ws_at,
            x_row, last_row, group * n + w_row, group * n + n, row < last_row, column < n, 0, k_tiles, k,
            stride_x, stride_w, stride_xs_tile, stride_ws_tile, TMA, True, ROWS, COLUMNS, STAGES,
        )  # fmt: skip
        store_tile(y, sums, row, column, row < last_row, column < n, stride_y, False)
        record_end(trace, start, written + tile // programs, tile, COMPUTE)


@triton.jit
def grouped_gemm_k_kernel(
    x, xs, w, ws, y, offsets, groups, m, n, k,
    stride_x, stride_xs_row, stride_xs_tile, stride_w, stride_ws_row, stride_ws_tile, stride_y_group, stride_y,
    trace,
    ACCUMULATE: tl.constexpr, TMA: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """x: [m, k], w: [n, k] E4M3; y: [groups, m, n]; offsets: [groups + 1] int32, tiles of 128 along k"""
    down, across = tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS)
    programs = tl.num_programs(0)
    written = record_open(trace)
    for tile in range(tl.program_id(0), groups * down * across, programs):
        start = record_begin(trace)
        group = tile // (down * across)
        x_row = tile % (down * across) % down * ROWS
        w_row = tile % (down * across) // down * COLUMNS
        row = (x_row + tl.arange(0, ROWS)).to(tl.int64)
        column = w_row + tl.arange(0, COLUMNS)
        sums = product_tile(
            x, w, xs + row * stride_xs_row, ws + column.to(tl.int64) * stride_ws_row,
            x_row, m, w_row, n, row < m, column < n, tl.load(offsets + group), tl.load(offsets + group + 1), k,
            stride_x, stride_w, stride_xs_tile, stride_ws_tile, TMA, False, ROWS, COLUMNS, STAGES,
        )  # fmt: skip
        y_at = y + group.to(tl.int64) * stride_y_group
        store_tile(y_at, sums, row, column, row < m, column < n, stride_y, ACCUMULATE)
        record_end(trace, start, written + tile // programs, tile, COMPUTE)


def grouped_gemm(
    xq: torch.Tensor,
    xs: torch.Tensor,
    wq: torch.Tensor,
    ws: torch.Tensor,
    rows: Sequence[int] | torch.Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    sms: int | None = None,
    trace: Trace | None = None,
) -> torch.Tensor:
    """Y[rows of g] = X[rows of g] W_g^T, grouped M: Fprop and Dgrad of experts.

    xq: [m, k] float8_e4m3fn, ordered by group; xs: [m, ceil(k/128)] float32
    wq: [groups, n, k] float8_e4m3fn, contiguous; ws: [groups, ceil(n/128), ceil(k/128)] float32
    rows: [groups] rows of each group, summing to m; a tensor on the device is not waited for
    out_dtype: bfloat16 or float32
    sms: the most SMs it may use, None for all
    returns: [m, n] `out_dtype`
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("xq", xq, (None, None), torch.float8_e4m3fn)
    m, k = xq.shape
    check.tensor("xs", xs, (m, check.tiles(k)), torch.float32)
    check.tensor("wq", wq, (None, None, k), torch.float8_e4m3fn)
    count, n = wq.shape[:2]
    check.tensor("ws", ws, (count, check.tiles(n), check.tiles(k)), torch.float32)
    check.require(len(rows) == count, f"rows names {len(rows)} groups, wq has {count}")
    check.require(count * n < 2**31, f"{count} groups of {n} columns pass 2**31: use fewer groups at a time")
    check.same_device(xq, xs, wq, ws)
    check.rows_contiguous("xq", xq)
    check.require(wq.is_contiguous(), "wq is not contiguous: call contiguous()")
    groups = groups_of(rows, m, xq.device)
    y = result(None, (m, n), out_dtype, False, xq.device)
    if m and n:
        shape = shape_for(-(-m // count))
        flat = wq.view(count * n, k)
        tma = by_descriptor(xq, flat)
        down = groups.tiles_at_most * (check.TILE // shape.rows)
        programs = check.programs(down * -(-n // shape.columns), sms, xq.device)
        grouped_gemm_m_kernel[(programs,)](
            operand(xq, shape.rows, tma), xs, operand(flat, shape.columns, tma), ws, y, groups.offsets, count, n, k,
            xq.stride(0), *xs.stride(), flat.stride(0), *ws.stride(), y.stride(0),
            trace and trace.launched("grouped_gemm", programs),
            TMA=tma, ROWS=shape.rows, COLUMNS=shape.columns, STAGES=shape.stages, GROUPS=power_of_2_at_least(count),
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y


def grouped_gemm_k(
    xq: torch.Tensor,
    xs: torch.Tensor,
    wq: torch.Tensor,
    ws: torch.Tensor,
    rows: Sequence[int] | torch.Tensor,
    *,
    out_dtype: torch.dtype = torch.float32,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    sms: int | None = None,
    trace: Trace | None = None,
) -> torch.Tensor:
    """Y_g = X[:, columns of g] W[:, columns of g]^T, grouped K: Wgrad of experts, dW_g = dY_g^T X_g.

    xq, xs: `transpose_quantise(dY, rows=rows)`: [m, 128 t] float8_e4m3fn and [m, t] float32, each group in tiles of
        its own with zeros in the rest of its last one
    wq, ws: `transpose_quantise(X, rows=rows)`: [n, 128 t] and [n, t]
    rows: [groups] tokens of each group, before they were filled up to whole tiles
    out_dtype: float32 or bfloat16; out: where the result goes; accumulate: add to what it holds
    sms: the most SMs it may use, None for all
    returns: [groups, m, n] `out_dtype`, zeros where a group has no rows
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("xq", xq, (None, None), torch.float8_e4m3fn)
    m, k = xq.shape
    check.require(k % check.TILE == 0, f"xq has {k} columns: groups take whole tiles of {check.TILE}")
    check.tensor("xs", xs, (m, k // check.TILE), torch.float32)
    check.tensor("wq", wq, (None, k), torch.float8_e4m3fn)
    n = wq.shape[0]
    check.tensor("ws", ws, (n, k // check.TILE), torch.float32)
    check.same_device(xq, xs, wq, ws, out)
    check.rows_contiguous("xq", xq)
    check.rows_contiguous("wq", wq)
    count = len(rows)
    tiles = -(-rows // check.TILE) if isinstance(rows, torch.Tensor) else [check.tiles(r) for r in rows]
    if isinstance(tiles, list):
        there = k // check.TILE
        check.require(sum(tiles) == there, f"rows take {sum(tiles)} tiles, there are {there}: see transpose_quantise")
    groups = groups_of(tiles, k // check.TILE, xq.device)
    y = result(out, (count, m, n), out_dtype, accumulate, xq.device)
    if k == 0 and not accumulate:
        y.zero_()
    elif m and n and k:
        tma = by_descriptor(xq, wq)
        work = count * -(-m // LARGE.rows) * -(-n // LARGE.columns)
        programs = check.programs(work, sms, xq.device)
        grouped_gemm_k_kernel[(programs,)](
            operand(xq, LARGE.rows, tma), xs, operand(wq, LARGE.columns, tma), ws, y, groups.offsets, count, m, n, k,
            xq.stride(0), *xs.stride(), wq.stride(0), *ws.stride(), y.stride(0), y.stride(1),
            trace and trace.launched("grouped_gemm_k", programs),
            ACCUMULATE=accumulate, TMA=tma, ROWS=LARGE.rows, COLUMNS=LARGE.columns, STAGES=LARGE.stages,
            num_warps=LARGE.warps, num_stages=LARGE.stages,
        )  # fmt: skip
    return y
