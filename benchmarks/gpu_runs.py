"""Whole runs of the stack on a GPU, through the profiler: what overlap hides, and what recording costs.

Parts of `make gpu-check` (`benchmarks.gpu_sections overlap recorder`). Virtual ranks in one GPU; every figure is of the
recording's summary or of the target's own clock. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_process import run

if TYPE_CHECKING:
    from benchmarks.gpu_timing import Bench

Told = tuple[str, float | None, str]
"""What, its value, and the unit, or why there is none."""

STAGES = {"train": 12, "prefill": 24, "decode": 48}
"""Steps of a run."""
PAIRS, PAIR_STEPS = 3, 60


class _Failed(Exception):
    """A run ended with an error; the message is the last of what it said."""


def overlap(b: Bench) -> Iterator[Told]:
    """Communication that nothing hides, in each stage, serial and with two micro-batches overlapped."""
    for stage, steps in STAGES.items():
        for schedule in ("overlapped",) if b.rehearsal else ("serial", "overlapped"):
            name = f"{stage}, {schedule}"
            try:
                summary, step_ms = _recorded(b, stage, b.size(steps, 2), schedule)
            except _Failed as error:
                yield f"{name}: communication exposed", None, str(error)
                continue
            total = summary["total"]
            comm_us, exposed_us = total["comm_us"], total["exposed_comm_us"]
            share = exposed_us / comm_us if comm_us else None
            why = "needs a GPU: nothing communicates here" if b.rehearsal else "no kernel of an exchange was recorded"
            yield f"{name}: communication exposed", share, "of it" if share is not None else why
            yield f"{name}: median step", step_ms, "ms"
        if b.rehearsal:
            return


def recorder(b: Bench) -> Iterator[Told]:
    """A training step with the recorder beside it against one without, in pairs of runs."""
    ratios = []
    steps = b.size(PAIR_STEPS, 3)
    try:
        for pair in range(b.size(PAIRS, 1)):
            taken: dict[bool, float] = {}
            for observed in (pair % 2 == 0, pair % 2 == 1):
                taken[observed] = _recorded(b, "train", steps, "overlapped")[1] if observed else _plain(b, steps)
            ratios.append(taken[True] / taken[False])
    except _Failed as error:
        yield "step with the recorder", None, str(error)
        return
    yield f"step with the recorder, median of {len(ratios)} pairs", median(ratios) - 1, "longer than without"
    yield "the same, the pair with most", max(ratios) - 1, "longer than without"


def _target(b: Bench, stage: str, steps: int, schedule: str) -> list[str]:
    size = "tiny" if b.rehearsal else "lite"
    options = (f"--steps={steps}", f"--schedule={schedule}", f"--device={b.device.type}", f"--size={size}")
    return [sys.executable, "-m", "moescope.instrumented_model", stage, "--virtual-ranks=4", *options]


def _recorded(b: Bench, stage: str, steps: int, schedule: str) -> tuple[dict[str, Any], float]:
    """The summary of a recorded run, and its median step in ms."""
    with tempfile.TemporaryDirectory() as folder:
        own = [sys.executable, "-m", "moescope"]
        said = _ran([*own, "run", "-o", f"{folder}/rec", "--", *_target(b, stage, steps, schedule)])
        summary = json.loads(_ran([*own, "summary", f"{folder}/rec", "--json"]))
    return summary, _step_ms(said)


def _plain(b: Bench, steps: int) -> float:
    return _step_ms(_ran(_target(b, "train", steps, "overlapped")))


def _step_ms(said: str) -> float:
    found = re.search(r"median step ([\d.]+) ms", said)
    if found is None:
        raise _Failed("the run told no median step")
    return float(found[1])


def _ran(command: list[str]) -> str:
    try:
        done = run(command, 120)
    except subprocess.TimeoutExpired as error:
        raise _Failed("a run took longer than two minutes") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("moescope:")]
        raise _Failed((lines or ["nothing was said"])[-1])
    return done.stdout
