"""Redundant experts and the global plan: max/mean load of ranks before and after, and the plan's time in a layer.

python -m benchmarks.global_plan [--ranks 4] [--nodes 2] [--redundant 1] [--sizes tiny lite] [--steps 10]

A new model's prefill, whose router is not balanced yet, on gloo ranks without an emulated wire. A layer's time is the
step's over its layers and micro-batches; the plan's is what the communication thread takes to make it, and beside it to
tell each other the counts, where a rank also waits for the slowest.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import save
from moescope.instrumented_model.commands import common, redundant
from moescope.instrumented_model.inference.steps import prefill
from moescope.instrumented_model.parallel.planned import PlannedExchange

WARM_UP = 2


def _one_rank(arguments: list[str], output: Path) -> int:
    """One rank of a run: the prefill command's arguments; rank 0 writes its figures."""
    parser = argparse.ArgumentParser()
    common.add_arguments(parser)
    common.add_step_arguments(parser)
    redundant.add_arguments(parser)

    def command(run: common.Run) -> None:
        model, a = run.new_model(), run.arguments
        exchange = redundant.planned_exchange(run, model)
        if not isinstance(exchange, PlannedExchange):
            raise SystemExit("give --redundant-experts")
        steps = [s.dur_ns for s in prefill(model, exchange, steps=a.steps, schedule=a.schedule, seed=1)]
        exchange.close()
        layers = len(model.moe_layers()) * run.c.micro_batches
        before, after, _ = redundant.balance(exchange)
        layer_ns = median(steps[WARM_UP:]) / layers
        plans = list(exchange.plans)[WARM_UP * layers :]
        plan_ns = median(p.plan_ns for p in plans)
        figures = {
            "max_to_mean_before": before,
            "max_to_mean_after": after,
            "layer_us": layer_ns / 1e3,
            "plan_us": plan_ns / 1e3,
            "plan_share": plan_ns / layer_ns,
            "gather_us": median(p.gather_ns for p in plans) / 1e3,
        }
        if run.ranks.rank == 0:
            output.write_text(json.dumps(figures))

    return common.execute(parser.parse_args(arguments, argparse.Namespace(stage="prefill")), command)


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
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--redundant", type=int, default=1)
    parser.add_argument("--sizes", nargs="+", default=["tiny", "lite"])
    parser.add_argument("--steps", type=int, default=10)
    a = parser.parse_args()
    runs = [measured(size, a.ranks, a.nodes, a.redundant, a.steps) for size in a.sizes]
    print(f"{'size':6} {'before':>7} {'after':>7} {'layer us':>9} {'plan us':>8} {'share':>7} {'gather us':>10}")
    for r in runs:
        print(
            f"{r['size']:6} {r['max_to_mean_before']:7.2f} {r['max_to_mean_after']:7.2f} {r['layer_us']:9.0f} "
            f"{r['plan_us']:8.0f} {r['plan_share']:7.2%} {r['gather_us']:10.0f}"
        )
    save("global_plan", "python -m benchmarks.global_plan", {"runs": runs})
    return 0


if __name__ == "__main__":
    sys.exit(main())
