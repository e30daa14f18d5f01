"""all: train, prefill and decode, one after another, on one model."""

from __future__ import annotations

import argparse

from moescope.instrumented_model.commands import decode, prefill, train
from moescope.instrumented_model.commands.common import Run, add_step_arguments

STAGES = {"train": train.stage, "prefill": prefill.stage, "decode": decode.stage}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those that all stages have."""
    add_step_arguments(parser)


def run(run: Run) -> None:
    """Every stage on the same new model."""
    model = run.new_model()
    for name, stage in STAGES.items():
        run.say(f"-- {name}")
        stage(run, model)
