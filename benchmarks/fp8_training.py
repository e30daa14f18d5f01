"""FP8 training against the same training without quantisation: loss on fresh data over a window, over seeds.

python -m benchmarks.fp8_training [--seeds 6] [--steps 300] [--window 100] [--quick]

One rank of a small model; both trainings have the same weights, data and order. FP8: E4M3 operands in all products of
FP8 layers and in dispatch. Reference: FP32 products and BF16 exchange with the same master weights and optimizer. It
rounds less than BF16 products would, so it is the stricter reference. The loss is that of training steps, whose
passages are new to the model, and that of held-out files at the end. The report's bound is a relative difference of
0.25 % (arXiv 2412.19437 section 3.3), at a size and length far from these.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass, replace
from statistics import mean, median, stdev
from typing import Any

from benchmarks.report import save
from moescope.instrumented_model.config import Config, size
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.link import NO_LINK
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.training.evaluate import held_out_loss
from moescope.instrumented_model.training.recipe import Recipe
from moescope.instrumented_model.training.train import Trainer

C = replace(
    size("tiny"), name="tiny, d 128", d=128, heads=2, d_latent=64, d_query_latent=64, d_expert=64, sequence_length=128
)


@dataclass(frozen=True)
class Trained:
    """window: mean training loss of the last steps; held_out: at the end; nats a byte"""

    window: float
    held_out: float
    step_ms: float


def trained(c: Config, seed: int, steps: int, window: int) -> Trained:
    """Train a new model from `seed`, which draws weights and data."""
    exchange = open_exchange(c, Ranks(0, 1), NO_LINK)
    recipe = Recipe(seed=seed, learning_rate=3e-3, warm_up_steps=20, decay_steps=steps - 20)
    trainer = Trainer(Model(c, seed=seed), exchange, recipe, schedule="serial")
    try:
        results = [trainer.run_step() for _ in range(steps)]
        held_out = held_out_loss(trainer.model, exchange, groups=32, schedule="serial")
    finally:
        trainer.close()
        exchange.close()
    return Trained(mean(r.loss for r in results[-window:]), held_out, median(r.dur_ns for r in results) / 1e6)


def compared(seed: int, steps: int, window: int) -> dict[str, Any]:
    """Both arithmetics from one seed."""
    fp8, plain = (trained(replace(C, fp8=on), seed, steps, window) for on in (True, False))
    return {
        "seed": seed,
        "fp8_loss": fp8.window,
        "reference_loss": plain.window,
        "relative_difference": fp8.window / plain.window - 1,
        "fp8_held_out": fp8.held_out,
        "reference_held_out": plain.held_out,
        "relative_difference_held_out": fp8.held_out / plain.held_out - 1,
        "fp8_step_ms": fp8.step_ms,
        "reference_step_ms": plain.step_ms,
    }


def spread(values: list[float]) -> dict[str, float]:
    """Over seeds; the error of the mean is its standard deviation."""
    deviation = stdev(values)
    return {
        "mean": mean(values),
        "deviation": deviation,
        "error_of_mean": deviation / len(values) ** 0.5,
        "smallest": min(values),
        "largest": max(values),
    }


def main() -> None:
    """Prints the result, and keeps it unless it is a quick look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--window", type=int, default=100)
    parser.add_argument("--quick", action="store_true", help="two seeds of 60 steps; prints, keeps nothing")
    a = parser.parse_args()
    seeds, steps, window = (2, 60, 20) if a.quick else (a.seeds, a.steps, a.window)
    start = time.monotonic()
    rows = []
    for seed in range(seeds):
        rows.append(row := compared(seed, steps, window))
        print(
            f"seed {seed}: window {row['fp8_loss']:.4f} / {row['reference_loss']:.4f} "
            f"({row['relative_difference']:+.3%}), held out {row['relative_difference_held_out']:+.3%}, "
            f"{time.monotonic() - start:.0f} s",
            file=sys.stderr,
        )
    # How far the loss of one arithmetic differs between seeds: what a difference has to be seen against.
    result: dict[str, Any] = {
        "model": C.name,
        "parameters": sum(p.numel() for p in Model(C).parameters()),
        "fp8": "E4M3 operands in products and dispatch, emulated",
        "reference": "FP32 products, BF16 exchange; the same master weights, moments, data and seeds",
        "steps": steps,
        "window_steps": window,
        "bytes_a_step": C.micro_batches * C.sequences * C.sequence_length,
        "relative_difference": spread([row["relative_difference"] for row in rows]),
        "relative_difference_held_out": spread([row["relative_difference_held_out"] for row in rows]),
        "reference_loss_between_seeds": spread([row["reference_loss"] for row in rows]),
        "report_bound": 0.0025,
        "runs": rows,
    }
    for name in ("relative_difference", "relative_difference_held_out"):
        s = result[name]
        print(f"{name}: {s['mean']:+.3%} ± {s['error_of_mean']:.3%} ({s['smallest']:+.3%} to {s['largest']:+.3%})")
    if not a.quick:
        save("fp8_training", "python -m benchmarks.fp8_training", result)


if __name__ == "__main__":
    main()
