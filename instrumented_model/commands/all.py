"""all: train, prefill, decode and generate, one after another, on one model."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands import decode, generate, prefill, redundant, train
from moescope.instrumented_model.commands.common import Run, add_step_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that all stages have, and --redundant-experts, for those after training."""
    add_step_arguments(parser)
    redundant.add_arguments(parser)


def run(run: Run) -> None:
    """Every stage on the same new model; experts get their replicas when it is trained."""
    model = run.new_model()
    run.say("-- train")
    train.stage(run, model)
    exchange = redundant.planned_exchange(run, model)
    run.say("-- prefill")
    prefill.stage(run, model, exchange)
    run.say("-- decode")
    decode.stage(run, model, exchange)
    run.say("-- generate")
    generate.stage(run, model, exchange)
    redundant.close(run, exchange)
