"""decode: one token a sequence each step, from latent caches."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.inference.steps import decode
from moescope.instrumented_model.layers.model import Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    add_step_arguments(parser)


def run(run: Run) -> None:
    """Decode with a new model."""
    stage(run, run.new_model())


def stage(run: Run, model: Model) -> None:
    """Decode with `model`."""
    a, log = run.arguments, StepLog(run)
    for s in decode(model, run.exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
        log(s.step, s.dur_ns, f"{s.tokens} tokens")
    log.close()
