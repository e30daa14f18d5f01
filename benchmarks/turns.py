"""Runs `turns_target` on real ranks, alone or recorded, and reads what came of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median, quantiles
from typing import Any

from moescope.profiler.overlap.intervals import length
from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows, sweep
from moescope.profiler.source import open_source

TARGET = Path(__file__).with_name("turns_target.py")


@dataclass(frozen=True)
class Layout:
    """Ranks, dealt out evenly to nodes."""

    ranks: int
    nodes: int = 1

    def __str__(self) -> str:
        return f"{self.ranks} ranks" if self.nodes == 1 else f"{self.nodes} nodes x {self.ranks // self.nodes}"


@dataclass(frozen=True)
class Turn:
    """A few steps by one schedule, mean over the ranks; ms.

    step: the median step; waited: the computing thread, for dispatch and combine, in the median step
    exposed, hidden: communication with and without computation beside it, a step; None where nothing was recorded
    """

    round: int
    schedule: str
    step: float
    waited: float
    exposed: float | None = None
    hidden: float | None = None


def run_turns(
    folder: Path,
    stage: str,
    schedules: Sequence[str],
    *,
    rounds: int,
    steps: int,
    layout: Layout = Layout(2),
    accumulate: int = 1,
    recorded: bool = False,
) -> tuple[list[Turn], int]:
    """All turns but those of the first round, and the largest resident size of a rank, bytes.

    recorded: under `moescope run`, with every operator of every step
    """
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={layout.ranks}"]
    numbers = [f"--rounds={rounds}", f"--steps={steps}", f"--accumulate={accumulate}", f"--nodes={layout.nodes}"]
    command = [*launcher, str(TARGET), str(folder), stage, *numbers, "--schedules", *schedules]
    if recorded:
        recorder = [sys.executable, "-m", "moescope", "run", "--steps", "0:1000000000", "-f", "-o", str(folder / "rec")]
        command = [*recorder, "--", *command]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}:\n{done.stderr}")
    told = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(layout.ranks)]
    communicated = _communicated(folder / "rec", stage, told) if recorded else None
    turns = []
    for number, of_ranks in enumerate(zip(*(one["turns"] for one in told), strict=True)):
        first = of_ranks[0]
        step, waited = (mean(median(turn[key]) for turn in of_ranks) / 1e6 for key in ("step_ns", "waited_ns"))
        shares = (None, None) if communicated is None else communicated[number]
        turns.append(Turn(first["round"], first["schedule"], step, waited, *shares))
    return [turn for turn in turns if turn.round], max(one["peak_bytes"] for one in told)


def _communicated(recording: Path, stage: str, told: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """Exposed and hidden communication of each turn, ms a step, mean over the ranks."""
    source = open_source([recording])
    windows = recorded_windows(source)
    devices = {device.rank: device for device in kernels_by_device(source.table("kernels"))}
    rows = [row for row in source.table("steps").to_pylist() if row["stage"] == stage]
    found: list[list[tuple[float, float]]] = []
    for rank, one in enumerate(told):
        steps = sorted((row["start_ns"], row["start_ns"] + row["dur_ns"]) for row in rows if row["rank"] == rank)
        of_rank = []
        for turn in one["turns"]:
            count = len(turn["step_ns"])
            mine, steps = steps[:count], steps[count:]
            swept = sweep(devices[rank], windows.get(rank), (mine[0][0], mine[-1][1]))
            covered = swept.span_ns / (mine[-1][1] - mine[0][0])
            if covered < 0.9 and turn["round"]:
                raise SystemExit(f"rank {rank}: only {covered:.0%} of a turn was recorded; run again")
            of_rank.append(tuple(length(part) / covered / count / 1e6 for part in (swept.exposed, swept.overlapped)))
        if steps:
            raise SystemExit(f"rank {rank}: {len(steps)} steps were recorded that belong to no turn")
        found.append(of_rank)
    return [(mean(a for a, _ in turn), mean(b for _, b in turn)) for turn in zip(*found, strict=True)]


def by_schedule(turns: Sequence[Turn]) -> dict[str, list[Turn]]:
    """Of each schedule, in the order of the rounds."""
    names = dict.fromkeys(turn.schedule for turn in turns)
    return {name: sorted((t for t in turns if t.schedule == name), key=lambda t: t.round) for name in names}


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the pairs."""
    low, middle, high = quantiles(ratios, n=4, method="inclusive")
    return {"median": middle, "lower_quartile": low, "upper_quartile": high}
