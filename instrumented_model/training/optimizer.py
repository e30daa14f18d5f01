"""AdamW with BF16 moments on FP32 master weights and FP32 gradients (arXiv 2412.19437 section 3.3.3).

The parameters of the model are the master weights: FP8 layers quantise them anew after each step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import torch
from torch import nn


class Moments(TypedDict):
    """steps: done so far; m, v: one a parameter, in the order of the parameters, bfloat16"""

    steps: int
    m: list[torch.Tensor]
    v: list[torch.Tensor]


class AdamW:
    """Decoupled weight decay (Loshchilov and Hutter, arXiv 1711.05101), bias-corrected moments.

    Moments are formed in FP32, used for the step as they are, and rounded to BF16 (nearest) only to be kept. BF16 has 8
    bits: beta2 must be well below 1 - 2^-8, or `v` stops following (0.95 in the report).
    Matrices and embeddings decay; vectors (norms) do not.

    parameters: float32, any shapes; gradients are read from `.grad`, a missing one counts as 0
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        *,
        beta1: float = 0.9,
        beta2: float = 0.95,
        epsilon: float = 1e-8,
        weight_decay: float = 0.1,
    ) -> None:
        self.parameters: list[torch.Tensor] = list(parameters)
        self.beta1, self.beta2, self.epsilon, self.weight_decay = beta1, beta2, epsilon, weight_decay
        self.steps = 0
        self._m = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]
        self._v = [torch.zeros_like(p, dtype=torch.bfloat16) for p in self.parameters]

    @torch.no_grad()
    def step(self, learning_rate: float) -> None:
        """Update the parameters in place: w -= rate * (m^ / (sqrt(v^) + epsilon) + decay * w)."""
        self.steps += 1
        g = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        m, v = [t.float() for t in self._m], [t.float() for t in self._v]
        torch._foreach_lerp_(m, g, 1 - self.beta1)
        torch._foreach_mul_(v, self.beta2)
        torch._foreach_addcmul_(v, g, g, 1 - self.beta2)
        torch._foreach_copy_(self._m, m)
        torch._foreach_copy_(self._v, v)
        torch._foreach_div_(v, 1 - self.beta2**self.steps)
        torch._foreach_sqrt_(v)
        torch._foreach_add_(v, self.epsilon)
        decays = [p for p in self.parameters if p.dim() > 1]
        if decays and self.weight_decay:
            torch._foreach_mul_(decays, 1 - learning_rate * self.weight_decay)
        torch._foreach_addcdiv_(self.parameters, m, v, -learning_rate / (1 - self.beta1**self.steps))
        # By its version an FP8 layer knows that a weight has changed, and foreach does not raise that of every class of
        # tensor (pytorch/pytorch#191154).
        torch.autograd.graph.increment_version(self.parameters)

    def zero_grad(self) -> None:
        """Drop the gradients, and their memory."""
        for p in self.parameters:
            p.grad = None

    def state(self) -> Moments:
        """The moments themselves, not copies."""
        return {"steps": self.steps, "m": self._m, "v": self._v}

    @torch.no_grad()
    def restore(self, state: Moments) -> None:
        """state: of an optimizer of the same parameters. Raises ValueError where shapes differ."""
        for mine, kept in ((self._m, state["m"]), (self._v, state["v"])):
            if [t.shape for t in mine] != [t.shape for t in kept]:
                raise ValueError("moments of other parameters")
            for to, source in zip(mine, kept, strict=True):
                to.copy_(source)
        self.steps = state["steps"]
