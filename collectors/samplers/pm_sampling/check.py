"""For `doctor`: what PM sampling would give here, by asking, with nothing taken hold of. Not yet run on a GPU."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from moescope.collectors.samplers.nvml_check import State
from moescope.collectors.samplers.pm_sampling.sampler import command, environment

_PERIOD_S, _LIMIT_S = 0.01, 30.0


def pm_sampling() -> tuple[State, str, str]:
    """State, source and note: `ok` where every GPU can be sampled."""
    found = _told()
    gpus, problems = found["gpus"], list(found["problems"])
    if not gpus:
        return "missing", "–", "; ".join(problems)
    columns = ", ".join(dict.fromkeys(column for gpu in gpus for column in gpu["columns"]))
    refused: dict[str, str] = {}
    for gpu in gpus:
        refused |= gpu["refused"]
    problems += [f"no {column}: {why}" for column, why in refused.items()]
    source = f"CUPTI PM sampling, {len(gpus)} GPU(s) ({found['cupti']})"
    notes = [f"off unless asked for (run --pm-sampling 10ms): {columns}", *problems, "not yet run on a GPU"]
    return "fallback" if found["problems"] else "ok", source, "; ".join(notes)


def _told() -> dict[str, Any]:
    """What the process that would sample says."""
    try:
        done = subprocess.run(
            [*command(_PERIOD_S), "--probe"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            env=environment(),
            timeout=_LIMIT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"gpus": [], "problems": [f"CUPTI did not answer within {_LIMIT_S:.0f} s"]}
    lines = done.stdout.splitlines()
    if not lines:
        return {"gpus": [], "problems": [f"the process that samples ended with {done.returncode}"]}
    told: dict[str, Any] = json.loads(lines[0])
    return told
