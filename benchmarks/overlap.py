"""What the overlapped schedule hides, and what the run gains by it: paired runs of both schedules, interleaved.

python -m benchmarks.overlap [--pairs 5] [--steps 30] [--stages train prefill decode]

Both schedules run under moescope at the default budget. Step times are the median of all recorded steps of both ranks;
exposed and hidden communication are shares of the recorded time, times the step. The wire is emulated (modelled).
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
from moescope.profiler.commands.demo import target_command
from moescope.profiler.source import open_source

WARM_UP = 4


def one_run(folder: Path, stage: str, schedule: str, steps: int) -> dict[str, float]:
    """ms of a step: all of it, exposed and hidden communication."""
    recording = folder / f"{stage}-{schedule}"
    moescope = (sys.executable, "-m", "moescope")
    command = (*moescope, "run", "-f", "-o", str(recording), "--", *target_command(stage, 2, steps, schedule))
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
    }


def paired(stage: str, pairs: int, steps: int) -> dict[str, Any]:
    """Medians over the pairs."""
    runs: dict[str, list[dict[str, float]]] = {"serial": [], "overlapped": []}
    with tempfile.TemporaryDirectory() as name:
        for i in range(pairs):
            for schedule in sorted(runs, reverse=bool(i % 2)):
                runs[schedule].append(one_run(Path(name), stage, schedule, steps))
            gain = 1 - runs["overlapped"][-1]["step_ms"] / runs["serial"][-1]["step_ms"]
            print(f"  {stage:>7} pair {i + 1:>2}/{pairs}: step {gain:+.1%} shorter", file=sys.stderr)
    both = {s: {key: median(run[key] for run in found) for key in found[0]} for s, found in runs.items()}
    gained = [a["step_ms"] - b["step_ms"] for a, b in zip(runs["serial"], runs["overlapped"], strict=True)]
    return {"stage": stage, "pairs": pairs, **both, "gained_ms": median(gained), "gained_ms_range": sorted(gained)}


def main() -> None:
    """Prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--stages", nargs="+", default=["train", "prefill", "decode"])
    a = parser.parse_args()
    rows = [paired(stage, a.pairs, a.steps) for stage in a.stages]
    print(f"{'stage':8} {'schedule':11} {'step ms':>8} {'exposed':>8} {'hidden':>8} {'overlap':>8} {'gained':>8}")
    for row in rows:
        for schedule in ("serial", "overlapped"):
            r = row[schedule]
            gained = f"{row['gained_ms']:8.1f}" if schedule == "overlapped" else ""
            print(
                f"{row['stage']:8} {schedule:11} {r['step_ms']:8.1f} {r['exposed_ms']:8.1f} {r['hidden_ms']:8.1f} "
                f"{r['overlap_fraction']:8.1%} {gained}"
            )
    save("overlap", "python -m benchmarks.overlap", {"wire": "emulated (modelled)", "runs": rows})


if __name__ == "__main__":
    main()
