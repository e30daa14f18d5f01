"""Clip gradients by their norm over the parameters of all ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import nn

from moescope.collectors import emit
from moescope.instrumented_model.parallel.exchange import Exchange


def _squares(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Sum of squares of the gradients. returns: [] float64"""
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros((), dtype=torch.float64)
    return torch.stack(torch._foreach_norm(gradients)).double().square().sum().cpu()


def global_norm(
    replicated: Sequence[nn.Parameter], experts: Sequence[nn.Parameter], exchange: Exchange, ranks: int
) -> float:
    """Norm of all gradients, replicas counted once and the experts of every rank; the same number on all ranks.

    replicated: their gradients already summed over ranks, alike on all; experts: this rank's own
    """
    own = _squares(experts)
    if ranks > 1:

        def job() -> None:
            with emit.phase("grad_norm"):
                dist.all_reduce(own)

        exchange.run(job).result()
    return float((own + _squares(replicated)).sqrt())


def clip(parameters: Sequence[nn.Parameter], norm: float, limit: float) -> None:
    """Scale gradients in place so that their norm is at most `limit`; 0: leave them.

    norm: of `global_norm`; not finite: gradients are left, for the caller to notice
    """
    if limit and limit < norm < float("inf"):
        torch._foreach_mul_([p.grad for p in parameters if p.grad is not None], limit / norm)
