"""What recording costs the demo's training step: paired runs with and without moescope, interleaved.

    python -m benchmarks.overhead [--pairs 20] [--steps 70]

Each run's first steps are left out (imports, first allocations). The ratio of a pair is the median step with moescope
over the median step of the run beside it without; the order inside a pair alternates. Beside the median ratio stands
the interval that holds the true one 95 % of the time, however ratios are distributed, by their order.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from math import comb
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.report import save

WARM_UP = 10
TARGET = Path(__file__).with_name("step_target.py")


def one_run(folder: Path, steps: int, budget: str | None) -> tuple[float, dict[str, Any]]:
    """Median step, ns, and what the recording says of its own cost."""
    output = folder / "steps.json"
    output.unlink(missing_ok=True)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command = [*launcher, str(TARGET), str(output), str(steps)]
    if budget is not None:
        recording = folder / "rec"
        command = [
            sys.executable,
            "-m",
            "moescope",
            "run",
            "-f",
            "-o",
            str(recording),
            "--budget",
            budget,
            "--",
            *command,
        ]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    durations = json.loads(output.read_text())[WARM_UP:]
    facts = json.loads((folder / "rec/meta.json").read_text()) if budget is not None else {}
    return float(median(durations)), facts


def paired(pairs: int, steps: int, budget: str) -> dict[str, Any]:
    """Ratios of `pairs` pairs at one budget."""
    ratios, plain_ns, own = [], [], []
    with tempfile.TemporaryDirectory() as name:
        for i in range(pairs):
            runs: dict[bool, tuple[float, dict[str, Any]]] = {}
            for observed in (i % 2 == 0, i % 2 == 1):
                runs[observed] = one_run(Path(name), steps, budget if observed else None)
            ratios.append(runs[True][0] / runs[False][0])
            plain_ns.append(runs[False][0])
            own += [row["cost_share"] for row in runs[True][1]["ranks"]]
            print(f"  {budget:>5} pair {i + 1:>2}/{pairs}: ratio {ratios[-1]:.4f}", file=sys.stderr)
    low, _, high = quantiles(ratios, n=4)
    place = _outer(pairs)
    return {
        "budget": budget,
        "pairs": pairs,
        "median_ratio": median(ratios),
        "interval_95": [sorted(ratios)[place], sorted(ratios)[-1 - place]],
        "quartiles": [low, high],
        "range": [min(ratios), max(ratios)],
        "plain_step_ms": median(plain_ns) / 1e6,
        "cost_share_told_by_moescope": median(own),
        "ratios": ratios,
    }


def _outer(count: int) -> int:
    """How many of so many sorted values lie below an interval that holds their median 95 % of the time, and above."""
    below, place = 0.0, 0
    while place < count // 2:
        below += comb(count, place) / 2**count
        if below > 0.025:
            break
        place += 1
    return max(place - 1, 0)


def main() -> None:
    """Runs both budgets, prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--full-pairs", type=int, default=5)
    parser.add_argument("--steps", type=int, default=70)
    a = parser.parse_args()
    rows = [paired(a.pairs, a.steps, "2%")]
    if a.full_pairs >= 2:
        rows.append(paired(a.full_pairs, a.steps, "full"))
    for row in rows:
        (low, high), (least, most) = row["quartiles"], row["interval_95"]
        print(
            f"budget {row['budget']:>4}: median step ratio {row['median_ratio']:.4f} ({least:.4f}-{most:.4f} at 95%, "
            f"quartiles {low:.4f}-{high:.4f}, {row['pairs']} pairs), step without {row['plain_step_ms']:.1f} ms, "
            f"moescope's own reckoning {row['cost_share_told_by_moescope']:.2%}"
        )
    save("overhead", "python -m benchmarks.overhead", {"runs": rows})


if __name__ == "__main__":
    main()
