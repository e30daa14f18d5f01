"""What overlap gains: steps of each schedule in turn, in one run of two ranks, each turn held against serial beside it.

python -m benchmarks.overlap [--rounds 20] [--stages train prefill decode] [--quick]

Size tiny, the emulated wire (modelled). Every round takes a few steps by each schedule, forward in one round, backward
in the next, so a ratio is of turns that lie side by side. Each stage runs twice. Alone: step times, and how long the
computing thread waited for an exchange, by the target's own clock. Recorded, every operator of every step, which slows
steps down: exposed and hidden communication by the profiler's definitions. The two differ, by definition. An exchange
that runs beside the interpreter, between operators, is exposed and nothing waits for it; and one that began early lasts
until the other rank has begun it too. Steps of decode are mostly interpreter, so look at what was waited there.

The best step that overlap could give is what is longer of computing and waiting in the serial step: derived, and out of
reach, since the first attention of a pass has nothing to run beside.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.report import save
from benchmarks.turns import Turn, by_schedule, run_turns, spread

STAGES = {
    "train": (("serial", "overlapped", "interleaved"), 2),
    "prefill": (("serial", "overlapped"), 4),
    "decode": (("serial", "overlapped"), 6),
}
"""Schedules and steps of a turn."""
ACCUMULATE = 2
"""Groups of two micro-batches in a step of training: four, so that one goes forward while another goes back."""


def measured(stage: str, rounds: int) -> dict[str, Any]:
    """Both runs of a stage, with the ratios of every schedule to serial."""
    (schedules, steps), accumulate = STAGES[stage], ACCUMULATE if stage == "train" else 1
    found: dict[bool, dict[str, list[Turn]]] = {}
    with tempfile.TemporaryDirectory() as name:
        for recorded in (False, True):
            print(f"  {stage}, {'recorded' if recorded else 'alone'} …", file=sys.stderr)
            turns, _ = run_turns(
                Path(name), stage, schedules, rounds=rounds, steps=steps, accumulate=accumulate, recorded=recorded
            )
            found[recorded] = by_schedule(turns)
    serial = found[False]["serial"]
    best = median(max(t.waited, t.step - t.waited) / t.step for t in serial)
    result: dict[str, Any] = {"stage": stage, "rounds": rounds, "steps_a_turn": steps, "best_step_ratio": best}
    for schedule in schedules:
        alone, seen = found[False][schedule], found[True][schedule]
        exposed = [_known(t.exposed) for t in seen]
        result[schedule] = {
            "step_ms": median(t.step for t in alone),
            "waited_ms": median(t.waited for t in alone),
            "exposed_ms": median(exposed),
            "hidden_ms": median(_known(t.hidden) for t in seen),
            "recorded_step_ms": median(t.step for t in seen),
        }
        if schedule != "serial":
            beside = [_known(t.exposed) for t in found[True]["serial"]]
            result[schedule] |= {
                "step_ratio": spread([a.step / b.step for a, b in zip(alone, serial, strict=True)]),
                "waited_ratio": spread([a.waited / b.waited for a, b in zip(alone, serial, strict=True)]),
                "exposed_ratio": spread([a / b for a, b in zip(exposed, beside, strict=True)]),
            }
    return result


def _known(value: float | None) -> float:
    if value is None:
        raise SystemExit("a turn was not recorded")
    return value


def main() -> None:
    """Prints the result, and keeps it unless it is a quick look."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES))
    parser.add_argument("--quick", action="store_true", help="four rounds; prints, keeps nothing")
    a = parser.parse_args()
    rows = [measured(stage, 4 if a.quick else a.rounds) for stage in a.stages]
    head = f"{'stage':8} {'schedule':12} {'step ms':>8} {'waited':>7} {'exposed':>8} {'hidden':>7}"
    print(f"{head}   of serial: step, exposed (quartiles)")
    for row in rows:
        for schedule in STAGES[row["stage"]][0]:
            r = row[schedule]
            figures = f"{r['step_ms']:8.1f} {r['waited_ms']:7.1f} {r['exposed_ms']:8.1f} {r['hidden_ms']:7.1f}"
            print(f"{row['stage']:8} {schedule:12} {figures}   {_ratios(r)}")
        print(f"{row['stage']:8} {'at best':12} {'':33}   {row['best_step_ratio']:.2f}")
    if not a.quick:
        save("overlap", "python -m benchmarks.overlap", {"wire": "emulated (modelled)", "runs": rows})


def _ratios(figures: dict[str, Any]) -> str:
    def told(r: dict[str, float]) -> str:
        return f"{r['median']:.2f} ({r['lower_quartile']:.2f}-{r['upper_quartile']:.2f})"

    return "  ".join(told(figures[key]) for key in ("step_ratio", "exposed_ratio") if key in figures)


if __name__ == "__main__":
    main()
