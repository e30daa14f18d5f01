"""Activations to E4M3 in 1x128 tiles with an online amax, alone or fused with SwiGLU (arXiv 2412.19437 section 3.3).

Bit-equal to `numerics.quantise` for the same float32 values. Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.kernels import check
from moescope.instrumented_model.kernels.device import TILE, quantise_along
from moescope.instrumented_model.kernels.trace import COMPUTE, Trace, record_begin, record_end, record_open

ROWS = 32
"""Rows that a program takes at a time: 32 x 128 elements."""
WARPS = 4
PROGRAMS_PER_SM = 8


@triton.jit
def _place(block, tiles, m, width, ROWS: tl.constexpr):
    """Where a block of ROWS x 128 lies in [m, width]: its tile of columns, its rows, its columns, what is inside."""
    tile = block % tiles
    row = (block // tiles) * ROWS + tl.arange(0, ROWS)
    column = tile * TILE + tl.arange(0, TILE)
    return tile, row, column, (row < m)[:, None] & (column < width)[None, :]


@triton.jit(do_not_specialize=["m"])
def quantise_kernel(
    x, q, s, m, k, stride_x, stride_q, stride_s_row, stride_s_tile, trace, POWER_OF_2: tl.constexpr, ROWS: tl.constexpr
):
    """x: [m, k] bfloat16 or float32; q: [m, k] E4M3; s: [m, ceil(k/128)] float32"""
    tiles = tl.cdiv(k, TILE)
    programs = tl.num_programs(0)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.cdiv(m, ROWS) * tiles, programs):
        start = record_begin(trace)
        tile, row, column, inside = _place(block, tiles, m, k, ROWS)
        at = row.to(tl.int64)
        y = tl.load(x + at[:, None] * stride_x + column[None, :], mask=inside, other=0.0).to(tl.float32)
        yq, scale = quantise_along(y, 1, POWER_OF_2)
        tl.store(q + at[:, None] * stride_q + column[None, :], yq, mask=inside)
        tl.store(s + at * stride_s_row + tile * stride_s_tile, scale, mask=row < m)
        record_end(trace, start, written + block // programs, block, COMPUTE)


@triton.jit
def _dequantised(q, s, row, column, tile, stride_q, stride_s_row, stride_s_tile, inside, m):
    """[ROWS, 128] float32; with s None, q holds the values themselves."""
    at = row.to(tl.int64)
    y = tl.load(q + at[:, None] * stride_q + column[None, :], mask=inside, other=0.0).to(tl.float32)
    if s is not None:
        y *= tl.load(s + at * stride_s_row + tile * stride_s_tile, mask=row < m, other=0.0)[:, None]
    return y


@triton.jit(do_not_specialize=["m"])
def swiglu_kernel(
    h, hs, gates, q, s, m, f,
    stride_h, stride_hs_row, stride_hs_tile, stride_q, stride_s_row, stride_s_tile,
    trace, POWER_OF_2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """h: [m, 2f], a beside b, bfloat16 or float32, or E4M3 with hs [m, 2f/128]; gates: [m] or None; q: [m, f]"""
    tiles = tl.cdiv(f, TILE)
    programs = tl.num_programs(0)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.cdiv(m, ROWS) * tiles, programs):
        start = record_begin(trace)
        tile, row, column, inside = _place(block, tiles, m, f, ROWS)
        a = _dequantised(h, hs, row, column, tile, stride_h, stride_hs_row, stride_hs_tile, inside, m)
        b = _dequantised(h, hs, row, f + column, tiles + tile, stride_h, stride_hs_row, stride_hs_tile, inside, m)
        y = a * tl.sigmoid(a) * b
        if gates is not None:
            y *= tl.load(gates + row, mask=row < m, other=0.0)[:, None]
        yq, scale = quantise_along(y, 1, POWER_OF_2)
        at = row.to(tl.int64)
        tl.store(q + at[:, None] * stride_q + column[None, :], yq, mask=inside)
        tl.store(s + at * stride_s_row + tile * stride_s_tile, scale, mask=row < m)
        record_end(trace, start, written + block // programs, block, COMPUTE)


@triton.jit(do_not_specialize=["m"])
def swiglu_backward_kernel(
    dy, h, hs, q, s, m, f,
    stride_dy, stride_h, stride_hs_row, stride_hs_tile, stride_q, stride_s_row, stride_s_tile,
    trace, POWER_OF_2: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """dy: [m, f] bfloat16 or float32; h, hs: as `swiglu_kernel`'s; q: [m, 2f], da beside db; s: [m, 2f/128]"""
    tiles = tl.cdiv(f, TILE)
    programs = tl.num_programs(0)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.cdiv(m, ROWS) * tiles, programs):
        start = record_begin(trace)
        tile, row, column, inside = _place(block, tiles, m, f, ROWS)
        at = row.to(tl.int64)
        a = _dequantised(h, hs, row, column, tile, stride_h, stride_hs_row, stride_hs_tile, inside, m)
        b = _dequantised(h, hs, row, f + column, tiles + tile, stride_h, stride_hs_row, stride_hs_tile, inside, m)
        g = tl.load(dy + at[:, None] * stride_dy + column[None, :], mask=inside, other=0.0).to(tl.float32)
        sigma = tl.sigmoid(a)
        da, scale_a = quantise_along(g * b * sigma * (1 + a * (1 - sigma)), 1, POWER_OF_2)
        db, scale_b = quantise_along(g * a * sigma, 1, POWER_OF_2)
        q_at = q + at[:, None] * stride_q + column[None, :]
        s_at = s + at * stride_s_row + tile * stride_s_tile
        tl.store(q_at, da, mask=inside)
        tl.store(q_at + f, db, mask=inside)
        tl.store(s_at, scale_a, mask=row < m)
        tl.store(s_at + tiles * stride_s_tile, scale_b, mask=row < m)
        record_end(trace, start, written + block // programs, block, COMPUTE)


def _launched(
    name: str,
    kernel: Any,
    inputs: Sequence[torch.Tensor | None],
    strides: Sequence[int],
    width: int,
    outputs: int,
    *,
    power_of_2: bool,
    sms: int | None,
    trace: Trace | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Launch one of the kernels above, which differ in what they read and take q, s, m, width after it.

    inputs: the first [m, ...]; strides: of the inputs; width: of what a block is counted in; outputs: as wide each
    returns: q [m, outputs * width] float8_e4m3fn, scale [m, tiles of that] float32, a tile's rows side by side in
    memory, as the products read them
    """
    first = inputs[0]
    assert first is not None
    m, device = first.shape[0], first.device
    q = torch.empty(m, outputs * width, dtype=torch.float8_e4m3fn, device=device)
    s = torch.empty(check.tiles(outputs * width), m, dtype=torch.float32, device=device).T
    if q.numel():
        programs = check.programs(-(-m // ROWS) * check.tiles(width), sms, device, PROGRAMS_PER_SM)
        kernel[(programs,)](
            *inputs, q, s, m, width, *strides, q.stride(0), *s.stride(), trace and trace.launched(name, programs),
            POWER_OF_2=power_of_2, ROWS=ROWS, num_warps=WARPS,
        )  # fmt: skip
    return q, s


def quantise_tiles(
    x: torch.Tensor, *, power_of_2: bool = False, sms: int | None = None, trace: Trace | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise in 1x128 tiles along the last axis; the last tile may be partial.

    x: [m, k] float32 or bfloat16; infinities saturate and NaN stay, both outside the amax
    sms: the most SMs it may use, None for all
    returns: q [m, k] float8_e4m3fn, scale [m, ceil(k/128)] float32, stored by columns
    raises: ValueError on a shape, dtype or device that does not fit
    """
    check.tensor("x", x, (None, None), torch.bfloat16, torch.float32)
    check.rows_contiguous("x", x)
    return _launched(
        "quantise_tiles", quantise_kernel, [x], [x.stride(0)], x.shape[1], 1,
        power_of_2=power_of_2, sms=sms, trace=trace,
    )  # fmt: skip


def _halves(h: torch.Tensor, hs: torch.Tensor | None) -> tuple[int, int]:
    """Check h [m, 2f] and its scales. returns: m, f"""
    dtypes = (torch.bfloat16, torch.float32) if hs is None else (torch.float8_e4m3fn,)
    check.tensor("h", h, (None, None), *dtypes)
    check.rows_contiguous("h", h)
    m, f = h.shape[0], h.shape[1] // 2
    check.require(h.shape[1] % 2 == 0, f"h has {h.shape[1]} columns: give an even number, a beside b")
    if hs is not None:
        check.require(f % check.TILE == 0, f"half of h is {f} wide: in E4M3 it must be a multiple of {check.TILE}")
        check.tensor("hs", hs, (m, 2 * f // check.TILE), torch.float32)
        check.same_device(h, hs)
    return m, f


def _strides(h: torch.Tensor, hs: torch.Tensor | None) -> list[int]:
    return [h.stride(0), *(hs.stride() if hs is not None else (0, 0))]


def swiglu_quantise(
    h: torch.Tensor,
    hs: torch.Tensor | None = None,
    *,
    gates: torch.Tensor | None = None,
    power_of_2: bool = False,
    sms: int | None = None,
    trace: Trace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """silu(a) * b, times a gate a row, quantised in 1x128 tiles; in float32 between.

    h: [m, 2f], a beside b, bfloat16 or float32; or float8_e4m3fn as cached for backward (S5), f a multiple of 128
    hs: scales of h [m, 2f/128] float32 where it is E4M3
    gates: [m] float32
    returns: q [m, f] float8_e4m3fn, scale [m, ceil(f/128)] float32, stored by columns
    raises: ValueError on a shape, dtype or device that does not fit
    """
    m, f = _halves(h, hs)
    if gates is not None:
        check.tensor("gates", gates, (m,), torch.float32)
        check.rows_contiguous("gates", gates)
    check.same_device(h, gates)
    return _launched(
        "swiglu_quantise", swiglu_kernel, [h, hs, gates], _strides(h, hs), f, 1,
        power_of_2=power_of_2, sms=sms, trace=trace,
    )  # fmt: skip


def swiglu_backward_quantise(
    dy: torch.Tensor,
    h: torch.Tensor,
    hs: torch.Tensor | None = None,
    *,
    power_of_2: bool = False,
    sms: int | None = None,
    trace: Trace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of silu(a) * b with respect to a and b, recomputed from h, quantised in 1x128 tiles.

    dy: [m, f] bfloat16 or float32, f a multiple of 128; h, hs: as `swiglu_quantise`'s
    returns: q [m, 2f] float8_e4m3fn, da beside db, scale [m, 2f/128] float32, stored by columns
    raises: ValueError on a shape, dtype or device that does not fit
    """
    m, f = _halves(h, hs)
    check.tensor("dy", dy, (m, f), torch.bfloat16, torch.float32)
    check.rows_contiguous("dy", dy)
    check.require(f % check.TILE == 0, f"dy is {f} wide: give a multiple of {check.TILE}, for da and db lie in tiles")
    check.same_device(h, dy)
    strides = [dy.stride(0), *_strides(h, hs)]
    return _launched(
        "swiglu_backward_quantise", swiglu_backward_kernel, [dy, h, hs], strides, f, 2,
        power_of_2=power_of_2, sms=sms, trace=trace,
    )  # fmt: skip
