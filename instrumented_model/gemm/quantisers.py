"""Quantisation of activations and gradients where they lie: one kernel on a GPU, `numerics.quantise` elsewhere.

Both give the same bits. In plain torch a tile costs a dozen kernels, which a decode step spends its time launching.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch

from moescope.instrumented_model import kernels
from moescope.instrumented_model.numerics import quantise
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised


@lru_cache(maxsize=16)
def by_kernels(device: torch.device) -> bool:
    """Whether the kernels of `kernels/` quantise tensors on `device`."""
    return device.type == "cuda" and kernels.why_not(device.index or 0) is None


def _module(name: str) -> Any:
    return importlib.import_module(f"{kernels.__name__}.{name}")


def quantise_tiles(x: torch.Tensor, *, power_of_2: bool = False) -> Quantised:
    """As `numerics.quantise.quantise_tiles`. x: [m, k] float32 or bfloat16"""
    if not by_kernels(x.device):
        return quantise.quantise_tiles(x, power_of_2=power_of_2)
    q, scale = _module("quantise").quantise_tiles(_by_rows(x), power_of_2=power_of_2)
    return Quantised(q, scale, 1)


def quantise_columns(x: torch.Tensor, *, groups: Sequence[int], power_of_2: bool = False) -> Quantised:
    """As `numerics.quantise.quantise_columns`. x: [m, k] float32 or bfloat16; groups: rows of each, summing to m"""
    if not by_kernels(x.device):
        return quantise.quantise_columns(x, groups=groups, power_of_2=power_of_2)
    q, scale = _module("transpose").transpose_quantise(_by_rows(x), rows=groups, power_of_2=power_of_2)
    return Quantised(q.mT, scale.mT, TILE, 1)


def _by_rows(x: torch.Tensor) -> torch.Tensor:
    """The same, each row's elements side by side."""
    return x if x.stride(-1) == 1 else x.contiguous()
