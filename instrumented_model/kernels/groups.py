"""Groups of rows that follow one another in a matrix, such as the tokens of each expert: ragged, some of them empty.

Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import triton
import triton.language as tl

from moescope.instrumented_model.device import brought
from moescope.instrumented_model.kernels.check import TILE, require


@triton.jit
def group_tiles(offsets, groups, ROWS: tl.constexpr, GROUPS: tl.constexpr):
    """Tiles of ROWS rows in each group. offsets: [groups + 1] int32

    returns: tiles [GROUPS] int32, 0 from `groups` on, and their running sum
    """
    group = tl.arange(0, GROUPS)
    first = tl.load(offsets + group, mask=group < groups, other=0)
    last = tl.load(offsets + group + 1, mask=group < groups, other=0)
    tiles = tl.cdiv(last - first, ROWS)
    return tiles, tl.cumsum(tiles, 0)


@triton.jit
def group_at(tile, tiles, ends, GROUPS: tl.constexpr):
    """Group of a tile that is counted over all groups, and how many tiles come before the group."""
    group = tl.sum((ends <= tile).to(tl.int32), 0)
    return group, tl.sum(tl.where(tl.arange(0, GROUPS) < group, tiles, 0), 0)


@dataclass(frozen=True)
class Groups:
    """Where groups begin and end.

    offsets: [count + 1] int32 on the device, from 0
    tiles_at_most: of 128 rows each, over all groups; exact where the host knew the rows
    """

    offsets: torch.Tensor
    count: int
    tiles_at_most: int


def groups_of(rows: Sequence[int] | torch.Tensor, m: int, device: torch.device) -> Groups:
    """rows: [groups] rows of each; m: rows that there are

    raises: ValueError unless the rows are all there and sum to m; a tensor on the device is held within m instead
    """
    if isinstance(rows, torch.Tensor) and rows.device.type != "cpu":
        require(rows.dim() == 1, f"rows has shape {list(rows.shape)}: give [groups]")
        require(rows.device == device, f"rows lies on {rows.device}: give it on {device} or as a list")
        ends = rows.cumsum(0).clamp(0, m)
        offsets = torch.cat([ends.new_zeros(1), ends]).int()
        return Groups(offsets, len(rows), -(-m // TILE) + len(rows))
    listed = [int(r) for r in rows]
    require(len(listed) > 0, "rows names no group")
    require(min(listed) >= 0, f"rows has a group of {min(listed)} rows")
    require(sum(listed) == m, f"rows sums to {sum(listed)}, there are {m} rows")
    offsets = brought(torch.tensor([0, *accumulate(listed)], dtype=torch.int32), device)
    return Groups(offsets, len(listed), sum(-(-r // TILE) for r in listed))


def power_of_2_at_least(n: int) -> int:
    """Length of a vector on the device that holds n elements."""
    return 1 << max(0, n - 1).bit_length()
