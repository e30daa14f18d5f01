"""What goes beside the autograd graph: weight gradients that are put off, and gradients that came over the wire."""

from __future__ import annotations

from collections.abc import Callable

import torch

from moescope.instrumented_model.numerics.quantise import Quantised


class WeightGradients:
    """Weight gradients that a schedule runs as chunks of their own (W, arXiv 2412.19437 section 3.2.1).

    deferred: put them off until they are taken; without, they are computed at once
    """

    def __init__(self) -> None:
        self.deferred = False
        self._pending: list[Callable[[], None]] = []

    def put(self, compute: Callable[[], None]) -> None:
        """compute: adds to the gradient of one weight"""
        if self.deferred:
            self._pending.append(compute)
        else:
            compute()

    def take(self) -> list[Callable[[], None]]:
        """What was put off since the last call, in order; the caller runs it."""
        pending, self._pending = self._pending, []
        return pending


WEIGHT_GRADIENTS = WeightGradients()


class WireGradient:
    """Where the gradient of an output is put that has come over the wire in FP8, for one backward pass.

    Backward then multiplies it as it came; in the graph a tensor without values stands for it.
    """

    def __init__(self) -> None:
        self.came: Quantised | None = None

    def take(self) -> Quantised | None:
        """What was put here since the last call."""
        came, self.came = self.came, None
        return came


def stand_in(x: Quantised) -> torch.Tensor:
    """What stands in the graph for a tensor that is given quantised. returns: [rows, k] float32, no memory"""
    return x.scale.new_zeros(1).expand(x.q.shape)
