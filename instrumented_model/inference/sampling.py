"""The next token from logits: greedy, or drawn after temperature, top-k and top-p."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from moescope.instrumented_model.config import ConfigError


@dataclass(frozen=True)
class Sampling:
    """temperature: 0 for greedy; top_k: 0 for all tokens; top_p: probability that the most likely tokens must reach"""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ConfigError(f"temperature {self.temperature} must be 0 (greedy) or a number above")
        if self.top_k < 0:
            raise ConfigError(f"top_k {self.top_k} must be 0 (all tokens) or a number above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"top_p {self.top_p} must be above 0 and at most 1")


GREEDY = Sampling()


def probabilities(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """What tokens are drawn with: temperature first, then the top_k most likely, of these the fewest that reach top_p.

    logits: [n, vocabulary]; returns: [n, vocabulary] float32, rows sum to 1
    """
    if sampling.temperature == 0:
        best = logits.argmax(-1, keepdim=True)
        return torch.zeros(logits.shape, device=logits.device).scatter_(-1, best, 1.0)
    # The largest is taken off first: logits over a small temperature overflow.
    scaled = (logits.float() - logits.float().amax(-1, keepdim=True)) / sampling.temperature
    ordered, order = scaled.sort(dim=-1, descending=True, stable=True)
    if 0 < sampling.top_k < ordered.shape[-1]:
        ordered[..., sampling.top_k :] = -torch.inf
    p = ordered.softmax(-1)
    before = p.cumsum(-1) - p
    p = torch.where(before < sampling.top_p, p, 0.0)  # the first always stays: nothing is before it
    return torch.zeros_like(p).scatter_(-1, order, p / p.sum(-1, keepdim=True))


def sample(logits: torch.Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> list[int]:
    """One token a row, each from a generator of its own, so that it does not matter who else is in the batch.

    logits: [n, vocabulary]; generators: [n]
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).tolist()
    rows = zip(probabilities(logits.cpu(), sampling), generators, strict=True)
    return [int(torch.multinomial(p, 1, generator=generator)) for p, generator in rows]
