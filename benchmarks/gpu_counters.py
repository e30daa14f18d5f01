"""Use of the tensor cores by a GPU's counters, beside what was achieved: of a known product, and of a known copy.

Part of `make gpu-check` (`benchmarks.gpu_sections counters`). A product's counter is to lie within 5 points of what it
achieves of the peak at the clock that it had; a copy's near 0. Whether kernels are still recorded while PM sampling
runs is told besides. Not yet run on a GPU.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.gpu_figure import Figure
from benchmarks.process import Failed, output_of
from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import Sampler, SamplerUnavailable
from moescope.collectors.samplers.nvml import GpuSampler
from moescope.collectors.samplers.pm_sampling.sampler import PmSampler

if TYPE_CHECKING:
    from benchmarks.gpu_timing import Bench

SECONDS, REHEARSED_S = 2.0, 0.8
"""How long work goes on."""
AWAIT_S = 15.0
"""How long a first sample is waited for."""
BF16_OF_AN_SM = 4096
"""Dense BF16 operations of a Hopper SM in a cycle: 989.4 TFLOP/s on 132 of them at 1830 MHz (H100 data sheet)."""

TARGET = """
import time, torch
a = torch.randn(1024, 1024, device="cuda")
until = time.monotonic() + 6
while time.monotonic() < until:
    for _ in range(25):
        torch.mm(a, a)
    torch.cuda.synchronize()
"""


def counters(b: Bench) -> Iterator[Figure]:
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
            rows, times_s, why = _sampled(b, sampler, work)
            used = _mean(rows, "tensor_active")
            why = f"needs a GPU: {why}" if b.rehearsal else why
            yield Figure(f"{name}, tensor cores active by {how}", used, "of cycles" if used is not None else why)
            if flops and how == "GPM":
                yield Figure(f"{name}, achieved", *achieved(b, flops / times_s, _mean(rows, "clock_hz")))
        if b.rehearsal:
            break
    beside = (None, "needs a GPU") if b.rehearsal else recorded_beside()
    yield Figure("kernels recorded with PM sampling beside", *beside)


def _sampled(b: Bench, sampler: Sampler, work: Callable[[], Any]) -> tuple[list[dict[str, Any]], float, str]:
    """Samples within the time in which `work` is done over and over, the seconds of one, and what was refused."""
    why = "no sample of it"
    found: list[Any] = []
    opened = True
    try:
        sampler.open()
        sampler.attach(0)
    except SamplerUnavailable as error:
        why, opened = str(error), False
    work()
    b.wait()
    until = time.monotonic() + AWAIT_S
    while opened and not found and time.monotonic() < until:
        time.sleep(0.15)
        found += [row for table, _, row in sampler.poll() if table == "device_samples" or row["level"] != "info"]
    began, done = time.monotonic_ns(), 0
    while time.monotonic_ns() - began < (REHEARSED_S if b.rehearsal else SECONDS) * 1e9:
        for _ in range(b.size(20, 1)):
            work()
        b.wait()
        done += b.size(20, 1)
        found += [row for _, _, row in sampler.poll()] if opened else []
    ended = time.monotonic_ns()
    found += [row for _, _, row in sampler.close()] if opened else []
    rows: list[dict[str, Any]] = []
    for row in found:
        for one in [row] if isinstance(row, dict) else row.to_pylist():
            if one.get("level", "info") != "info":
                why = one["message"]
            span_ns = one.get("span_ns") or 0
            inside = "device" in one and began <= one["t_ns"] - span_ns and one["t_ns"] <= ended
            if inside and one["device"] == f"cuda:{b.device.index or 0}":
                rows.append(one)
    return rows, (ended - began) / 1e9 / done, why


def _mean(rows: list[dict[str, Any]], column: str) -> float | None:
    """By the time that each sample stands for, where it tells."""
    known = [(row[column], row.get("span_ns") or 1) for row in rows if row.get(column) is not None]
    whole = sum(span for _, span in known)
    return sum(value * span for value, span in known) / whole if whole else None


def achieved(b: Bench, flops_per_s: float, clock_hz: float | None) -> tuple[float | None, str]:
    """Share of what the tensor cores can do at the clock they had."""
    import torch

    if b.rehearsal:
        return None, "needs a GPU"
    if clock_hz is None:
        return None, "its clock was not told"
    if torch.cuda.get_device_capability(b.device) != (9, 0):
        return None, "operations a cycle are known for Hopper alone"
    sms = torch.cuda.get_device_properties(b.device).multi_processor_count
    return flops_per_s / (BF16_OF_AN_SM * sms * clock_hz), f"of the peak at {clock_hz / 1e6:.0f} MHz"


def recorded_beside() -> tuple[float | None, str]:
    """Kernels a second while PM sampling ran, against those of a run without."""
    rates = []
    for options in ((), ("--pm-sampling", "10ms")):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "moescope", "run", *options, "-o", f"{folder}/rec", "--"]
            try:
                output_of([*command, sys.executable, "-c", TARGET], 60)
            except Failed as error:
                return None, str(error)
            rate, why = kernel_rate(Path(folder, "rec"), sampled=bool(options))
        if rate is None:
            return None, why
        rates.append(rate)
    without, beside = rates
    return beside / without if without else None, f"of {without:,.0f} a second without"


def kernel_rate(recording: Path, *, sampled: bool) -> tuple[float | None, str]:
    """Kernels a second between the first and the last; sampled: within the samples of PM sampling, if there are any."""
    from moescope.profiler.source import open_source

    source = open_source([recording])
    starts = source.table("kernels").column("start_ns").to_numpy()
    if not sampled:
        if len(starts) < 2:
            return None, "no kernels are recorded here, with or without"
        return len(starts) / ((starts.max() - starts.min()) / 1e9), ""
    times = [
        row["t_ns"]
        for row in source.table("device_samples").select(["t_ns", "span_ns"]).to_pylist()
        if row["span_ns"] and row["span_ns"] < 50_000_000
    ]
    if len(times) < 2:
        said = [row["message"] for row in source.table("log").to_pylist() if row["source"] == "gpu_pm"]
        return None, said[-1] if said else "there was no sample"
    inside = (starts >= min(times)) & (starts < max(times))
    return float(inside.sum()) / ((max(times) - min(times)) / 1e9), ""
