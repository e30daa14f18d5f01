"""prefill: a new prompt into new caches each step."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands import redundant
from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.inference.steps import prefill
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    add_step_arguments(parser)
    redundant.add_arguments(parser)


def run(run: Run) -> None:
    """Prefill with a new model."""
    model = run.new_model()
    exchange = redundant.planned_exchange(run, model)
    stage(run, model, exchange)
    redundant.close(run, exchange)


def stage(run: Run, model: Model, exchange: Exchange) -> None:
    """Prefill with `model` over `exchange`."""
    a, log = run.arguments, StepLog(run)
    for s in prefill(model, exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
        log(s.step, s.dur_ns, f"{s.tokens} tokens")
    log.close()
