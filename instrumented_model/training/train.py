"""Training: two micro-batches a step, gradients summed over ranks, AdamW on FP32 master weights with FP32 moments."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.layers import routing
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.chain import MicroBatch, backward, forward
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training import data

SAMPLE_EVERY = 16
"""Steps between two whose quantisation figures are counted."""


@dataclass(frozen=True)
class StepResult:
    """loss: mean over this rank's tokens, nats a byte

    load: [layers with experts, experts] int64, tokens over all ranks
    """

    step: int
    loss: float
    dur_ns: int
    load: torch.Tensor


def gradients(model: Model, exchange: Exchange, micro_batches: list[MicroBatch], schedule: Schedule) -> float:
    """Forward and backward of all micro-batches into `.grad`, still unsummed over ranks. returns: this rank's loss"""
    run = SCHEDULES[schedule]
    run([forward(model, exchange, mb) for mb in micro_batches])
    weight = 1.0 / (len(micro_batches) * model.ranks)
    run([backward(model, exchange, mb, weight) for mb in micro_batches])
    return sum(float(mb.result) for mb in micro_batches if mb.result is not None) / len(micro_batches)


def routed(micro_batches: list[MicroBatch]) -> torch.Tensor:
    """Tokens this rank routed to each expert. returns: [layers with experts, experts] int64"""
    return torch.stack([torch.stack(mb.chosen) for mb in micro_batches if mb.chosen]).sum(0)


def report_routing(model: Model, load: torch.Tensor) -> None:
    """load: [layers with experts, experts] int64, of this rank"""
    if emit.active():
        for n, tokens in zip(model.moe_layers(), load.tolist(), strict=True):
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


def train(
    model: Model, exchange: Exchange, *, steps: int, schedule: Schedule, seed: int, learning_rate: float = 3e-3
) -> Iterator[StepResult]:
    """Train for `steps` steps, a result after each."""
    c, text = model.c, data.corpus()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.1, foreach=True
    )
    emit.stage("train")
    for step in range(steps):
        start_ns = emit.clock_ns()
        with emit.step(step):
            observe.sample(step % SAMPLE_EVERY == 0)
            with observe.phase("data"):
                micro_batches = [
                    MicroBatch(
                        m,
                        *data.batch(
                            text,
                            step=step,
                            rank=model.rank,
                            micro_batch=m,
                            sequences=c.sequences,
                            positions=c.sequence_length,
                            seed=seed,
                        ),
                    )
                    for m in range(c.micro_batches)
                ]
            loss = gradients(model, exchange, micro_batches, schedule)
            mine = routed(micro_batches)
            load = sync(model, exchange, mine)
            with observe.phase("optimizer"):
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                for layer, tokens in zip(model.moe_layers().values(), load, strict=True):
                    layer.bias.copy_(routing.updated_bias(layer.bias, tokens, c.bias_update_speed))
            report_routing(model, mine)
        yield StepResult(step, loss, emit.clock_ns() - start_ns, load)
