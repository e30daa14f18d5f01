"""--redundant-experts: load is measured on one prefill, hot experts get replicas, dispatches are planned globally."""

from __future__ import annotations

import argparse

import torch
import torch.distributed as dist

from moescope.instrumented_model.commands.common import Run
from moescope.instrumented_model.inference.steps import prompts
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.open import open_planned
from moescope.instrumented_model.parallel.placement import placed
from moescope.instrumented_model.parallel.planned import PlannedExchange, place_experts
from moescope.instrumented_model.schedules.chain import MicroBatch, forward
from moescope.instrumented_model.schedules.order import serial
from moescope.instrumented_model.training import data
from moescope.instrumented_model.training.train import routed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The option of commands that can use it."""
    parser.add_argument(
        "--redundant-experts", type=int, default=0, metavar="N", help="replicas of hot experts on each rank (default 0)"
    )


def measured_load(run: Run, model: Model) -> torch.Tensor:
    """Tokens each expert gets from one prompt a micro-batch. returns: [layers with experts, experts] over all ranks"""
    text = data.corpus_for(model.c.vocabulary)
    tokens = prompts(model, text, step=0, sequences=model.c.sequences, seed=run.arguments.seed)
    micro_batches = [MicroBatch(m, t) for m, t in enumerate(tokens)]
    serial([forward(model, run.exchange, mb) for mb in micro_batches])
    load = routed(micro_batches)
    if run.ranks.count > 1:
        run.exchange.run(lambda: dist.all_reduce(load)).result()
    return load


def planned_exchange(run: Run, model: Model) -> Exchange:
    """The run's own exchange, or one over replicas, to which `model` is changed and which the caller closes."""
    redundant: int = getattr(run.arguments, "redundant_experts", 0)
    if not redundant:
        return run.exchange
    measured, even = measured_load(run, model), torch.ones(model.c.experts, dtype=torch.int64)
    # Layers of multi-token prediction come last; a prompt does not go through them.
    loads = [*measured, *[even] * model.c.mtp_depth]
    placements = {n: placed(load, run.ranks, redundant) for n, load in zip(model.moe_layers(), loads, strict=True)}
    place_experts(model, placements)
    return open_planned(model.c, run.ranks, placements, run.link, run.intra_link, run.arguments.timeout)


def balance(exchange: PlannedExchange) -> tuple[float, float, float]:
    """Of the last plans that had rows at all, 1 where there were none.

    returns: mean max/mean load of the ranks without and with replicas; us of making a plan, on average
    """
    plans = [p for p in exchange.plans if p.counts.any()]
    if not plans:
        return 1.0, 1.0, 0.0

    def ratio(loads: tuple[int, ...]) -> float:
        return max(loads) * len(loads) / sum(loads)

    before, after = (sum(map(ratio, of)) / len(plans) for of in ([p.before for p in plans], [p.after for p in plans]))
    return before, after, sum(p.plan_ns for p in plans) / len(plans) / 1000


def close(run: Run, exchange: Exchange) -> None:
    """End an exchange that `planned_exchange` made, and say what its plans did."""
    if isinstance(exchange, PlannedExchange):
        exchange.close()
        before, after, plan_us = balance(exchange)
        run.say(
            f"max/mean load of ranks {before:.2f} at home, {after:.2f} with replicas; a plan takes {plan_us:.0f} us"
        )
