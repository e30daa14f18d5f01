"""Training of size tiny: step time and peak memory by ranks and schedule, and what averaging costs.

python -m benchmarks.training [--steps 24] [--accumulate 4] [--quick]

Two ranks, and four as two nodes of two, each schedule in a run of its own, since memory is of a whole run; what the
schedules gain is measured side by side by `benchmarks.overlap`. The wire is emulated (modelled). Step times are medians
over all steps, means over ranks. Memory is the largest resident size of a rank, interpreter and torch among it.
Averaging: one rank, two trainers take steps in turn, one with an average on the side.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import save
from benchmarks.turns import Layout, run_turns
from moescope.instrumented_model.config import size
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.link import NO_LINK
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.training.recipe import Recipe
from moescope.instrumented_model.training.train import Trainer

WARM_UP = 3
SCHEDULES = ("serial", "overlapped", "interleaved")
LAYOUTS = (Layout(2), Layout(4, 2))


def alone(layout: Layout, schedule: str, steps: int, accumulate: int) -> dict[str, Any]:
    """One run by one schedule."""
    print(f"  {layout}, {schedule} …", file=sys.stderr)
    rounds = max(steps // WARM_UP, 1)
    with tempfile.TemporaryDirectory() as name:
        turns, peak_bytes = run_turns(
            Path(name), "train", [schedule], rounds=rounds, steps=WARM_UP, layout=layout, accumulate=accumulate
        )
    return {
        "layout": str(layout),
        "schedule": schedule,
        "steps": rounds * WARM_UP,
        "step_ms": median(turn.step for turn in turns),
        "waited_ms": median(turn.waited for turn in turns),
        "peak_bytes": peak_bytes,
    }


def averaging(steps: int) -> dict[str, float]:
    """ms of a step with and without an average on the side, and what the training thread waited for it."""
    c, exchange = size("tiny"), open_exchange(size("tiny"), Ranks(0, 1), NO_LINK)
    trainers = {
        name: Trainer(Model(c), exchange, Recipe(ema_decay=decay), schedule="serial")
        for name, decay in (("without", 0.0), ("with", 0.999))
    }
    taken: dict[str, list[float]] = {name: [] for name in trainers}
    for step in range(steps + WARM_UP):
        for name in sorted(trainers, reverse=bool(step % 2)):
            taken[name].append(trainers[name].run_step().dur_ns / 1e6)
    ema = trainers["with"].ema
    assert ema is not None
    waited_ms = ema.waited_ns / 1e6 / (steps + WARM_UP)
    for trainer in trainers.values():
        trainer.close()
    exchange.close()
    with_ms, without_ms = (median(taken[name][WARM_UP:]) for name in ("with", "without"))
    return {"steps": steps, "with_ms": with_ms, "without_ms": without_ms, "waited_ms_a_step": waited_ms}


def main() -> None:
    """Prints the result, and keeps it unless it is a quick look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--quick", action="store_true", help="few steps of two ranks; prints, keeps nothing")
    a = parser.parse_args()
    steps, layouts = (6, LAYOUTS[:1]) if a.quick else (a.steps, LAYOUTS)
    side = averaging(2 * steps)
    print(
        f"average on the side: step {side['with_ms']:.1f} ms, without {side['without_ms']:.1f} ms; "
        f"waited {side['waited_ms_a_step']:.3f} ms a step"
    )
    rows = [alone(layout, schedule, steps, a.accumulate) for layout in layouts for schedule in SCHEDULES]
    print(f"{'ranks':12} {'schedule':12} {'step ms':>8} {'waited':>8} {'peak MB':>8}")
    for r in rows:
        figures = f"{r['step_ms']:8.1f} {r['waited_ms']:8.1f} {r['peak_bytes'] / 1e6:8.0f}"
        print(f"{r['layout']:12} {r['schedule']:12} {figures}")
    if not a.quick:
        result = {"wire": "emulated (modelled)", "accumulate": a.accumulate, "averaging": side, "runs": rows}
        save("training", "python -m benchmarks.training", result)


if __name__ == "__main__":
    main()
