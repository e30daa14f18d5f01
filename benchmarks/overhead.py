"""What recording costs the demo's training step: paired runs with and without moescope, which take turns.

    python -m benchmarks.overhead [--pairs 20] [--full-pairs 6] [--turns 80] [--control]

A machine that others use too is now fast and now slow, for seconds and for minutes, by more than recording costs. So
both runs of a pair are alive at the same time and take turns of two steps: what happens to the machine happens to both.
While it is the other's turn the recorder stands still (SIGSTOP), so that all it does it does in turns of the run that
it records. The first turns are left out (imports, first allocations). The ratio of a pair is the mean step with
moescope over the mean step without. Beside the median ratio stands the interval that holds the true one 95 % of the
time, however ratios are distributed, by their order. `--control` records neither run: what the method itself shows.

A budget is a share of the time, and a run that takes turns works for half of it. The recorded one is given half the
budget, which lets it record as large a part of its steps, at the same cost for each, as the whole budget does a run
that is never stopped (`full` knows no half); and what the recorder does by the clock it does half as often
(`half_pace`).
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from math import comb
from pathlib import Path
from statistics import fmean, median, quantiles
from typing import Any

from benchmarks.process import end
from benchmarks.report import save

WARM_UP = 20
"""Turns: what is imported, allocated and looked up for the first time is no part of a step, in the recorder either."""
STEPS = 2
"""In a turn: in the window's eyes a run whose steps last now one time, now three times, is still a steady one."""
FEWEST = 6
"""Pairs that an interval at 95 % takes."""
RANKS = 2
PATIENCE_S = 120.0
TARGET = Path(__file__).with_name("step_target.py")


class Run:
    """The training, waiting for its turn; with moescope where there is a budget."""

    def __init__(self, folder: Path, turns: int, budget: str | None) -> None:
        self._folder = folder
        self._recorded = budget is not None
        folder.mkdir()
        names = [*(f"go.{rank}" for rank in range(RANKS)), "done"]
        for name in names:
            os.mkfifo(folder / name)
        *self._go, self._done = (os.open(folder / name, os.O_RDWR) for name in names)
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
        command = [sys.executable, *launcher, str(TARGET), str(folder), str(turns), str(STEPS)]
        if budget is not None:
            own = ["-m", "benchmarks.half_pace", "run", "-f", "-o", str(folder / "rec"), "--budget", budget, "--"]
            command = [sys.executable, *own, *command]
        env = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def turn(self) -> None:
        """Lets it work for a turn."""
        if self._recorded:
            self._process.send_signal(signal.SIGCONT)
        for go in self._go:
            os.write(go, b".")
        until_s = time.monotonic() + PATIENCE_S
        while not select.select([self._done], [], [], 1.0)[0]:
            if self._process.poll() is not None:
                raise RuntimeError(f"the run ended within its turns, with exit code {self._process.returncode}")
            if time.monotonic() > until_s:
                raise TimeoutError(f"a turn took more than {PATIENCE_S:g} s")
        os.read(self._done, 1)
        if self._recorded:
            self._process.send_signal(signal.SIGSTOP)

    def end(self) -> None:
        """Leaves nothing running, whatever it is at."""
        if self._process.poll() is None:
            end(self._process.pid)
            self._process.wait()

    def recorder_s(self) -> float:
        """CPU time of moescope's own process so far."""
        threads = Path(f"/proc/{self._process.pid}/task").glob("*/schedstat")
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

    def finish(self) -> tuple[float, float, dict[str, Any]]:
        """ns a step took, turns after the first ones, and CPU time of a rank meanwhile; what was recorded on that."""
        if self._recorded:
            self._process.send_signal(signal.SIGCONT)
        for go in self._go:
            os.write(go, b".")
        if self._process.wait(PATIENCE_S):
            raise RuntimeError(f"the run ended with exit code {self._process.returncode}")
        for fifo in (*self._go, self._done):
            os.close(fifo)
        turns = json.loads((self._folder / "turns.json").read_text())[WARM_UP:]
        meta = json.loads((self._folder / "rec/meta.json").read_text()) if self._recorded else {}
        return fmean(wall for wall, _ in turns), fmean(cpu for _, cpu in turns), meta


def pair(folder: Path, turns: int, budget: str | None, first: bool) -> dict[str, Any]:
    """Ratios of the mean steps and of a rank's CPU; first: the recorded run is started first, and begins."""
    if first:
        observed, plain = Run(folder / "observed", turns, budget), Run(folder / "plain", turns, None)
    else:
        plain, observed = Run(folder / "plain", turns, None), Run(folder / "observed", turns, budget)
    before_s = 0.0
    try:
        for i in range(turns):
            if i == WARM_UP:
                before_s = observed.recorder_s()
            for run in (observed, plain) if first else (plain, observed):
                run.turn()
        recorder_s = observed.recorder_s() - before_s if budget is not None else 0.0
        (with_ns, with_cpu_ns, meta), (without_ns, without_cpu_ns, _) = observed.finish(), plain.finish()
    finally:
        observed.end()
        plain.end()
    return {
        "ratio": with_ns / without_ns,
        "cpu_ratio": with_cpu_ns / without_cpu_ns,
        "plain_step_ms": without_ns / 1e6,
        "recorder_ms": 1e3 * recorder_s / ((turns - WARM_UP) * STEPS),
        "told": median([row["cost_share"] for row in meta.get("ranks", [])] or [0.0]),
    }


def paired(pairs: int, turns: int, budget: str | None, given: str | None) -> dict[str, Any]:
    """Ratios of `pairs` pairs at one budget; given: what the recorded run gets of it."""
    rows = []
    for i in range(pairs):
        with tempfile.TemporaryDirectory() as name:
            rows.append(pair(Path(name), turns, given, i % 2 == 0))
        told = ", ".join(f"{key} {value:.4f}" for key, value in rows[-1].items())
        print(f"  {budget or 'none':>5} pair {i + 1:>2}/{pairs}: {told}", file=sys.stderr)
    ratios = [row["ratio"] for row in rows]
    low, _, high = quantiles(ratios, n=4)
    place = _outer(pairs)
    return {
        "budget": budget,
        "pairs": pairs,
        "turns": turns - WARM_UP,
        "steps_a_turn": STEPS,
        "median_ratio": median(ratios),
        "interval_95": [sorted(ratios)[place], sorted(ratios)[-1 - place]] if pairs >= FEWEST else None,
        "quartiles": [low, high],
        "range": [min(ratios), max(ratios)],
        "median_cpu_ratio_of_a_rank": median(row["cpu_ratio"] for row in rows),
        "plain_step_ms": median(row["plain_step_ms"] for row in rows),
        "recorder_cpu_ms_a_step": median(row["recorder_ms"] for row in rows),
        "cost_share_told_by_moescope": 2 * median(row["told"] for row in rows),
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
    """Runs what is asked for, prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--full-pairs", type=int, default=6)
    parser.add_argument("--turns", type=int, default=80)
    parser.add_argument("--control", action="store_true", help="pairs of which neither is recorded, beside the others")
    a = parser.parse_args()
    rows = []
    if a.pairs >= 2:
        rows.append(paired(a.pairs, a.turns, "2%", "1%"))
    if a.full_pairs >= 2:
        rows.append(paired(a.full_pairs, a.turns, "full", "full"))
    if a.control:
        rows.append(paired(a.pairs, a.turns, None, None))
    for row in rows:
        low, high = row["quartiles"]
        least, most = row["interval_95"] or row["range"]
        print(
            f"budget {row['budget'] or 'none':>4}: median step ratio {row['median_ratio']:.4f} ({least:.4f}-{most:.4f} "
            f"{'at 95%' if row['interval_95'] else 'in all'}, quartiles {low:.4f}-{high:.4f}, {row['pairs']} pairs), "
            f"CPU of a rank {row['median_cpu_ratio_of_a_rank']:.4f}, step without {row['plain_step_ms']:.1f} ms, "
            f"recorder {row['recorder_cpu_ms_a_step']:.2f} ms a step, by moescope's own reckoning "
            f"{row['cost_share_told_by_moescope']:.2%}"
        )
    options = "" if sys.argv[1:] == [] else " " + " ".join(sys.argv[1:])
    save("overhead", f"python -m benchmarks.overhead{options}", {"runs": rows})


if __name__ == "__main__":
    main()
