"""What a training run's numbers hang on besides its configuration; kept with its checkpoints."""

from __future__ import annotations

import math
from dataclasses import dataclass

from moescope.instrumented_model.config import ConfigError


@dataclass(frozen=True)
class Recipe:
    """A run with the same recipe, configuration, ranks and text gives the same numbers, whatever its schedule.

    accumulate: groups of `micro_batches` whose gradients are summed in a step
    decay_steps: from the end of warm-up to the end of the cosine; 0: the rate stays
    clip_norm: over all parameters of all ranks; 0: gradients are not clipped
    ema_decay: of the averaged weights kept in the CPU's memory; 0: none are kept
    """

    seed: int = 0
    learning_rate: float = 3e-3
    warm_up_steps: int = 0
    decay_steps: int = 0
    final_rate: float = 0.1  # of learning_rate, where the cosine ends
    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    accumulate: int = 1
    ema_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.accumulate < 1:
            raise ConfigError(f"accumulate {self.accumulate} must be at least 1")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ConfigError(f"learning rate {self.learning_rate} must be above 0")
        if min(self.warm_up_steps, self.decay_steps) < 0:
            raise ConfigError("warm-up and decay steps cannot be below 0")
        for name in ("weight_decay", "clip_norm"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)} cannot be below 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)} must lie in [0, 1)")


def rate(recipe: Recipe, step: int) -> float:
    """Learning rate of a step: linear warm-up, then half a cosine down to `final_rate`, then level (section 4.2).

    step: from 0; the first step of a warm-up takes 1/warm_up_steps of the rate
    """
    if step < recipe.warm_up_steps:
        return recipe.learning_rate * (step + 1) / recipe.warm_up_steps
    if not recipe.decay_steps:
        return recipe.learning_rate
    done = min((step - recipe.warm_up_steps) / recipe.decay_steps, 1.0)
    falls = 0.5 * (1 + math.cos(math.pi * done))
    return recipe.learning_rate * (recipe.final_rate + (1 - recipe.final_rate) * falls)
