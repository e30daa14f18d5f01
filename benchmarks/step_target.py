"""The demo's training step, timed by itself: writes each step's ns as JSON to the file named first (rank 0)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from moescope.instrumented_model.config import size
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.link import DEFAULT_LINK, parse_link
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import joined, world
from moescope.instrumented_model.training.train import train


def main() -> None:
    """step_target.py OUTPUT STEPS"""
    output, steps = Path(sys.argv[1]), int(sys.argv[2])
    ranks = world()
    with joined(ranks, 120.0):
        c = size("tiny")
        exchange = open_exchange(c, ranks, parse_link(DEFAULT_LINK))
        model = Model(c, rank=ranks.rank, ranks=ranks.count, seed=0)
        durations = [t.dur_ns for t in train(model, exchange, steps=steps, schedule="overlapped", seed=0)]
        exchange.close()
        del model
    if ranks.rank == 0:
        part = output.with_suffix(".part")
        part.write_text(json.dumps(durations))
        os.replace(part, output)


if __name__ == "__main__":
    main()
