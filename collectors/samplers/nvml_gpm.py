"""GPM: what a Hopper GPU's units, memory and links did between two samples. Not yet run on a GPU.

A metric is the difference of two samples, which must lie at least 100 ms apart (NVML API reference, GPM functions). It
needs no privileges and goes beside other profilers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from moescope.collectors.samplers.nvml_devices import Gpu
from moescope.collectors.samplers.nvml_library import Nvml
from moescope.collectors.samplers.nvml_units import GPM_COLUMNS, GPM_RATES, link_metrics, rate, share

LEAST_NS: Final = 100_000_000
"""Two samples nearer than this give no metrics."""


@dataclass(frozen=True, slots=True)
class Gpm:
    """Means over `span_ns`: columns of `device_samples` by name; links: (transmitted, received) bytes/s by link."""

    span_ns: int
    columns: dict[str, float | None]
    links: dict[int, tuple[float, float]]


class GpmReader:
    """Two samples of one GPU, in turns."""

    def __init__(self, nvml: Nvml, gpu: Gpu, links: Sequence[int]) -> None:
        """links: NVLinks to ask for. Whether the GPU has GPM stands in `available`."""
        self._nvml, self._gpu = nvml, gpu
        self._links = {link: pair for link in links if (pair := link_metrics(link)) is not None}
        self._asked = [*GPM_COLUMNS, *GPM_RATES, *(number for pair in self._links.values() for number in pair)]
        self._what = f"GPM counters of {gpu.device}"
        self._taken_ns: int | None = None
        self._samples: list[Any] = []
        self.available = self._supported()
        if self.available:
            self._samples = [nvml.ask(self._what, "nvmlGpmSampleAlloc") for _ in range(2)]
            self.available = all(sample is not None for sample in self._samples)

    def _supported(self) -> bool:
        support = self._nvml.ask(self._what, "nvmlGpmQueryDeviceSupport", self._gpu.handle)
        if support is None or not support.isSupportedDevice:
            self._nvml.reasons.setdefault(
                self._what, "this GPU has none (Hopper and later do): tensor-core and SM use are not known"
            )
            return False
        mode = self._nvml.ask(f"MIG mode of {self._gpu.device}", "nvmlDeviceGetMigMode", self._gpu.handle)
        if mode is not None and mode[0]:
            self._nvml.reasons[self._what] = "the GPU is divided (MIG): counters of its instances are not read"
            return False
        return True

    def read(self) -> Gpm | None:
        """Means since the last call that gave any; None at the first, and less than 100 ms after the last."""
        if not self.available:
            return None
        now_ns = time.monotonic_ns()
        before_ns = self._taken_ns
        if before_ns is not None and now_ns - before_ns < LEAST_NS:
            return None
        earlier, later = self._samples
        if self._nvml.ask(self._what, "nvmlGpmSampleGet", self._gpu.handle, later) is None:
            self._taken_ns = None
            return None
        self._taken_ns, self._samples = now_ns, [later, earlier]
        return None if before_ns is None else self._metrics(earlier, later, now_ns - before_ns)

    def _metrics(self, earlier: Any, later: Any, span_ns: int) -> Gpm | None:
        api = self._nvml.api
        wanted = api.c_nvmlGpmMetricsGet_t()
        wanted.version = api.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = len(self._asked)
        wanted.sample1, wanted.sample2 = earlier, later
        for at, number in enumerate(self._asked):
            wanted.metrics[at].metricId = number
        if self._nvml.ask(self._what, "nvmlGpmMetricsGet", wanted) is None:
            return None
        values: dict[int, float] = {}
        for at, number in enumerate(self._asked):
            told = wanted.metrics[at]
            if told.nvmlReturn == 0:
                values[number] = float(told.value)
            elif number in GPM_COLUMNS:
                self._nvml.failed(f"{GPM_COLUMNS[number]} of {self._gpu.device}", told.nvmlReturn)
        return gpm_of(values, self._links, span_ns)

    def close(self) -> None:
        """Frees the samples."""
        for sample in self._samples:
            if sample is not None:
                self._nvml.ask(self._what, "nvmlGpmSampleFree", sample)
        self._samples, self.available = [], False


def gpm_of(values: dict[int, float], links: dict[int, tuple[int, int]], span_ns: int) -> Gpm:
    """Metrics in units of ours.

    values: by metric, percent or MiB/s; links: the metrics of each one, (transmitted, received)
    """
    columns = {name: share(values[number]) for number, name in GPM_COLUMNS.items() if number in values}
    columns |= {name: rate(values[number]) for number, name in GPM_RATES.items() if number in values}
    rates: dict[int, tuple[float, float]] = {}
    for link, (sent, received) in links.items():
        if sent in values and received in values:
            both = rate(values[sent]), rate(values[received])
            if both[0] is not None and both[1] is not None:
                rates[link] = both[0], both[1]
    return Gpm(span_ns, columns, rates)
