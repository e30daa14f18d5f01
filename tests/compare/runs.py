"""Runs whose steps are chosen: what each holds is known before anything is analysed."""

from __future__ import annotations

from typing import Any

from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, kernel, phase, step

US = 1_000
BORN = 1_700_000_000_000_000_000


def run(
    steps: list[tuple[int, int, int]],
    *,
    ranks: int = 1,
    stage: str | None = "train",
    device: str = "AMD EPYC",
    told: bool = True,
) -> MemorySource:
    """Each step is (compute, exposed, idle) in µs, in this order; its communication lies in `dispatch(F)`.

    told: whether the run tells its steps
    """
    hardware = {"cpu": device}
    meta: dict[str, Any] = {
        "ranks": [{"rank": rank, "world_size": ranks} for rank in range(ranks)],
        "hardware": hardware,
    }
    source = MemorySource(meta=meta)
    kernels, phases, rows = [], [], []
    for rank in range(ranks):
        at = BORN
        for number, (compute, exposed, idle) in enumerate(steps):
            middle, end = at + compute * US, at + (compute + exposed) * US
            kernels.append(kernel(at, middle - at, rank=rank, phase_id=-1) | {"phase_id": None})
            if exposed:
                kernels.append(kernel(middle, end - middle, "comm", rank=rank, phase_id=number))
                phases.append(phase(number, "dispatch(F)", middle, end - middle, rank=rank))
            lasts = (compute + exposed + idle) * US
            rows.append(step(number, at, lasts, rank=rank, stage=stage))
            at += lasts
    source.add("kernels", kernels).add("phases", phases)
    return source.add("steps", rows) if told else source


def summary(steps: list[tuple[int, int, int]], **more: Any) -> dict[str, Any]:
    """The answer of `summary --json` for such a run."""
    return summarise(run(steps, **more))
