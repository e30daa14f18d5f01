"""What the model tells a profiler: phases with the matrix work done in them, and sampled quantisation figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from moescope.collectors import emit
from moescope.instrumented_model.numerics.counts import counts, format_name
from moescope.instrumented_model.numerics.e5m6 import E5M6Tiles
from moescope.instrumented_model.numerics.quantise import Quantised

FP8 = "fp8_e4m3"
BF16 = "bf16"


SAMPLE_EVERY = 256
"""Of as many quantisations one is counted, once all of a first step's were: counting costs as much as quantising."""
_STRIDE = 101
"""How far each step's lie behind those of the step before: it shares no factor with the number above, so that all have
their turn, and those of one layer at steps that are far apart."""


class _Meter:
    """Work of the current phase of the computing thread, and which of its quantisations are counted."""

    def __init__(self) -> None:
        self.work: dict[str, list[int]] = {}
        self.sampling = self.all = self.begun = self.silent = False
        self.turn = 0
        self.name = ""


_METER = _Meter()


def product(m: int, n: int, k: int, *, dtype: str, batch: int = 1) -> None:
    """Count one [m, k] x [k, n] product done here: 2mnk FLOPs, operands read and the result written once.

    dtype: operand type that the product stands for; results count as 2 bytes an element
    """
    operand_bytes = 1 if dtype == FP8 else 2
    entry = _METER.work.setdefault(dtype, [0, 0])
    entry[0] += batch * 2 * m * n * k
    entry[1] += batch * (operand_bytes * (m * k + k * n) + 2 * m * n)


@contextmanager
def phase(name: str, layer: int = -1, micro_batch: int = -1) -> Iterator[None]:
    """A phase of the computing thread; the products counted inside are emitted once, at its end. Phases do not nest."""
    _METER.work.clear()
    _METER.name = name
    if _METER.silent:
        yield
        return
    with emit.phase(name, layer=layer, micro_batch=micro_batch):
        yield
        for dtype, (flops, moved) in _METER.work.items():
            emit.work(flops=flops, bytes=moved, dtype=dtype)


@contextmanager
def silent() -> Iterator[None]:
    """Inside, nothing is told by this module: what is captured is not done, and must not be counted on the device."""
    sampling, _METER.sampling, _METER.silent = _METER.sampling, False, True
    try:
        yield
    finally:
        _METER.sampling, _METER.silent = sampling, False


def sample(step: int) -> None:
    """A step begins, the first of a stage being 0; which of its quantisations are counted follows from its number."""
    _METER.sampling = emit.active()
    _METER.all = step == 0 or not _METER.begun
    _METER.begun = True
    _METER.turn = step * _STRIDE


def quantised(tensor: str, x: torch.Tensor, result: Quantised | E5M6Tiles, groups: Sequence[int] | None = None) -> None:
    """Report what quantising `x` did, if it is this one's turn.

    tensor: `mlp.up.x`; groups: rows of each group where `quantise_columns` was given them
    """
    if not _METER.sampling:
        return
    _METER.turn += 1
    if _METER.turn % SAMPLE_EVERY and not _METER.all:
        return
    c = counts(x, result, groups)
    emit.quantisation(
        tensor=tensor,
        format=format_name(result),
        amax=c.amax,
        scale_min=c.scale_min,
        scale_max=c.scale_max,
        saturated=c.saturated,
        flushed=c.flushed,
        nonfinite=c.nonfinite,
        elements=c.elements,
    )
