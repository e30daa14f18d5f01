"""Training by pipeline stages: the step around `pipeline.Pipeline`, without what hangs on expert parallelism."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.layers import routing
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.training import data
from moescope.instrumented_model.training.clip import clip, global_norm
from moescope.instrumented_model.training.optimizer import AdamW
from moescope.instrumented_model.training.pipeline import Pipeline
from moescope.instrumented_model.training.recipe import Recipe, rate


@dataclass(frozen=True)
class PipelineStep:
    """loss: mean over the step's micro-batches, nats a byte, on rank 0, None elsewhere; norm: over all stages"""

    step: int
    loss: float | None
    norm: float
    dur_ns: int


class PipelineTrainer:
    """This rank's two stages with their optimizer.

    model: whole and alike on all ranks; exchange: runs the collectives outside the pipeline
    recipe: averages are not kept here. Raises ConfigError for what a pipeline of so many ranks cannot train.
    """

    def __init__(self, model: Model, ranks: Ranks, exchange: Exchange, recipe: Recipe) -> None:
        c = model.c
        if c.mtp_depth:
            raise ConfigError(f"a pipeline has no multi-token prediction: set mtp_depth=0, not {c.mtp_depth}")
        if recipe.ema_decay:
            raise ConfigError("a pipeline keeps no averaged weights: leave --ema out")
        self.model, self.ranks, self.exchange, self.recipe = model, ranks, exchange, recipe
        self.micro_batches = c.micro_batches * recipe.accumulate
        self.pipeline = Pipeline(model, ranks, self.micro_batches)
        self.parameters = [p for stage in self.pipeline.stages.values() for p in stage.parameters()]
        self.optimizer = AdamW(
            self.parameters, beta1=recipe.beta1, beta2=recipe.beta2, weight_decay=recipe.weight_decay
        )
        self.text = data.corpus_for(model.c.vocabulary)
        self.step = 0

    def run_step(self) -> PipelineStep:
        """One step. Raises ConfigError where the gradients are no longer finite: the weights are then as before."""
        start_ns = emit.clock_ns()
        step = self.step
        with emit.step(step):
            with observe.phase("data"):
                tokens, targets = self._passages()
            loss = self.pipeline.gradients(tokens, targets)
            norm = global_norm([], self.parameters, self.exchange, self.ranks.count)
            if not norm < float("inf"):
                raise ConfigError(f"step {step}: the gradients are not finite: lower the learning rate")
            self._update(step, norm)
        self.step += 1
        return PipelineStep(step, loss, norm, emit.clock_ns() - start_ns)

    def _passages(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Of all micro-batches, the same on each rank. returns: [micro_batches * sequences, positions] int64, twice"""
        c = self.model.c
        shape = {"sequences": c.sequences, "positions": c.sequence_length, "seed": self.recipe.seed}
        batches = [
            data.batch(self.text, step=self.step, rank=0, micro_batch=m, **shape) for m in range(self.micro_batches)
        ]
        tokens, targets = (torch.cat(parts) for parts in zip(*batches, strict=True))
        return tokens, targets

    def _update(self, step: int, norm: float) -> None:
        with observe.phase("optimizer"):
            clip(self.parameters, norm, self.recipe.clip_norm)
            self.optimizer.step(rate(self.recipe, step))
            self.optimizer.zero_grad()
            layers = self.model.moe_layers()
            for stage in self.pipeline.stages.values():
                for n, load in stage.load.items():
                    layers[n].bias.copy_(routing.updated_bias(layers[n].bias, load, self.model.c.bias_update_speed))
                    emit.experts(layer=n, tokens=load.tolist())
                stage.load.clear()
