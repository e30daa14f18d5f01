"""Y = X W^T in E4M3 with 1x128 tiles and 128x128 blocks, persistent, on a limited number of SMs.

Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.kernels import check
from moescope.instrumented_model.kernels.mainloop import by_descriptor, operand, product_tile, shape_for, store_tile
from moescope.instrumented_model.kernels.trace import COMPUTE, Trace, record_begin, record_end, record_open

BAND = 8
"""Output tiles are taken in bands of so many rows of tiles, so that operands are met again while they are in L2."""


@triton.jit(do_not_specialize=["m"])
def gemm_kernel(
    x, xs, w, ws, y, m, n, k,
    stride_x, stride_xs_row, stride_xs_tile, stride_w, stride_ws_row, stride_ws_tile, stride_y,
    trace,
    ACCUMULATE: tl.constexpr, TMA: tl.constexpr, BLOCKS: tl.constexpr, PROMOTE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr, BAND: tl.constexpr,
):  # fmt: skip
    """x: [m, k], w: [n, k] E4M3, pointers or descriptors; y: [m, n]; one program takes every so many-th tile"""
    down, across, tiles = tl.cdiv(m, ROWS), tl.cdiv(n, COLUMNS), tl.cdiv(k, 128)
    programs = tl.num_programs(0)
    written = record_open(trace)
    for tile in range(tl.program_id(0), down * across, programs):
        start = record_begin(trace)
        band = tile // (BAND * across)
        height = tl.minimum(down - band * BAND, BAND)
        x_row = (band * BAND + tile % (BAND * across) % height) * ROWS
        w_row = tile % (BAND * across) // height * COLUMNS
        row = (x_row + tl.arange(0, ROWS)).to(tl.int64)
        column = w_row + tl.arange(0, COLUMNS)
        if BLOCKS:
            ws_at = ws + (w_row // 128 + tl.zeros([ROWS], tl.int32)) * stride_ws_row
        else:
            ws_at = ws + column.to(tl.int64) * stride_ws_row
        sums = product_tile(
            x, w, xs + row * stride_xs_row, ws_at,
            x_row, m, w_row, n, row < m, column < n, 0, tiles, k,
            stride_x, stride_w, stride_xs_tile, stride_ws_tile, TMA, BLOCKS, ROWS, COLUMNS, STAGES, PROMOTE,
        )  # fmt: skip
        store_tile(y, sums, row, column, row < m, column < n, stride_y, ACCUMULATE)
        record_end(trace, start, written + tile // programs, tile, COMPUTE)


def gemm(
    xq: torch.Tensor,
    xs: torch.Tensor,
    wq: torch.Tensor,
    ws: torch.Tensor,
    *,
    out_dtype: torch.dtype = torch.bfloat16,
    out: torch.Tensor | None = None,
    accumulate: bool = False,
    sms: int | None = None,
    trace: Trace | None = None,
    promote: bool = True,
) -> torch.Tensor:
    """Y = X W^T with promotion to FP32 every 128 elements.

    Fprop as it stands; Dgrad with `transpose_blocks(wq, ws)`; Wgrad with both operands in 128x1 tiles, transposed
    xq: [m, k] float8_e4m3fn; xs: [m, ceil(k/128)] float32
    wq: [n, k] float8_e4m3fn; ws: [ceil(n/128), ceil(k/128)] for blocks or [n, ceil(k/128)] for tiles, float32
    out_dtype: bfloat16 or float32
    out: where the result goes, [m, n] of `out_dtype`; accumulate: add to what it holds
    sms: the most SMs it may use, None for all
    promote: False never promotes, to see what promotion costs and what it is for: sums run on in the tensor core's 14
        bits or so, and the first tile's scales, which must be those of all, are applied at the end
    returns: [m, n] `out_dtype`
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("xq", xq, (None, None), torch.float8_e4m3fn)
    m, k = xq.shape
    check.tensor("xs", xs, (m, check.tiles(k)), torch.float32)
    check.tensor("wq", wq, (None, k), torch.float8_e4m3fn)
    n = wq.shape[0]
    blocks = ws.dim() == 2 and ws.shape[0] == check.tiles(n)
    check.tensor("ws", ws, (check.tiles(n) if blocks else n, check.tiles(k)), torch.float32)
    check.same_device(xq, xs, wq, ws, out)
    check.rows_contiguous("xq", xq)
    check.rows_contiguous("wq", wq)
    y = result(out, (m, n), out_dtype, accumulate, xq.device)
    if m and n:
        shape = shape_for(m)
        tma = by_descriptor(xq, wq)
        programs = check.programs(-(-m // shape.rows) * -(-n // shape.columns), sms, xq.device)
        gemm_kernel[(programs,)](
            operand(xq, shape.rows, tma), xs, operand(wq, shape.columns, tma), ws, y, m, n, k,
            xq.stride(0), *xs.stride(), wq.stride(0), *ws.stride(), y.stride(0),
            trace and trace.launched("gemm", programs),
            ACCUMULATE=accumulate, TMA=tma, BLOCKS=blocks, PROMOTE=promote,
            ROWS=shape.rows, COLUMNS=shape.columns, STAGES=shape.stages, BAND=BAND,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    return y


def result(
    out: torch.Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, accumulate: bool, device: torch.device
) -> torch.Tensor:
    """The tensor that a product is written to: `out` if it was given, else a new one.

    out: `shape`, `dtype`, on a device where kernels run; raises: ValueError where it is not, or `accumulate` has none
    """
    check.require(
        dtype in (torch.bfloat16, torch.float32),
        f"out_dtype is {str(dtype).removeprefix('torch.')}: give bfloat16 or float32",
    )
    if out is None:
        check.require(not accumulate, "accumulate needs `out`, the tensor to add to")
        return torch.empty(shape, dtype=dtype, device=device)
    check.tensor("out", out, shape, dtype)
    check.rows_contiguous("out", out)
    return out
