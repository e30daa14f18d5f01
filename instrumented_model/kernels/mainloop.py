"""One output tile of a product of E4M3 operands: tensor core for 128 elements, promotion to FP32, and again.

Hopper's tensor core keeps about 14 bits of a running sum of E4M3 products. So each `tl.dot` starts at zero and spans
N_C = 128 elements, 4 WGMMAs; its result is scaled and added to an FP32 accumulator in registers (arXiv 2412.19437
section 3.3.2). Scales are loaded as vectors, pipelined like the operands. Compiled for sm_90 in the tests; not yet run
on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from moescope.instrumented_model.kernels.check import TILE
from moescope.instrumented_model.kernels.device import TILE as WIDTH
from moescope.instrumented_model.kernels.device import cast, load_tile


@dataclass(frozen=True)
class Shape:
    """How a product is cut.

    rows, columns: of an output tile; warps, stages: of the program that computes it
    """

    rows: int
    columns: int
    warps: int
    stages: int


LARGE = Shape(128, 128, 8, 4)
"""Two warpgroups with 64 accumulators a thread and as many partial sums: 128x256 would spill."""
SMALL = Shape(64, 128, 4, 4)
"""For few rows, such as decode: the height of one WGMMA."""


def shape_for(rows: int) -> Shape:
    """rows: of the output, or of a typical group"""
    return SMALL if rows <= SMALL.rows else LARGE


@triton.jit
def product_tile(
    x, w, xs, ws,
    x_row, x_rows, w_row, w_rows, row_inside, column_inside, first, last, k,
    stride_x, stride_w, stride_xs_tile, stride_ws_tile,
    TMA: tl.constexpr, BLOCKS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, STAGES: tl.constexpr,
    PROMOTE: tl.constexpr = True,
):  # fmt: skip
    """Sum over tiles `first` to `last` of 128 elements. returns: [ROWS, COLUMNS] float32

    x, w: operands, both contiguous along the axis that is summed over, from rows x_row and w_row on
    xs: pointers to scales [ROWS] of tile 0
    ws: the same [COLUMNS] for tiles, or [ROWS] times the one scale of these columns for BLOCKS: then it is folded into
        the row's scale, 1 multiplication a row in place of 1 an element
    PROMOTE: else the sum runs on in the tensor core over all tiles, and the scales of the first hold for all
    """
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for tile in tl.range(first, last, num_stages=STAGES):
        a = load_tile(x, x_row, tile * WIDTH, x_rows, k, stride_x, ROWS, WIDTH, TMA)
        b = load_tile(w, w_row, tile * WIDTH, w_rows, k, stride_w, COLUMNS, WIDTH, TMA)
        if PROMOTE:
            a_scale = tl.load(xs + tile * stride_xs_tile, mask=row_inside, other=0.0)
            if BLOCKS:
                b_scale = tl.load(ws + tile * stride_ws_tile)
                sums += tl.dot(a, b.T) * (a_scale * b_scale)[:, None]
            else:
                b_scale = tl.load(ws + tile * stride_ws_tile, mask=column_inside, other=0.0)
                sums += tl.dot(a, b.T) * a_scale[:, None] * b_scale[None, :]
        else:
            sums = tl.dot(a, b.T, sums)
    if not PROMOTE:
        sums *= tl.load(xs + first * stride_xs_tile, mask=row_inside, other=0.0)[:, None]
        if BLOCKS:
            sums *= tl.load(ws + first * stride_ws_tile)[:, None]
        else:
            sums *= tl.load(ws + first * stride_ws_tile, mask=column_inside, other=0.0)[None, :]
    return sums


@triton.jit
def store_tile(y, sums, row, column, row_inside, column_inside, stride_y, ACCUMULATE: tl.constexpr):
    """Write, or add to what is there; row: [ROWS] int64, column: [COLUMNS] int32"""
    at = y + row[:, None] * stride_y + column[None, :]
    inside = row_inside[:, None] & column_inside[None, :]
    if ACCUMULATE:
        sums += tl.load(at, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, cast(sums, y.dtype.element_ty), mask=inside)


def by_descriptor(*operands: torch.Tensor) -> bool:
    """Whether the tensor memory accelerator can load these: 16-byte rows that start on 16 bytes."""
    return all(
        t.numel() > 0 and t.stride(-1) == 1 and t.data_ptr() % 16 == 0 and all(s % 16 == 0 for s in t.stride()[:-1])
        for t in operands
    )


def operand(t: torch.Tensor, rows: int, tma: bool) -> torch.Tensor | TensorDescriptor:
    """An operand [r, k] as the kernel takes it, loaded in tiles of `rows` x 128."""
    return TensorDescriptor(t, list(t.shape), list(t.stride()), [rows, TILE]) if tma else t
