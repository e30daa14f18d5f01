"""Use of the tensor cores by a GPU's counters, beside what was achieved: of a known product, and of a known copy.

Part of `make gpu-check` (`benchmarks.gpu_sections counters`). The product's counter is to lie within 5 points of what
it achieves of the peak at the clock it had; the copy's near 0. Whether kernels are still recorded while PM sampling
runs is told besides. Not yet run on a GPU.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import Sampler, SamplerUnavailable
from moescope.collectors.samplers.nvml import GpuSampler
from moescope.collectors.samplers.pm_sampling.sampler import PmSampler

if TYPE_CHECKING:
    from benchmarks.gpu_timing import Bench

Told = tuple[str, float | None, str]
"""What, its value, and the unit, or why there is none."""

SECONDS, SETTLED_S = 2.0, 0.5
"""How long work goes on, and from when on samples count."""
REHEARSED_S = 0.8

TARGET = """
import torch
a = torch.randn(1024, 1024, device="cuda")
for _ in range(40):
    for _ in range(25):
        torch.mm(a, a)
    torch.cuda.synchronize()
"""


def figures(b: Bench) -> Iterator[Told]:
    """The product and the copy by each source, then kernels recorded with PM sampling beside."""
    import torch

    n = b.size(8192, 64)
    x, w = b.random(n, n), b.random(n, n)
    source = torch.empty(b.size(1 << 30, 1 << 12), dtype=torch.uint8, device=b.device)
    to = torch.empty_like(source)
    works: dict[str, tuple[Callable[[], Any], float]] = {
        f"bf16 product {n}^3": (lambda: x @ w.T, 2 * float(n) ** 3),
        "copy within the memory": (lambda: to.copy_(source), 0.0),
    }
    for name, (work, flops) in works.items():
        for how, sampler in (
            ("GPM", GpuSampler(Clock(0, 0), "", ("device",), 0.2)),
            ("PM sampling", PmSampler(Clock(0, 0), "", 0.01)),
        ):
            used, times_s, why = _used(b, sampler, work)
            why = f"needs a GPU: {why}" if b.rehearsal else why
            yield f"{name}, tensor cores active by {how}", used, "of cycles" if used is not None else why
            if flops and how == "GPM":
                yield f"{name}, achieved", *_achieved(b, flops / times_s)
        if b.rehearsal:
            break
    beside = (None, "needs a GPU") if b.rehearsal else _recorded_beside()
    yield "kernels recorded with PM sampling beside", *beside


def _used(b: Bench, sampler: Sampler, work: Callable[[], Any]) -> tuple[float | None, float, str]:
    """The counter's mean while `work` is done over and over, the seconds of one, and why there is no mean."""
    why, found = "no sample of it", []
    try:
        sampler.open()
        sampler.attach(0)
    except SamplerUnavailable as error:
        why, opened = str(error), False
    else:
        opened = True
    work()
    b.wait()
    began, done = time.monotonic_ns(), 0
    while time.monotonic_ns() - began < (REHEARSED_S if b.rehearsal else SECONDS) * 1e9:
        for _ in range(b.size(20, 1)):
            work()
        b.wait()
        done += b.size(20, 1)
        found += sampler.poll() if opened else []
    ended = time.monotonic_ns()
    found += sampler.close() if opened else []
    rows: list[dict[str, Any]] = []
    for table, _, row in found:
        if table == "log" and isinstance(row, dict) and row["level"] != "info":
            why = row["message"]
        if table == "device_samples":
            rows += [row] if isinstance(row, dict) else row.to_pylist()
    first = f"cuda:{b.device.index or 0}"
    used = [
        (row["tensor_active"], row["span_ns"])
        for row in rows
        if row["device"] == first
        and row.get("tensor_active") is not None
        and began + SETTLED_S * 1e9 <= row["t_ns"] - row["span_ns"]
        and row["t_ns"] <= ended
    ]
    whole = sum(span for _, span in used)
    mean = sum(share * span for share, span in used) / whole if whole else None
    return mean, (ended - began) / 1e9 / done, why


def _achieved(b: Bench, flops_per_s: float) -> tuple[float | None, str]:
    import torch

    from moescope.profiler.hardware.table import hardware_named

    name = "" if b.rehearsal else torch.cuda.get_device_name(b.device)
    known = hardware_named(name)
    peak = known.peaks.get("bf16") if known is not None else None
    if peak is None:
        return None, "needs a GPU" if b.rehearsal else f"no peak of {name} is known"
    return flops_per_s / peak.value, "of the data sheet's peak"


def _recorded_beside() -> tuple[float | None, str]:
    counts = []
    for options in ((), ("--pm-sampling", "10ms")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "moescope", "run", *options, "-o", f"{folder}/rec", "--"]
            done = subprocess.run(
                [*command, sys.executable, "-c", TARGET], capture_output=True, text=True, timeout=60, check=False,
                env=os.environ | {"PYTHONUNBUFFERED": "1"},
            )  # fmt: skip
            if done.returncode:
                lines = [line for line in done.stderr.splitlines() if line and not line.startswith("moescope:")]
                return None, (lines or ["nothing was said"])[-1]
            counts.append(_kernels(Path(folder, "rec")))
    without, beside = counts
    return (beside / without, f"of {without:,} without") if without else (None, "no kernels are recorded here")


def _kernels(recording: Path) -> int:
    command = [sys.executable, "-m", "moescope", "summary", str(recording), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode:
        return 0
    return sum(int(rank["kernels"]) for rank in json.loads(done.stdout)["ranks"] if rank["device"] != "cpu")
