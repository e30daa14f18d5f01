"""NVIDIA GPUs through NVML: counters of their units (GPM), power, clocks, memory, and bytes over their links.

Not yet run on a GPU: held against a library of the same entry points in the tests.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import GPU_PERIOD_S, Row
from moescope.collectors.samplers.nvml_devices import Gpu, all_uuids, gpus_of, gpus_seen
from moescope.collectors.samplers.nvml_gpm import Gpm, GpmReader
from moescope.collectors.samplers.nvml_library import Nvml
from moescope.collectors.samplers.nvml_links import GpuLinks, active_links
from moescope.collectors.samplers.nvml_state import state_columns

LEAST_PERIOD_S = 0.1


@dataclass(frozen=True, slots=True)
class _Sampled:
    gpu: Gpu
    gpm: GpmReader
    links: GpuLinks | None


class GpuSampler:
    """All GPUs that the run sees. What one of them refuses is null, and told in the log once."""

    name = "gpu"

    def __init__(
        self,
        clock: Clock,
        host: str,
        wanted: Collection[str] = ("device", "links"),
        period_s: float = GPU_PERIOD_S,
        finer: Callable[[str], Collection[str]] | None = None,
    ) -> None:
        """wanted: `device` for samples of the GPUs, `links` for those of their links; period_s: between two of them

        finer: columns of a device that are sampled elsewhere, in shorter periods: a figure comes from one source
        """
        self._clock, self._host, self._wanted = clock, host, wanted
        self._finer = finer or (lambda device: ())
        self.period_s = max(period_s, LEAST_PERIOD_S)
        self.source = "NVML"
        self._nvml: Nvml | None = None
        self._sampled: list[_Sampled] = []
        self._told: set[str] = set()
        self._uuids: list[str] = []

    @property
    def reasons(self) -> dict[str, str]:
        """What is not told, and why, so far."""
        return dict(self._nvml.reasons) if self._nvml is not None else {}

    def open(self) -> None:
        """Raises NothingThere where there is no GPU, SamplerUnavailable where NVML does not answer."""
        nvml = Nvml()
        try:
            for gpu in gpus_of(nvml):
                numbers = active_links(nvml, gpu)
                gpm = GpmReader(nvml, gpu, numbers)
                links = GpuLinks(nvml, gpu, numbers, with_gpm=gpm.available) if "links" in self._wanted else None
                self._sampled.append(_Sampled(gpu, gpm, links))
        except BaseException:  # raised again, once the library is let go of
            nvml.close()
            raise
        self._nvml, self._uuids = nvml, all_uuids(nvml)
        self.source = "NVML GPM" if any(one.gpm.available for one in self._sampled) else "NVML utilisation"

    def gpus_seen(self, pid: int) -> dict[str, str] | None:
        """What a process calls each GPU, to its UUID; None where that cannot be told."""
        return gpus_seen(pid, self._uuids) if self._uuids else None

    def attach(self, pid: int) -> None:
        """The first samples: what comes later is told against them."""
        for one in self._sampled:
            gpm = one.gpm.read()
            if one.links is not None:
                one.links.rows(gpm)

    def poll(self) -> list[Row]:
        """A row a GPU, and one a link, with what has been refused since the last time."""
        if self._nvml is None:
            return []
        rows: list[Row] = []
        for one in self._sampled:
            gpm = one.gpm.read()
            now_ns = self._clock.epoch_ns(time.monotonic_ns())
            about: dict[str, Any] = {"host": self._host, "t_ns": now_ns}
            if "device" in self._wanted:
                row = about | {"device": one.gpu.device, "uuid": one.gpu.uuid or None}
                row |= state_columns(self._nvml, one.gpu)
                row |= self._counters(one, gpm)
                rows.append(("device_samples", None, row))
            if one.links is not None:
                rows += [("link_samples", None, about | link) for link in one.links.rows(gpm)]
        return rows + self._refusals(self._nvml)

    def _counters(self, one: _Sampled, gpm: Gpm | None) -> dict[str, Any]:
        """Columns of a GPU's counters; none where all of them are sampled elsewhere."""
        if gpm is None:
            return {}
        elsewhere = self._finer(one.gpu.device)
        left = {name: value for name, value in gpm.columns.items() if name not in elsewhere}
        return {"span_ns": gpm.span_ns} | left if left else {}

    def _refusals(self, nvml: Nvml) -> list[Row]:
        """A line of the log for each reason that was not told yet."""
        now_ns = self._clock.epoch_ns(time.monotonic_ns())
        rows: list[Row] = []
        for what, why in nvml.reasons.items():
            if what not in self._told:
                self._told.add(what)
                row = {"t_ns": now_ns, "rank": None, "level": "warning", "source": self.name}
                rows.append(("log", None, row | {"message": f"no {what}: {why}", "dropped": 0}))
        return rows

    def close(self) -> list[Row]:
        """The last samples; NVML is let go of."""
        rows = self.poll()
        for one in self._sampled:
            one.gpm.close()
        if self._nvml is not None:
            self._nvml.close()
        self._nvml, self._sampled = None, []
        return rows
