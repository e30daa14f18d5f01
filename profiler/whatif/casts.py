"""Casts and transposes without kernels of their own (arXiv 2412.19437, section 3.5.2).

A cast from BF16 to FP8 reads 2 bytes an element and writes 1, and the product that follows reads 1. Fused with the copy
into the product, 2 bytes are read in all: the cast's kernel goes, and at most a third of its time comes back as the
extra byte. Cast near memory, 1 byte is read in all; the report counts on half of the memory traffic. A transpose, or a
layout copy, goes where the tensor core can read transposed.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.profiler.labels import labels_in
from moescope.profiler.whatif.change import Change, Scenario
from moescope.profiler.whatif.situation import Situation

_TRANSPOSE_NAMES: Final = ("transpose", "permute", "nchwtonhwc", "nhwctonchw", "layout")
_KEPT: Final = "launch gaps stay, and what runs after a kernel that goes starts as long after it as it did"


def casts(now: Situation) -> tuple[Scenario, Scenario]:
    """Fused with the copy, and near memory."""
    names = {"fused-casts": "casts fused with the copy", "near-memory-casts": "casts near memory"}
    own = (now.nodes.operators == "quantize") & now.computes
    if not own.any():
        reason = "the source holds no kernels that quantise"
        fused, near = (Scenario(identity, what, None, reason) for identity, what in names.items())
        return fused, near
    found = []
    for identity, left, why in (
        ("fused-casts", 1 / 3, "the product that follows pays at most a third of the cast's time to read BF16"),
        (
            "near-memory-casts",
            1 / 2,
            "at most half of the cast's time is left, as the report counts on half the traffic",
        ),
    ):
        least, most = np.where(own, left, 1.0), np.where(own, 0.0, 1.0)
        found.append(Scenario(identity, names[identity], Change(least, (least + most) / 2, most, (why, _KEPT))))
    return found[0], found[1]


def transposed_reads(now: Situation) -> Scenario:
    """Layout kernels by name: transposes and permutations of a matrix, not of tokens between experts."""
    identity, what = "transposed-reads", "transposed reads"
    table = now.source.table("kernels")
    names = labels_in(table.column("name"))
    named = np.array([any(word in name.lower() for word in _TRANSPOSE_NAMES) for name in names.texts] or [False], bool)
    moves = named[names.codes[now.nodes.rows]] & now.computes
    own = moves & ~np.isin(now.nodes.operators, ("routing", "quantize", "gemm", "grouped_gemm", "attention", "view"))
    if not own.any():
        return Scenario(identity, what, None, "the source holds no kernels that transpose")
    least, most = np.where(own, 0.5, 1.0), np.where(own, 0.0, 1.0)
    assumed = ("what only transposes goes, or half of it where the copy also serves something else", _KEPT)
    return Scenario(identity, what, Change(least, (least + most) / 2, most, assumed))
