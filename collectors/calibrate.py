"""Measures this machine's peaks: matrix products by type, and copy bandwidth, for roofs as found here."""

from __future__ import annotations

import json
import os
import platform
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from moescope.collectors.calibrate_gpu import gpu_peaks

# In a process of its own, so that thread settings are clean and nobody who reads peaks must import torch.
_PROGRAM = """
import json, sys, time
import torch
threads = int(sys.argv[1])
torch.set_num_threads(threads)

def best(action, work, budget_s):
    action()
    fastest, until = 1e9, time.perf_counter() + budget_s
    while time.perf_counter() < until:
        start = time.perf_counter()
        action()
        fastest = min(fastest, time.perf_counter() - start)
    return work / fastest

result = {"torch": torch.__version__}
for name, dtype in (("f32", torch.float32), ("bf16", torch.bfloat16)):
    rates = []
    for n in (256, 512, 1024):
        a, b = torch.randn(n, n).to(dtype), torch.randn(n, n).to(dtype)
        out = torch.empty(n, n, dtype=dtype)
        rates.append(best(lambda: torch.mm(a, b, out=out), 2 * n**3, 0.15))
    result[name] = max(rates)
source, target = torch.ones(1 << 26), torch.empty(1 << 26)
result["copy"] = best(lambda: target.copy_(source), 2 * source.numel() * 4, 0.3)
print(json.dumps(result))
"""


class CalibrationError(Exception):
    """The peaks cannot be measured here."""


def peaks_file() -> Path:
    """Where this host's peaks are kept."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(cache) / "moescope" / f"peaks-{socket.gethostname()}.json"


def load_peaks() -> dict[str, Any] | None:
    """What `calibrate` has measured on this host; None where it never ran or the processor is another."""
    peaks = _kept().get("peaks")
    return peaks if isinstance(peaks, dict) else None


def load_gpu_peaks() -> list[dict[str, Any]]:
    """What it has measured on this host's GPUs, an entry for each kind by `name`; empty where it has not."""
    gpus = _kept().get("gpus")
    return [gpu for gpu in gpus if isinstance(gpu, dict)] if isinstance(gpus, list) else []


def _kept() -> dict[str, Any]:
    try:
        kept = json.loads(peaks_file().read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) and kept.get("machine") == _machine() else {}


def calibrate() -> dict[str, Any]:
    """Measures, keeps and returns the peaks: FLOP/s of matrix products by type, copy bytes/s (read plus written).

    `gpus` has those of this host's GPUs (`calibrate_gpu.measure`), null with the reason where there are none.
    Raises CalibrationError where torch is missing or the measurement fails.
    """
    one = _measure(1)
    cores = len(os.sched_getaffinity(0))
    every = _measure(cores) if cores > 1 else one
    source = f"moescope calibrate, {time.strftime('%Y-%m-%d')}, torch {one['torch']}"
    label = {"evidence": "measured", "source": source}
    # A machine reaches with all of its cores at least what it reaches with one; less tells of other work on it.
    peaks: dict[str, Any] = {
        dtype: {
            "flops_per_s": max(every[dtype], one[dtype]),
            "flops_per_s_one_thread": one[dtype],
            "threads": cores,
            "disturbed": every[dtype] < one[dtype],
        }
        | label
        for dtype in ("f32", "bf16")
    }
    peaks["copy_bytes_per_s"] = {"value": max(every["copy"], one["copy"]), "one_thread": one["copy"]} | label
    gpus, reason = gpu_peaks()
    path = peaks_file()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": _machine(), "peaks": peaks, "gpus": gpus}, indent=1))
    except OSError as error:
        raise CalibrationError(f"cannot keep the peaks in {path}: {error.strerror}; set XDG_CACHE_HOME") from error
    return peaks | ({"gpus": gpus} if gpus else {"gpus": None, "gpus_reason": reason})


def _machine() -> str:
    from moescope.collectors.samplers.hardware import cpu_model

    return f"{cpu_model()} {platform.machine()} {len(os.sched_getaffinity(0))} cores"


def _measure(threads: int) -> dict[str, Any]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MOESCOPE_", "OMP_", "MKL_"))}
    command = [sys.executable, "-c", _PROGRAM, str(threads)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise CalibrationError(f"the measurement failed: {reason[0]} (it needs torch: pip install 'moescope[model]')")
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result
