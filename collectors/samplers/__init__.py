"""What is measured beside the target: cores, links, and the device. Each sampler has one job and may be missing."""

from __future__ import annotations

from collections.abc import Collection

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import (
    GPU_PERIOD_S,
    NothingThere,
    PidSource,
    RankOf,
    RoleOf,
    Sampler,
    SamplerUnavailable,
)
from moescope.collectors.samplers.device import CpuSampler
from moescope.collectors.samplers.links import LinkSampler
from moescope.collectors.samplers.nvml import GpuSampler
from moescope.collectors.samplers.pm_sampling.sampler import PmSampler
from moescope.collectors.samplers.units import SchedstatSampler, UnitSampler

__all__ = ["NothingThere", "Sampler", "SamplerUnavailable", "make_samplers"]


def make_samplers(
    clock: Clock,
    host: str,
    rank_of: RankOf,
    role_of: RoleOf,
    pids: PidSource,
    wanted: Collection[str],
    gpu_period_s: float = GPU_PERIOD_S,
    pm_period_s: float | None = None,
) -> list[list[Sampler]]:
    """For each signal that is wanted, its sources in the order of preference.

    gpu_period_s: between two samples of a GPU; pm_period_s: between two of PM sampling, None for none of these
    """
    all_samplers: dict[str, list[Sampler]] = {
        "units": [UnitSampler(clock, rank_of, role_of), SchedstatSampler(clock, rank_of, role_of, pids)],
        "links": [LinkSampler(clock, host)],
        "device": [CpuSampler(clock, host, rank_of, pids)],
    }
    found = [sources for name, sources in all_samplers.items() if name in wanted]
    finely = PmSampler(clock, host, pm_period_s) if pm_period_s is not None and "device" in wanted else None
    if "device" in wanted or "links" in wanted:
        finer = finely.columns if finely is not None else None
        found.append([GpuSampler(clock, host, wanted, gpu_period_s, finer)])
    if finely is not None:
        found.append([finely])  # after what leaves its columns to it, at the end too
    return found
