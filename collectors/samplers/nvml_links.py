"""Bytes over each NVLink and over PCIe of a GPU, as running totals by direction. Not yet run on a GPU."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from moescope.collectors.samplers.nvml_devices import Gpu
from moescope.collectors.samplers.nvml_gpm import Gpm
from moescope.collectors.samplers.nvml_library import Nvml
from moescope.collectors.samplers.nvml_units import KIB, MBPS, RunningTotal, pcie_peak

LINK_COUNT: Final = 91
LINK_SPEED, COMMON_SPEED = 164, 90
PCIE_TX, PCIE_RX = 197, 198
COUNTERS: Final = (((138, 139), KIB), ((202, 204), 1))
"""NVLink counters (sent, received) in order of preference, and the bytes of one count: data in KiB, data in bytes."""

_BITS: Final = {1: 32, 2: 64, 3: 64, 4: 63, 5: 31, 6: 16}
"""Width of a field's value by its nvmlValueType_t; 0 is a double, which no counter is."""
_MEMBERS: Final = {1: "uiVal", 2: "ulVal", 3: "ullVal", 4: "sllVal", 5: "siVal", 6: "usVal"}

Field = tuple[int, int]
"""A field and its scope, which is the link where it is of one."""


def field_values(nvml: Nvml, gpu: Gpu, what: str, fields: Sequence[Field]) -> list[tuple[int, int] | None]:
    """(value, bits) of each field; None for those that the GPU does not tell."""
    if not fields:
        return []
    told = nvml.ask(f"{what} of {gpu.device}", "nvmlDeviceGetFieldValues", gpu.handle, list(fields))
    if told is None:
        return [None] * len(fields)
    return [_value(nvml, f"{what} of {gpu.device}", one) for one in told]


def _value(nvml: Nvml, what: str, told: Any) -> tuple[int, int] | None:
    if told.nvmlReturn:
        nvml.failed(what, told.nvmlReturn)
        return None
    member = _MEMBERS.get(told.valueType)
    return None if member is None else (int(getattr(told.value, member)), _BITS[told.valueType])


def active_links(nvml: Nvml, gpu: Gpu) -> list[int]:
    """Numbers of the NVLinks that are up."""
    (count,) = field_values(nvml, gpu, "number of NVLinks", [(LINK_COUNT, 0)])
    links = range(count[0] if count is not None and 0 <= count[0] <= 64 else 0)
    return [
        link for link in links if nvml.ask(f"NVLinks of {gpu.device}", "nvmlDeviceGetNvLinkState", gpu.handle, link)
    ]


def link_speeds(nvml: Nvml, gpu: Gpu, links: Sequence[int]) -> dict[int, int | None]:
    """Line rate of each NVLink, one direction, bytes/s; None where the GPU does not tell."""
    fields = [*((LINK_SPEED, link) for link in links), (COMMON_SPEED, 0)]
    *own, common = field_values(nvml, gpu, "speed of NVLinks", fields) if links else [None]
    told = [one or common for one in own]
    return {link: one[0] * MBPS if one and one[0] > 0 else None for link, one in zip(links, told, strict=True)}


def pcie_rate(nvml: Nvml, gpu: Gpu) -> tuple[int, int, int | None] | None:
    """Generation, lanes, line rate (one direction, bytes/s) of what GPU and slot can do: at rest a link is slower."""
    generation = nvml.ask(f"PCIe of {gpu.device}", "nvmlDeviceGetMaxPcieLinkGeneration", gpu.handle)
    lanes = nvml.ask(f"PCIe of {gpu.device}", "nvmlDeviceGetMaxPcieLinkWidth", gpu.handle)
    if generation is None or lanes is None:
        return None
    return int(generation), int(lanes), pcie_peak(int(generation), int(lanes))


class GpuLinks:
    """The links of one GPU: `nvlink0.3` is link 3 of cuda:0, `pcie0` its PCIe link."""

    def __init__(self, nvml: Nvml, gpu: Gpu, numbers: Sequence[int], *, with_gpm: bool) -> None:
        """numbers: NVLinks that are up; with_gpm: PCIe comes from GPM's rates: these and counters are never mixed"""
        self._nvml, self._gpu, self._numbers, self._with_gpm = nvml, gpu, numbers, with_gpm
        self._speeds = link_speeds(nvml, gpu, numbers)
        pcie = pcie_rate(nvml, gpu)
        self._pcie_peak = pcie[2] if pcie is not None else None
        self._fields, self._unit = self._counters()
        self._totals = {link: (RunningTotal(), RunningTotal()) for link in self._numbers}
        self._pcie = RunningTotal(), RunningTotal()
        self._read_ns: int | None = None

    def _counters(self) -> tuple[tuple[int, int] | None, int]:
        for fields, unit in COUNTERS if self._numbers else ():
            probe = [(field, self._numbers[0]) for field in fields]
            if None not in field_values(self._nvml, self._gpu, "NVLink counters", probe):
                return fields, unit
        return None, 1

    def rows(self, gpm: Gpm | None) -> list[dict[str, Any]]:
        """`link`, `tx_bytes`, `rx_bytes`, `peak_bytes_per_s` of each link that could be read.

        gpm: the GPU's rates since the last call, summed up where there is no counter; links wait where it is None
        """
        return [*self._nvlinks(gpm), *self._over_pcie(gpm)]

    def _nvlinks(self, gpm: Gpm | None) -> list[dict[str, Any]]:
        if self._fields is not None:
            fields = [(field, link) for link in self._numbers for field in self._fields]
            values = field_values(self._nvml, self._gpu, "NVLink counters", fields)
            pairs = paired(self._numbers, values)
            return [
                self._row(link, *(total.take(value * self._unit) for total, value in zip(totals, pair, strict=True)))
                for link, totals in self._totals.items()
                if (pair := pairs.get(link)) is not None
            ]
        if gpm is None:
            return []
        return [
            self._row(link, *(total.add(rate, gpm.span_ns / 1e9) for total, rate in zip(totals, rates, strict=True)))
            for link, totals in self._totals.items()
            if (rates := gpm.links.get(link)) is not None
        ]

    def _row(self, link: int, sent: int | None, received: int | None) -> dict[str, Any]:
        name = f"nvlink{self._gpu.ordinal}.{link}"
        return {"link": name, "tx_bytes": sent, "rx_bytes": received, "peak_bytes_per_s": self._speeds[link]}

    def _over_pcie(self, gpm: Gpm | None) -> list[dict[str, Any]]:
        """From GPM's rates where there are any: the counters of PCIe wrap, at full speed several times a second."""
        row = {"link": f"pcie{self._gpu.ordinal}", "peak_bytes_per_s": self._pcie_peak}
        if gpm is not None:
            rates = [gpm.columns.get(f"pcie_{way}_bytes_per_s") for way in ("tx", "rx")]
            if None in rates:
                return []
            sent, received = (
                total.add(rate or 0.0, gpm.span_ns / 1e9) for total, rate in zip(self._pcie, rates, strict=True)
            )
            return [row | {"tx_bytes": sent, "rx_bytes": received}]
        return [] if self._with_gpm else self._counted_pcie(row)

    def _counted_pcie(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        now_ns, before_ns = time.monotonic_ns(), self._read_ns
        values = field_values(self._nvml, self._gpu, "PCIe counters", [(PCIE_TX, 0), (PCIE_RX, 0)])
        self._read_ns = now_ns
        most = None
        if before_ns is not None and self._pcie_peak is not None:
            most = int(self._pcie_peak * (now_ns - before_ns) / 1e9)
        totals: list[int] = []
        for total, told in zip(self._pcie, values, strict=True):
            if told is None:
                return []
            found = total.take(told[0], told[1], most)
            if found is None:
                self._nvml.reasons.setdefault(
                    f"PCIe bytes of {self._gpu.device}",
                    f"its counter of {told[1]} bits may wrap more than once between two samples: left out",
                )
                return []
            totals.append(found)
        return [row | {"tx_bytes": totals[0], "rx_bytes": totals[1]}]


def paired(links: Sequence[int], values: Sequence[tuple[int, int] | None]) -> dict[int, tuple[int, int]]:
    """(sent, received) by link, of counters told link by link; a link that lacks one is left out."""
    found: dict[int, tuple[int, int]] = {}
    for at, link in enumerate(links):
        sent, received = values[2 * at], values[2 * at + 1]
        if sent is not None and received is not None:
            found[link] = sent[0], received[0]
    return found
