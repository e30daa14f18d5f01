"""prefill: a new prompt into new caches each step."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands import redundant
from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.inference.steps import prefill
from moescope.instrumented_model.layers.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    add_step_arguments(parser)
    redundant.add_arguments(parser)


def run(run: Run) -> None:
    """Prefill with a new model."""
    stage(run, run.new_model())


def stage(run: Run, model: Model) -> None:
    """Prefill with `model`."""
    a, log = run.arguments, StepLog(run)
    exchange = redundant.planned_exchange(run, model)
    for s in prefill(model, exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
        log(s.step, s.dur_ns, f"{s.tokens} tokens")
    log.close()
    redundant.close(run, exchange)
