"""Keeps a benchmark's result with the command and the machine that made it."""

from __future__ import annotations

import json
import platform
import sys
import time
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")


def save(name: str, command: str, result: dict[str, Any]) -> Path:
    """Writes benchmarks/results/<name>.json."""
    from moescope.collectors.samplers.hardware import cpu_model, usable_cores

    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    head = {
        "command": command,
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{cpu_model()}, {usable_cores()} cores",
        "python": platform.python_version(),
    }
    path.write_text(json.dumps(head | result, indent=1) + "\n")
    print(f"kept in {path}", file=sys.stderr)
    return path
