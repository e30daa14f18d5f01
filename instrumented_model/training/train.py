"""Training: gradients of several micro-batches summed over ranks, clipped, AdamW, balancing bias, averaged weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.layers import routing
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.chain import MicroBatch, backward, forward
from moescope.instrumented_model.schedules.interleaved import interleaved
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training import checkpoint, data
from moescope.instrumented_model.training.clip import clip, global_norm
from moescope.instrumented_model.training.ema import Ema
from moescope.instrumented_model.training.optimizer import AdamW
from moescope.instrumented_model.training.recipe import Recipe, rate


@dataclass(frozen=True)
class StepResult:
    """loss: mean over this rank's tokens, nats a byte; norm: of the gradients of all ranks before clipping

    load: [layers with experts, experts] int64, tokens over all ranks
    """

    step: int
    loss: float
    norm: float
    rate: float
    dur_ns: int
    load: torch.Tensor


def gradients(model: Model, exchange: Exchange, micro_batches: list[MicroBatch], schedule: Schedule) -> float:
    """Forward and backward of all micro-batches into `.grad`, still unsummed over ranks. returns: this rank's loss

    Serial and overlapped, micro-batches run in groups of the configuration's `micro_batches`; interleaved, one goes
    forward while the one before goes back. Memory does not grow with their number.
    """
    weight = 1.0 / (len(micro_batches) * model.ranks)
    ahead = [forward(model, exchange, mb) for mb in micro_batches]
    back = [backward(model, exchange, mb, weight) for mb in micro_batches]
    if schedule == "interleaved":
        interleaved(ahead, back)
    else:
        run, group = SCHEDULES[schedule], model.c.micro_batches
        for first in range(0, len(micro_batches), group):
            run(ahead[first : first + group])
            run(back[first : first + group])
    return sum(float(mb.result) for mb in micro_batches if mb.result is not None) / len(micro_batches)


def routed(micro_batches: list[MicroBatch]) -> torch.Tensor:
    """Tokens this rank routed to each expert. returns: [layers with experts, experts] int64"""
    return torch.stack([torch.stack(mb.chosen) for mb in micro_batches if mb.chosen]).sum(0)


def report_routing(model: Model, load: torch.Tensor) -> None:
    """load: [layers with experts, experts] int64, of this rank"""
    if emit.active():
        for n, tokens in zip(model.moe_layers(), load.tolist(), strict=False):  # inference predicts one token
            emit.experts(layer=n, tokens=tokens)


def sync(model: Model, exchange: Exchange, load: torch.Tensor) -> torch.Tensor:
    """Sum the replicas' gradients and the expert load over ranks, in one all-reduce, which is not on the emulated link.

    load: [layers with experts, experts] int64; returns: the same over all ranks
    """
    if model.ranks == 1:
        return load
    replicated = model.replicated_parameters()
    parts = [(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in replicated]
    bucket = torch.cat([*parts, load.reshape(-1).float()])

    def job() -> None:
        with emit.phase("grad_sync"):
            dist.all_reduce(bucket)

    exchange.run(job).result()
    *summed, total = torch.split(bucket, [p.numel() for p in parts] + [load.numel()])
    for parameter, gradient in zip(replicated, summed, strict=True):
        parameter.grad = gradient.view_as(parameter)
    return total.reshape(load.shape).long()


class Trainer:
    """A model with all that its training keeps from step to step.

    step: the next one; text: [bytes] uint8 to train on, Python's own library where none is given
    """

    def __init__(
        self,
        model: Model,
        exchange: Exchange,
        recipe: Recipe,
        *,
        schedule: Schedule = "overlapped",
        text: torch.Tensor | None = None,
    ) -> None:
        self.model, self.exchange, self.recipe, self.schedule = model, exchange, recipe, schedule
        self.text = data.corpus_for(model.c.vocabulary) if text is None else text
        self.step = 0
        self.parameters = list(model.parameters())
        self._experts, self._replicated = model.expert_parameters(), model.replicated_parameters()
        self.optimizer = AdamW(
            self.parameters, beta1=recipe.beta1, beta2=recipe.beta2, weight_decay=recipe.weight_decay
        )
        self.ema = Ema(self.parameters, recipe.ema_decay) if recipe.ema_decay else None

    def close(self) -> None:
        """End the averaging thread."""
        if self.ema is not None:
            self.ema.close()

    def micro_batches(self) -> list[MicroBatch]:
        """This rank's passages of the next step."""
        c = self.model.c
        shape = {"sequences": c.sequences, "positions": c.sequence_length, "seed": self.recipe.seed}
        passages = [
            data.batch(self.text, step=self.step, rank=self.model.rank, micro_batch=m, **shape)
            for m in range(c.micro_batches * self.recipe.accumulate)
        ]
        device = self.model.device
        return [MicroBatch(m, x.to(device), y.to(device)) for m, (x, y) in enumerate(passages)]

    def run_step(self) -> StepResult:
        """One step. Raises ConfigError where the gradients are no longer finite: the weights are then as before."""
        start_ns = emit.clock_ns()
        step, learning_rate = self.step, rate(self.recipe, self.step)
        with emit.step(step):
            observe.sample(step)
            with observe.phase("data"):
                micro_batches = self.micro_batches()
            loss = gradients(self.model, self.exchange, micro_batches, self.schedule)
            mine = routed(micro_batches)
            load = sync(self.model, self.exchange, mine)
            norm = global_norm(self._replicated, self._experts, self.exchange, self.model.ranks)
            if not norm < float("inf"):
                raise ConfigError(f"step {step}: the gradients are not finite, loss {loss}: lower the learning rate")
            self._update(learning_rate, norm, load)
            report_routing(self.model, mine)
        self.step += 1
        return StepResult(step, loss, norm, learning_rate, emit.clock_ns() - start_ns, load)

    def _update(self, learning_rate: float, norm: float, load: torch.Tensor) -> None:
        c = self.model.c
        with observe.phase("optimizer"):
            clip(self.parameters, norm, self.recipe.clip_norm)
            if self.ema is not None:
                self.ema.before_update()
            self.optimizer.step(learning_rate)
            self.optimizer.zero_grad()
            if self.ema is not None:
                self.ema.after_update()
            for layer, tokens in zip(self.model.moe_layers().values(), load, strict=True):
                layer.bias.copy_(routing.updated_bias(layer.bias, tokens, c.bias_update_speed))

    def _manifest(self) -> checkpoint.Manifest:
        text = data.fingerprint(self.text)
        return checkpoint.Manifest(self.step, self.model.ranks, self.model.c, self.recipe, text, {})

    def save(self, folder: Path, *, keep: int = 0) -> Path:
        """Write a checkpoint that `resume` goes on from, bit for bit; called by all ranks.

        keep: how many stay in the folder, the oldest go; 0: all. Raises ConfigError where it cannot be written.
        """
        state: dict[str, Any] = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state(),
            "ema": None if self.ema is None else self.ema.averages(),
            "random": torch.get_rng_state(),
        }
        with emit.phase("checkpoint"):
            return checkpoint.save(
                folder, state, self._manifest(), rank=self.model.rank, exchange=self.exchange, keep=keep
            )

    def resume(self, path: Path) -> None:
        """Go on from a checkpoint, or from the latest of a folder.

        Raises ConfigError where it is torn, or of another configuration, recipe, text or number of ranks.
        """
        found = checkpoint.find(path)
        kept, mine = checkpoint.read_manifest(found), self._manifest()
        checkpoint.check(found, kept, mine.config, mine.recipe, mine.ranks, mine.text)
        state = checkpoint.read_state(found, kept, self.model.rank)
        self.model.load_state_dict(state["model"])
        self.optimizer.restore(state["optimizer"])
        if self.ema is not None:
            self.ema.restore(state["ema"])
        torch.set_rng_state(state["random"])
        self.step = kept.step


def train(
    model: Model,
    exchange: Exchange,
    *,
    steps: int,
    schedule: Schedule,
    seed: int,
) -> Iterator[StepResult]:
    """Train for `steps` steps from the start by the default recipe, a result after each."""
    trainer = Trainer(model, exchange, Recipe(seed=seed), schedule=schedule)
    emit.stage("train")
    try:
        for _ in range(steps):
            yield trainer.run_step()
    finally:
        trainer.close()
