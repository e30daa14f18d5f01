"""From rows to columns: 1x128 tiles to 128x1 tiles for Wgrad, group by group, and 128x128 blocks for Dgrad.

Wgrad multiplies over tokens, so its operands are tiled along them (arXiv 2412.19437 section 3.5.2: read out,
dequantise, transpose, quantise anew). Each group of rows gets columns of its own, filled up with zeros to whole tiles:
then no product of one group reads another's. Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.kernels import check
from moescope.instrumented_model.kernels.device import TILE, quantise_along
from moescope.instrumented_model.kernels.groups import Groups, group_at, group_tiles, groups_of, power_of_2_at_least
from moescope.instrumented_model.kernels.trace import COMPUTE, Trace, record_begin, record_end, record_open

WARPS = 8
PROGRAMS_PER_SM = 2


@triton.jit
def transpose_quantise_kernel(
    x, s, q, qs, offsets, groups, d,
    stride_x, stride_s_row, stride_s_tile, stride_q, stride_qs_row, stride_qs_tile,
    trace, POWER_OF_2: tl.constexpr, GROUPS: tl.constexpr,
):  # fmt: skip
    """x: [m, d] E4M3 with s [m, ceil(d/128)], or bfloat16 or float32 with s None; q: [d, columns], qs: [d, tiles]"""
    across = tl.cdiv(d, TILE)
    programs = tl.num_programs(0)
    tiles, ends = group_tiles(offsets, groups, TILE, GROUPS)
    written = record_open(trace)
    for block in range(tl.program_id(0), tl.sum(tiles) * across, programs):
        start = record_begin(trace)
        down = block // across  # which tile of rows, counted over the groups: the tile of columns that it becomes
        group, before = group_at(down, tiles, ends, GROUPS)
        row = tl.load(offsets + group) + (down - before) * TILE + tl.arange(0, TILE)
        present = row < tl.load(offsets + group + 1)
        tile = block % across
        column = tile * TILE + tl.arange(0, TILE)
        at = row.to(tl.int64)
        inside = present[:, None] & (column < d)[None, :]
        y = tl.load(x + at[:, None] * stride_x + column[None, :], mask=inside, other=0.0).to(tl.float32)
        if s is not None:
            y *= tl.load(s + at * stride_s_row + tile * stride_s_tile, mask=present, other=0.0)[:, None]
        yq, scale = quantise_along(y, 0, POWER_OF_2)
        to = column.to(tl.int64)
        q_at = q + to[:, None] * stride_q + (down * TILE + tl.arange(0, TILE))[None, :]
        tl.store(q_at, tl.trans(yq), mask=(column < d)[:, None])
        tl.store(qs + to * stride_qs_row + down * stride_qs_tile, scale, mask=column < d)
        record_end(trace, start, written + block // programs, block, COMPUTE)


def transpose_quantise(
    x: torch.Tensor,
    s: torch.Tensor | None = None,
    *,
    rows: Sequence[int] | torch.Tensor | None = None,
    power_of_2: bool = False,
    sms: int | None = None,
    trace: Trace | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantise columns in 128x1 tiles and store them as rows: `quantise_tiles` of the transpose, group by group.

    x: [m, d] float8_e4m3fn in 1x128 tiles, or bfloat16 or float32
    s: its scales [m, ceil(d/128)] float32 where it is E4M3
    rows: [groups] rows of each group, in order, summing to m; None for one group of all. A tensor on the device is not
        waited for: then there is room for a tile more a group
    power_of_2: with scales that are powers of 2 already, nothing more is lost but what is flushed (section 3.5.2)
    returns: q [d, 128 t] float8_e4m3fn, scale [d, t] float32 stored by columns; t = sum over groups of ceil(rows/128),
        zeros in the rest of a group's last tile
    raises: ValueError on a shape, dtype or device that does not fit
    """
    dtypes = (torch.bfloat16, torch.float32) if s is None else (torch.float8_e4m3fn,)
    check.tensor("x", x, (None, None), *dtypes)
    check.rows_contiguous("x", x)
    m, d = x.shape
    if s is not None:
        check.tensor("s", s, (m, check.tiles(d)), torch.float32)
    check.same_device(x, s)
    groups: Groups = groups_of([m] if rows is None else rows, m, x.device)
    t = groups.tiles_at_most
    q = torch.empty(d, check.TILE * t, dtype=torch.float8_e4m3fn, device=x.device)
    qs = torch.empty(t, d, dtype=torch.float32, device=x.device).T
    if d and t:
        programs = check.programs(t * check.tiles(d), sms, x.device, PROGRAMS_PER_SM)
        transpose_quantise_kernel[(programs,)](
            x, s, q, qs, groups.offsets, groups.count, d,
            x.stride(0), *(s.stride() if s is not None else (0, 0)), q.stride(0), *qs.stride(),
            trace and trace.launched("transpose_quantise", programs),
            POWER_OF_2=power_of_2, GROUPS=power_of_2_at_least(groups.count), num_warps=WARPS,
        )  # fmt: skip
    return q, qs


def transpose_blocks(q: torch.Tensor, s: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Blocks 128x128 the other way round, exactly: the tensor core takes E4M3 only along the axis it sums over.

    q: [..., n, k] float8_e4m3fn; s: [..., ceil(n/128), ceil(k/128)] float32
    returns: q [..., k, n], s [..., ceil(k/128), ceil(n/128)], contiguous
    """
    return q.view(torch.uint8).mT.contiguous().view(torch.float8_e4m3fn), s.mT.contiguous()
