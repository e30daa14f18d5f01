"""train: steps over passages of the corpus."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands.common import Run, StepLog, add_step_arguments
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.training.train import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of this command alone."""
    add_step_arguments(parser)


def run(run: Run) -> None:
    """Train a new model."""
    stage(run, run.new_model())


def stage(run: Run, model: Model) -> None:
    """Train `model` further."""
    a, log = run.arguments, StepLog(run)
    for t in train(model, run.exchange, steps=a.steps, schedule=a.schedule, seed=a.seed):
        load = t.load.float()
        worst = float((load.amax(1) / load.mean(1)).max())
        log(t.step, t.dur_ns, f"loss {t.loss:.4f}  max/mean load {worst:.2f}")
    log.close()
