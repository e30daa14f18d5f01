"""How well what-if projections hold: predicts runs of the stack from one another and says how far it was off.

python -m benchmarks.whatif [--rounds 2] [--steps 8] [--quick]

Two ranks train with size tiny over an emulated wire (modelled) of two rates, the faster one four times the other with a
quarter of the latency, by each schedule. Every run is recorded, every operator of some steps. From each run that of the
other wire is predicted (`link-x4`, `link-x0.25`), and its measured median step is held against the predicted one and
its bounds. Runs of one round lie side by side. Machines are noisy: how far two runs of the same wire lie apart, a round
later, stands beside the errors, and no prediction can be better than that. So does what taking no change at all for
the prediction would be off by. `replay_error` is that of each run's unchanged graph.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import save
from moescope.profiler.source import open_source
from moescope.profiler.whatif.project import project

LINKS = {"slow": "5MB/s:1200us", "fast": "20MB/s:300us"}
FACTORS = {"slow": 4.0, "fast": 0.25}
"""What turns each into the other."""
SCHEDULES = ("serial", "overlapped")
SKIPPED = 2
"""First steps, which are not recorded."""


@dataclass(frozen=True)
class Run:
    """ms; step: measured median; predicted, low, high: the other wire's step; replay_error: of the unchanged graph"""

    round: int
    schedule: str
    link: str
    step: float
    predicted: float
    low: float
    high: float
    replay_error: float


def recorded(folder: Path, number: int, schedule: str, link: str, steps: int) -> Run:
    """One run and what is predicted from it."""
    target = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    target += ["-m", "moescope.instrumented_model", "train", "--steps", str(SKIPPED + steps + 1)]
    target += ["--link", LINKS[link], "--schedule", schedule]
    where = folder / f"{number}-{schedule}-{link}"
    recorder = [sys.executable, "-m", "moescope", "run", "--steps", f"{SKIPPED}:{SKIPPED + steps}", "-o", str(where)]
    done = subprocess.run([*recorder, "--", *target], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(target)} ended with {done.returncode}:\n{done.stderr}")
    factor = FACTORS[link]
    found = project(open_source([where]), (), (factor,))
    if found is None or found.step_ns is None:
        raise SystemExit(f"{where}: no whole step was recorded; run again")
    one = next(one for one in found.projections if one.scenario.id == f"link-x{factor:g}")
    if one.step_ns is None:
        raise SystemExit(f"{where}: no whole step was projected; run again")
    # Bounds are of the whole stretch: a step's are taken in proportion.
    low, high = (value / one.span.estimate * one.step_ns / 1e6 for value in (one.span.low, one.span.high))
    return Run(
        round=number,
        schedule=schedule,
        link=link,
        step=found.step_ns / 1e6,
        predicted=one.step_ns / 1e6,
        low=low,
        high=high,
        replay_error=found.replay_error_ns / 1e6,
    )


def compared(runs: list[Run]) -> list[dict[str, Any]]:
    """For each schedule and wire that is predicted: errors of the predictions, and of taking no change for one."""
    rows = []
    for schedule in SCHEDULES:
        of = {(run.round, run.link): run for run in runs if run.schedule == schedule}
        rounds = sorted({number for number, _ in of})
        for source, target in (("slow", "fast"), ("fast", "slow")):
            pairs = [(of[number, source], of[number, target]) for number in rounds]
            errors = [a.predicted / b.step - 1 for a, b in pairs]
            worst = max(errors, key=abs)
            noise = [abs(of[n, target].step / of[m, target].step - 1) for n, m in pairwise(rounds)]
            rows.append(
                {
                    "schedule": schedule,
                    "from": LINKS[source],
                    "to": LINKS[target],
                    "rounds": len(pairs),
                    "recorded_step_ms": round(median(a.step for a, _ in pairs), 2),
                    "predicted_step_ms": round(median(a.predicted for a, _ in pairs), 2),
                    "measured_step_ms": round(median(b.step for _, b in pairs), 2),
                    "error_median": round(median(errors), 4),
                    "error_worst": round(worst, 4),
                    "error_of_no_change_median": round(median(a.step / b.step - 1 for a, b in pairs), 4),
                    "within_bounds": sum(a.low <= b.step <= a.high for a, b in pairs),
                    "same_wire_a_round_apart_median": round(median(noise), 4) if noise else None,
                    "replay_error_worst_ms": max(a.replay_error for a, _ in pairs),
                }
            )
    return rows


def main() -> None:
    """Prints the result, and keeps it unless it is a quick look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="one round of six steps; prints, keeps nothing")
    a = parser.parse_args()
    runs = []
    with tempfile.TemporaryDirectory() as name:
        for number in range(1 if a.quick else a.rounds):
            for schedule in SCHEDULES:
                for link in LINKS:
                    print(f"  round {number}, {schedule}, {LINKS[link]} …", file=sys.stderr)
                    runs.append(recorded(Path(name), number, schedule, link, 6 if a.quick else a.steps))
    rows = compared(runs)
    head = f"{'schedule':12} {'from':>13} {'to':>13} {'step':>8} {'predicted':>9} {'measured':>8}"
    print(f"{head} {'error':>7} {'worst':>7}")
    for row in rows:
        figures = f"{row['recorded_step_ms']:8.1f} {row['predicted_step_ms']:9.1f} {row['measured_step_ms']:8.1f}"
        told = f"{row['error_median']:+7.1%} {row['error_worst']:+7.1%}"
        print(f"{row['schedule']:12} {row['from']:>13} {row['to']:>13} {figures} {told}")
    if not a.quick:
        save(
            "whatif",
            "python -m benchmarks.whatif",
            {"wire": "emulated (modelled)", "predictions": rows, "runs": [asdict(run) for run in runs]},
        )


if __name__ == "__main__":
    main()
