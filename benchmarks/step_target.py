"""The demo's training step, timed by itself, a few steps at a time, whenever it is this run's turn.

    step_target.py FOLDER TURNS STEPS

Reads a byte from FOLDER/go.<rank> before each turn and before it ends, and writes one to FOLDER/done after each turn.
At the end FOLDER/turns.json has of every turn the ns that a step took, and this process's CPU time meanwhile. Rank 0
writes both.
"""

from __future__ import annotations

import json
import os
import sys
import time
from itertools import islice
from pathlib import Path

from moescope.instrumented_model.config import size
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.link import DEFAULT_LINK, parse_link
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import joined, world
from moescope.instrumented_model.training.train import train


def main() -> None:
    """One rank."""
    folder, turns, steps = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranks, taken = world(), []
    go, done = os.open(folder / f"go.{ranks.rank}", os.O_RDWR), os.open(folder / "done", os.O_RDWR)
    with joined(ranks, 120.0):
        c = size("tiny")
        exchange = open_exchange(c, ranks, parse_link(DEFAULT_LINK))
        model = Model(c, rank=ranks.rank, ranks=ranks.count, seed=0)
        training = train(model, exchange, steps=turns * steps, schedule="overlapped", seed=0)
        for _ in range(turns):
            os.read(go, 1)
            start_ns, start_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            for _ in islice(training, steps):
                pass
            end_ns, end_cpu_ns = time.perf_counter_ns(), time.process_time_ns()
            taken.append(((end_ns - start_ns) / steps, (end_cpu_ns - start_cpu_ns) / steps))
            if ranks.rank == 0:
                os.write(done, b".")
        os.read(go, 1)  # what a run does as it ends falls into nobody's turn
        next(training, None)
        exchange.close()
        del model, training
    if ranks.rank == 0:
        (folder / "turns.json").write_text(json.dumps(taken))


if __name__ == "__main__":
    main()
