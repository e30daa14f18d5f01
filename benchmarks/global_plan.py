"""Redundant experts and the global plan: max/mean load of ranks before and after, and what planning costs a layer.

python -m benchmarks.global_plan [--ranks 2 4] [--redundant 1] [--sizes tiny lite] [--steps 20]

A new model's prefill, whose router is not balanced yet, on gloo ranks without an emulated wire; 4 ranks are 2 nodes.
Cost: steps with a plan for every dispatch, of which every expert still has one place, against the same steps without,
taken in turns in the same processes; the median of the differences, over the layers and micro-batches of a step.
Beside it, the time that dispatches waited for counts, and that the plan itself took, on the communication thread.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import mean, median
from typing import Any

from benchmarks.report import save
from moescope.instrumented_model.commands import common, redundant
from moescope.instrumented_model.inference.steps import infer, new_cache, opened, prefill, prompts
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.parallel.open import open_planned
from moescope.instrumented_model.parallel.placement import home
from moescope.instrumented_model.parallel.planned import PlannedExchange
from moescope.instrumented_model.training import data

WARM_UP = 2
REPLICATED_STEPS = 4


def _one_rank(arguments: list[str], output: Path) -> int:
    """One rank of a run: the prefill command's arguments; rank 0 writes its figures."""
    parser = argparse.ArgumentParser()
    common.add_arguments(parser)
    common.add_step_arguments(parser)
    redundant.add_arguments(parser)

    def command(run: common.Run) -> None:
        model = run.new_model()
        figures = _cost(run, model) | _balance(run, model)
        if run.ranks.rank == 0:
            output.write_text(json.dumps(figures))

    return common.execute(parser.parse_args(arguments, argparse.Namespace(stage="prefill")), command)


def _cost(run: common.Run, model: Model) -> dict[str, Any]:
    """Of planning, with every expert at home."""
    at_home = dict.fromkeys(model.moe_layers(), home(run.c.experts, run.ranks.count))
    planner = open_planned(run.c, run.ranks, at_home, run.link, run.intra_link, run.arguments.timeout)
    dispatches = len(at_home) * run.c.micro_batches
    us: dict[bool, list[float]] = {False: [], True: []}
    for step in range(run.arguments.steps):
        for plans in (False, True) if step % 2 else (True, False):
            us[plans].append(_step_ns(run, model, planner if plans else run.exchange, step) / dispatches / 1e3)
    planner.close()
    without, with_plan = us[False][WARM_UP:], us[True][WARM_UP:]
    differences = sorted(b - a for a, b in zip(without, with_plan, strict=True))
    made = list(planner.plans)[WARM_UP * dispatches :]
    quarter = len(differences) // 4
    return {
        "layer_us": median(without),
        "layer_with_plan_us": median(with_plan),
        "cost_us": median(differences),
        "cost_us_quartiles": [differences[quarter], differences[-1 - quarter]],
        "cost_share": median(differences) / median(without),
        "waited_us": mean(p.gather_ns for p in made) / 1e3,
        "plan_us": median(p.plan_ns for p in made) / 1e3,
    }


def _step_ns(run: common.Run, model: Model, exchange: Exchange, step: int) -> int:
    """Of one prefill."""
    c = run.c
    tokens = prompts(model, data.corpus(), step=step, sequences=c.sequences, seed=1)
    cache, sequences = new_cache(c, c.sequences, c.sequence_length)
    caches = opened(cache, sequences, tokens)
    return infer(model, exchange, tokens, caches, run.arguments.schedule, step).dur_ns


def _balance(run: common.Run, model: Model) -> dict[str, Any]:
    """With replicas, to which the model is changed."""
    exchange = redundant.planned_exchange(run, model)
    if not isinstance(exchange, PlannedExchange):
        raise SystemExit("give --redundant-experts")
    for _ in prefill(model, exchange, steps=REPLICATED_STEPS, schedule=run.arguments.schedule, seed=1):
        pass
    exchange.close()
    before, after, _ = redundant.balance(exchange)
    return {"max_to_mean_before": before, "max_to_mean_after": after}


def measured(size: str, ranks: int, nodes: int, replicas: int, steps: int) -> dict[str, Any]:
    """Figures of one run."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "figures.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
        run = ["-m", "benchmarks.global_plan", "--one-rank", str(output), "--size", size, "--link", "none"]
        options = [f"--nodes={nodes}", f"--redundant-experts={replicas}", f"--steps={steps}", "--intra-link=none"]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run([*launcher, *run, *options], check=True, env=env, stdout=subprocess.DEVNULL)
        figures: dict[str, Any] = json.loads(output.read_text())
    return {"size": size, "ranks": ranks, "nodes": nodes, "redundant_per_rank": replicas} | figures


def main() -> int:
    """Prints and keeps the result."""
    if sys.argv[1:2] == ["--one-rank"]:
        return _one_rank(sys.argv[3:], Path(sys.argv[2]))
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--redundant", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "lite"])
    parser.add_argument("--steps", type=int, default=20)
    a = parser.parse_args()
    runs = [
        measured(size, ranks, 1 if ranks == 2 else 2, a.redundant, a.steps) for ranks in a.ranks for size in a.sizes
    ]
    heads = ("before", "after", "layer us", "cost us", "share", "waited us", "plan us")
    print(f"{'size':6} ranks " + " ".join(f"{head:>10}" for head in heads))
    for r in runs:
        print(
            f"{r['size']:6} {r['ranks']:5} {r['max_to_mean_before']:10.2f} {r['max_to_mean_after']:10.2f} "
            f"{r['layer_us']:10.0f} {r['cost_us']:10.0f} {r['cost_share']:10.1%} {r['waited_us']:10.0f} "
            f"{r['plan_us']:10.0f}"
        )
    save("global_plan", " ".join(["python -m benchmarks.global_plan", *sys.argv[1:]]), {"runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
