"""For `doctor`: which counters of the GPUs a recording would hold, by taking two samples. Not yet run on a GPU."""

from __future__ import annotations

import time
from typing import Any, Literal

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import SamplerUnavailable
from moescope.collectors.samplers.nvml import LEAST_PERIOD_S, GpuSampler
from moescope.collectors.samplers.nvml_topology import describe_gpus, words

State = Literal["ok", "fallback", "missing"]
_MARGIN_S = 0.02
NOT_RUN = "these samplers have not yet been run on a GPU"


def gpu_counters() -> tuple[State, str, str]:
    """State, source and note: `ok` where every GPU tells the use of its tensor cores."""
    sampler = GpuSampler(Clock.measure(1), "", ("device", "links"))
    try:
        sampler.open()
    except SamplerUnavailable as error:
        return "missing", "–", str(error)
    try:
        sampler.attach(0)
        time.sleep(LEAST_PERIOD_S + _MARGIN_S)
        rows = sampler.poll()
        reasons = sampler.reasons
    finally:
        sampler.close()
    samples = [row for table, _, row in rows if table == "device_samples"]
    links = [row["link"] for table, _, row in rows if table == "link_samples"]
    return (
        _state(samples),
        f"{sampler.source}, {len(samples)} GPU(s)",
        "; ".join([*_notes(links), *told(reasons), NOT_RUN]),
    )


def _state(samples: list[dict[str, Any]]) -> State:
    return "ok" if all(row.get("tensor_active") is not None for row in samples) else "fallback"


def _notes(links: list[str]) -> list[str]:
    nvlinks, others = sum(link.startswith("nvlink") for link in links), [k for k in links if k.startswith("pcie")]
    found = [f"{nvlinks} NVLink(s) and {len(others)} PCIe link(s) counted"]
    topology = describe_gpus().get("gpu_topology")
    return found + ([f"GPUs reach one another: {words(topology)}"] if topology else [])


def told(reasons: dict[str, str]) -> list[str]:
    """What is not told, and why: a reason that holds for several things once."""
    by_reason: dict[str, list[str]] = {}
    for what, why in reasons.items():
        by_reason.setdefault(why, []).append(what)
    return [f"no {', '.join(what)}: {why}" for why, what in by_reason.items()]
