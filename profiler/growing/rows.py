"""Rows of columns: which of them are meant, and which belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.growing.columns import Column
from moescope.profiler.growing.track import Times

Mask = NDArray[np.bool_]


def chosen(column: Column, ranks: Sequence[int] | None) -> Mask:
    """Rows of these ranks; None is all of them. column: [rows] ranks"""
    return np.ones(len(column), np.bool_) if ranks is None else np.isin(column, np.asarray(ranks, np.int64))


def inside(times: Times, window: tuple[int, int]) -> Mask:
    """Times in `[start, end)`. times: [rows], ns"""
    return (times >= window[0]) & (times < window[1])


def groups(*keys: Column) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The group number of each row and each group's first row, by the tuple of its keys.

    keys: [rows] integers each
    """
    if not len(keys[0]):
        return np.empty(0, np.int64), np.empty(0, np.int64)
    combined = np.zeros(len(keys[0]), np.int64)
    for key in keys:
        values, codes = np.unique(key, return_inverse=True)
        combined = combined * len(values) + codes.reshape(-1)
        _, combined = np.unique(combined, return_inverse=True)
        combined = combined.reshape(-1).astype(np.int64)
    _, first = np.unique(combined, return_index=True)
    return combined, first.astype(np.int64)


def sums(numbers: NDArray[np.int64], values: Column, count: int) -> NDArray[np.int64]:
    """Sum of `values` in each of `count` groups, exact. numbers, values: [rows]"""
    total = np.zeros(count, np.int64)
    np.add.at(total, numbers, values)
    return total
