"""What a backend of FP8 products offers, and what it may be given.

All products are C = A B^T with both operands contracted over their last axis, in three forms: dense, grouped M (rows
of several experts against the weights of each: Fprop and Dgrad) and grouped K (columns of several experts: Wgrad).
Operands are E4M3 with FP32 scales. `interval` bounds how many elements of k may be added up in the tensor core's 14
bits before the sum is promoted to FP32; what adds up in FP32 or better honours every bound.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import torch

from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised, group_starts, tiles

Counts = Sequence[int] | torch.Tensor
"""Rows of each group: known to the host, or [groups] int64 on the device, which the host does not wait for."""


class Backend(Protocol):
    """One way to compute products.

    name: what it is chosen by
    arithmetic: what it does, for people
    finest: the smallest promotion interval that it can honour
    counts_stay: whether grouped M takes rows on the device
    """

    name: str
    arithmetic: str
    finest: int
    counts_stay: bool

    def why_not(self, device: torch.device) -> str | None:
        """Why it cannot work for tensors on `device`; None where it can. Cheap: multiplies nothing."""

    def leave(self, sms: int) -> bool:
        """Keep off so many of the device's SMs from now on, for an exchange beside; whether it can."""

    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        """a: [m, k] in 1x128 tiles; b: [n, k] in 128x128 blocks or 1x128 tiles; returns: [m, n] `out_dtype`"""

    def grouped_m(
        self, a: Quantised, b: Quantised, rows: Counts, interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """a: [m, k] in 1x128 tiles, ordered by group; b: [groups, n, k] in 128x128 blocks; rows: [groups], sum m

        returns: [m, n] `out_dtype`
        """

    def grouped_k(
        self, a: Quantised, b: Quantised, rows: Sequence[int], interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """a: [m, K], b: [n, K] in 1x128 tiles, K = 128 * sum of ceil(rows/128): the columns of each group begin at a
        multiple of 128 and are followed by zeros, as `quantise_columns(groups=rows)` leaves them; rows: [groups]

        returns: [groups, m, n] `out_dtype`, zeros where a group has no columns
        """


class Plain:
    """What a backend says that has nothing better to say: rows are known to the host, and no SMs are left alone."""

    counts_stay = False

    def leave(self, sms: int) -> bool:
        """As in `Backend`."""
        return sms == 0


class ByGroup(Plain, ABC):
    """Grouped products as one dense product a group, for a backend that has nothing better."""

    @abstractmethod
    def dense(self, a: Quantised, b: Quantised, interval: int | None, out_dtype: torch.dtype) -> torch.Tensor:
        """As in `Backend`."""

    def grouped_m(
        self, a: Quantised, b: Quantised, rows: Counts, interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """As in `Backend`: a, b, rows -> [m, n] `out_dtype`."""
        assert not isinstance(rows, torch.Tensor)  # `counts_stay` is asked first
        result = torch.empty(a.q.shape[0], b.q.shape[1], dtype=out_dtype, device=a.q.device)
        first = 0
        for group, count in enumerate(rows):
            part = slice(first, first + count)
            if count:
                left = Quantised(a.q[part], a.scale[part], a.rows, a.columns)
                right = Quantised(b.q[group], b.scale[group], b.rows, b.columns)
                result[part] = self.dense(left, right, interval, out_dtype)
            first += count
        return result

    def grouped_k(
        self, a: Quantised, b: Quantised, rows: Sequence[int], interval: int | None, out_dtype: torch.dtype
    ) -> torch.Tensor:
        """As in `Backend`: a, b, rows -> [groups, m, n] `out_dtype`."""
        result = torch.zeros(len(rows), a.q.shape[0], b.q.shape[0], dtype=out_dtype, device=a.q.device)
        for group, (start, count) in enumerate(zip(group_starts(rows), rows, strict=True)):
            if count:
                result[group] = self.dense(
                    columns_of(a, start, count), columns_of(b, start, count), interval, out_dtype
                )
        return result


def columns_of(x: Quantised, start: int, count: int) -> Quantised:
    """Columns from `start`, a multiple of 128, in 1x128 tiles."""
    first = start // TILE
    return Quantised(x.q[:, start : start + count], x.scale[:, first : first + tiles(count)], x.rows, x.columns)
