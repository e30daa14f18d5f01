"""What this machine is: cores, memory, links, GPUs, and the peaks that were measured on it."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from moescope.collectors.calibrate import load_gpu_peaks, load_peaks
from moescope.collectors.samplers.device import memory
from moescope.collectors.samplers.nvml_topology import describe_gpus


def describe(root: Path = Path("/")) -> dict[str, Any]:
    """For meta.json; a part that cannot be told is null with a reason beside it."""
    total, _ = memory(root)
    return {
        "cores": usable_cores(root),
        "cores_online": os.cpu_count(),
        "cpu": cpu_model(root),
        "memory_bytes": total,
        "kernel": platform.release(),
        "machine": platform.machine(),
        **describe_gpus(),
        "gpu_peaks": load_gpu_peaks(),
        "peaks": load_peaks() or {},
        **({} if load_peaks() else {"peaks_reason": "not measured on this machine: run `moescope calibrate`"}),
    }


def usable_cores(root: Path = Path("/")) -> int:
    """Cores this process may use: its affinity, bounded by the control group's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = (root / "sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))


def cpu_model(root: Path = Path("/")) -> str:
    """The processor's own name."""
    try:
        lines = (root / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown"
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
