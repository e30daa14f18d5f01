"""Training of size tiny: what the interleaved schedule hides, step time and peak memory by ranks, what averaging costs.

python -m benchmarks.training [--pairs 3] [--steps 12] [--accumulate 4]

Schedules: runs of each in turn, two ranks, and four as two nodes of two, under moescope at its default budget. The wire
is emulated (modelled). Step times are medians over all recorded steps of all ranks; exposed and hidden communication
are shares of the recorded time, times the step. Memory is the largest resident size of a rank, interpreter and torch
among it. Averaging: one rank, two trainers take steps in turn, one with an average on the side.
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
from moescope.instrumented_model.config import size
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.link import NO_LINK
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.training.recipe import Recipe
from moescope.instrumented_model.training.train import Trainer
from moescope.profiler.source import open_source

WARM_UP = 3
SCHEDULES = ("serial", "overlapped", "interleaved")
LAYOUTS = {"2 ranks": (2, ()), "2 nodes x 2": (4, ("--nodes", "2"))}
TARGET = """
import os, resource, sys
from moescope.instrumented_model.__main__ import main
code = main(sys.argv[2:])
with open(os.path.join(sys.argv[1], "peak-" + os.environ["RANK"]), "w") as file:
    file.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024))
sys.exit(code)
"""


def one_run(folder: Path, layout: str, schedule: str, steps: int, accumulate: int) -> dict[str, float]:
    """ms of a step: all of it, exposed and hidden communication; bytes of the largest rank."""
    ranks, extra = LAYOUTS[layout]
    recording, target = folder / f"{ranks}-{schedule}", folder / "target.py"
    target.write_text(TARGET)
    moescope = (sys.executable, "-m", "moescope")
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    train = ("train", f"--steps={steps}", f"--schedule={schedule}", f"--accumulate={accumulate}", *extra)
    command = (*moescope, "run", "-f", "-o", str(recording), "--", *launcher, str(target), str(folder), *train)
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    table = open_source([recording]).table("steps").to_pylist()
    step = median(row["dur_ns"] for row in table if row["step"] is not None and row["step"] >= WARM_UP) / 1e6
    done = subprocess.run((*moescope, "summary", str(recording), "--json"), check=True, capture_output=True)
    total = json.loads(done.stdout)["total"]
    return {
        "step_ms": step,
        "exposed_ms": total["exposed_comm_us"] / total["span_us"] * step,
        "hidden_ms": total["overlapped_us"] / total["span_us"] * step,
        "overlap_fraction": total["overlap_fraction"],
        "peak_bytes": max(int((folder / f"peak-{rank}").read_text()) for rank in range(ranks)),
    }


def schedules(layout: str, pairs: int, steps: int, accumulate: int) -> dict[str, Any]:
    """Medians over rounds of all schedules, and what each gains on the serial run of its round."""
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as name:
        for i in range(pairs):
            order = SCHEDULES if i % 2 else SCHEDULES[::-1]
            rounds.append({s: one_run(Path(name), layout, s, steps, accumulate) for s in order})
            told = ", ".join(f"{s} {rounds[-1][s]['step_ms']:.0f} ms" for s in SCHEDULES)
            print(f"  {layout} round {i + 1}/{pairs}: {told}", file=sys.stderr)
    result: dict[str, Any] = {"layout": layout, "rounds": pairs}
    for s in SCHEDULES:
        result[s] = {key: median(r[s][key] for r in rounds) for key in rounds[0][s]}
        for key in ("step_ms", "exposed_ms"):
            result[s][f"{key}_less_than_serial"] = sorted(r["serial"][key] - r[s][key] for r in rounds)
    return result


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
    """Prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--accumulate", type=int, default=4)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    a = parser.parse_args()
    side = averaging(4 * a.steps)
    print(
        f"average on the side: step {side['with_ms']:.1f} ms, without {side['without_ms']:.1f} ms; "
        f"waited {side['waited_ms_a_step']:.3f} ms a step"
    )
    rows = [schedules(layout, a.pairs, a.steps, a.accumulate) for layout in a.layouts]
    print(f"{'ranks':12} {'schedule':12} {'step ms':>8} {'exposed':>8} {'hidden':>8} {'overlap':>8} {'peak MB':>8}")
    for row in rows:
        for s in SCHEDULES:
            r = row[s]
            print(
                f"{row['layout']:12} {s:12} {r['step_ms']:8.1f} {r['exposed_ms']:8.1f} {r['hidden_ms']:8.1f} "
                f"{r['overlap_fraction']:8.1%} {r['peak_bytes'] / 1e6:8.0f}"
            )
    result = {"wire": "emulated (modelled)", "accumulate": a.accumulate, "averaging": side, "runs": rows}
    save("training", "python -m benchmarks.training", result)


if __name__ == "__main__":
    main()
