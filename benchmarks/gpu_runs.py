"""Whole runs of the stack on a GPU, through the profiler: what overlap hides, and what recording costs.

Parts of `make gpu-check` (`benchmarks.gpu_sections overlap recorder`). Virtual ranks in one GPU; every figure is of the
recording's summary or of the target's own clock. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_figure import Figure
from benchmarks.process import Failed, output_of

if TYPE_CHECKING:
    from benchmarks.gpu_timing import Bench

STAGES = {"train": 12, "decode": 48, "prefill": 24}
"""Steps of a run."""
GRAPHED = {"decode": ("overlapped --graphs",)}
"""Further ways to run a stage: a schedule, and options."""
PAIRS, PAIR_STEPS = 3, 60
LIMIT_S = 120
"""Of one run."""


def overlap(b: Bench) -> Iterator[Figure]:
    """Communication that nothing hides, in each stage, serial and with two micro-batches overlapped."""
    for stage, steps in STAGES.items():
        ways = ("overlapped",) if b.rehearsal else ("serial", "overlapped", *GRAPHED.get(stage, ()))
        for way in ways:
            name, (schedule, *options) = f"{stage}, {way}", way.split(" ")
            try:
                summary, step_ms = _recorded(b, stage, b.size(steps, 6), schedule, *options)
            except Failed as error:
                yield Figure(f"{name}: communication exposed", None, str(error))
                continue
            total = summary["total"]
            comm_us, exposed_us = total["comm_us"], total["exposed_comm_us"]
            share = exposed_us / comm_us if comm_us else None
            why = "needs a GPU: nothing communicates here" if b.rehearsal else "no kernel of an exchange was recorded"
            yield Figure(f"{name}: communication exposed", share, "of it" if share is not None else why)
            yield Figure(f"{name}: median step", step_ms, "ms")
        if b.rehearsal:
            return


def recorder(b: Bench) -> Iterator[Figure]:
    """A training step with the recorder beside it against one without, in pairs of runs."""
    ratios = []
    steps = b.size(PAIR_STEPS, 3)
    try:
        for pair in range(b.size(PAIRS, 1)):
            taken: dict[bool, float] = {}
            for observed in (pair % 2 == 0, pair % 2 == 1):
                taken[observed] = _recorded(b, "train", steps, "overlapped")[1] if observed else _plain(b, steps)
            ratios.append(taken[True] / taken[False])
    except Failed as error:
        yield Figure("step with the recorder", None, str(error))
        return
    yield Figure(f"step with the recorder, median of {len(ratios)} pairs", median(ratios) - 1, "longer than without")
    yield Figure("the same, the pair with most", max(ratios) - 1, "longer than without")


def _target(b: Bench, stage: str, steps: int, schedule: str, *more: str) -> list[str]:
    size = "tiny" if b.rehearsal else "lite"
    options = (f"--steps={steps}", f"--schedule={schedule}", f"--device={b.device.type}", f"--size={size}", *more)
    return [sys.executable, "-m", "moescope.instrumented_model", stage, "--virtual-ranks=4", *options]


def _recorded(b: Bench, stage: str, steps: int, schedule: str, *more: str) -> tuple[dict[str, Any], float]:
    """The summary of a recorded run, and its median step in ms."""
    with tempfile.TemporaryDirectory() as folder:
        own, target = [sys.executable, "-m", "moescope"], _target(b, stage, steps, schedule, *more)
        said = output_of([*own, "run", "-o", f"{folder}/rec", "--", *target], LIMIT_S)
        summary = json.loads(output_of([*own, "summary", f"{folder}/rec", "--json"], LIMIT_S))
    return summary, _step_ms(said)


def _plain(b: Bench, steps: int) -> float:
    return _step_ms(output_of(_target(b, "train", steps, "overlapped"), LIMIT_S))


def _step_ms(said: str) -> float:
    found = re.search(r"median step ([\d.]+) ms", said)
    if found is None:
        raise Failed("the run told no median step")
    return float(found[1])
