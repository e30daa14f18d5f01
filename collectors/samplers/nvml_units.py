"""What NVML's numbers mean: masks to words, percentages to shares, KiB and MiB to bytes, counters to running totals.

Nothing here needs a GPU or its libraries. Numbers are those of nvml.h as nvidia-ml-py 13.615 has them. Not yet run on a
GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
MBPS: Final = 1_000_000
"""NVML tells the speed of an NVLink in MB/s, one direction."""

THROTTLE_BITS: Final = {
    0x001: "idle",
    0x002: "application clocks",
    0x004: "power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "thermal (software)",
    0x040: "thermal (hardware)",
    0x080: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability",
}
"""nvmlClocksEventReason*, a word each (`schema.THROTTLED` says which of them slow down)."""

GPM_COLUMNS: Final = {
    2: "sm_active",
    3: "occupancy",
    4: "integer_active",
    5: "tensor_active",
    6: "dfma_active",
    7: "hmma_active",
    8: "dmma_active",
    9: "imma_active",
    10: "dram_active",
    11: "fp64_active",
    12: "fp32_active",
    13: "fp16_active",
}
"""GPM metrics in percent, by number: the column of `device_samples` that holds each as a share."""

GPM_RATES: Final = {
    20: "pcie_tx_bytes_per_s",
    21: "pcie_rx_bytes_per_s",
    60: "nvlink_rx_bytes_per_s",
    61: "nvlink_tx_bytes_per_s",
}
"""GPM metrics in MiB/s."""

_LINKS_FIRST: Final = 18
"""Links 0 to 17 have metrics from 62 on; later ones, added for newer parts, from 212 on."""
_MOST_LINKS: Final = 36

TOPOLOGY: Final = {
    0: "one board",
    10: "one PCIe switch",
    20: "PCIe switches",
    30: "PCIe host bridge",
    40: "the CPU of one NUMA node",
    50: "the link between CPUs",
}
"""nvmlGpuTopologyLevel_t: what two GPUs reach one another by."""

_LANE_BYTES_PER_S: Final = {
    1: 2.5e9 * 8 / 10 / 8,
    2: 5e9 * 8 / 10 / 8,
    3: 8e9 * 128 / 130 / 8,
    4: 16e9 * 128 / 130 / 8,
    5: 32e9 * 128 / 130 / 8,
    6: 64e9 / 8,
}
"""One lane in one direction after the line code (PCI Express base specification; of generation 6 the raw rate)."""


def share(percent: float) -> float | None:
    """A percentage as a share, 0..1; None for what is none. Counters read a little over 100 now and then."""
    return min(percent / 100, 1.0) if 0 <= percent <= 101 else None


def rate(mib_per_s: float) -> float | None:
    """GPM's MiB/s in bytes/s; None for what is none."""
    return mib_per_s * MIB if 0 <= mib_per_s < 1e9 else None


def throttle_words(mask: int) -> str:
    """Why clocks are what they are, `power cap, thermal (hardware)`; empty where nothing holds them; others as bits."""
    words = [word for bit, word in THROTTLE_BITS.items() if mask & bit]
    unknown = mask & ~sum(THROTTLE_BITS)
    return ", ".join([*words, *([f"{unknown:#x}"] if unknown else [])])


def link_metrics(link: int) -> tuple[int, int] | None:
    """GPM's metrics of one NVLink, (transmitted, received), MiB/s; None for a link that it has none for."""
    if not 0 <= link < _MOST_LINKS:
        return None
    received = 62 + 2 * link if link < _LINKS_FIRST else 212 + 2 * (link - _LINKS_FIRST)
    return received + 1, received


def pcie_peak(generation: int, lanes: int) -> int | None:
    """Line rate of a PCIe link in one direction, bytes/s; None for a generation that is not known."""
    lane = _LANE_BYTES_PER_S.get(generation)
    return int(lane * lanes) if lane is not None and 0 < lanes <= 32 else None


def grown(before: int, after: int, bits: int, most: int | None) -> int | None:
    """What a counter of so many bits has grown by; None where that cannot be told.

    A counter of 64 bits that fell was reset, and counts from zero again. A narrower one wrapped, once for sure only
    where no more than one turn can pass: most: what can have been counted since, None where not known
    """
    if bits >= 64:
        return after - before if after >= before else after
    turn = 1 << bits
    return (after - before) % turn if most is not None and most < turn else None


@dataclass
class RunningTotal:
    """One direction of a link: a counter's growth summed, so that resets and wraps of the device's do not show."""

    total: int = 0
    lost: bool = field(default=False, init=False)
    _before: int | None = field(default=None, init=False)

    def take(self, value: int, bits: int = 64, most: int | None = None) -> int | None:
        """The total after the counter reads `value`; the first reading is where it starts. None once it is lost."""
        more = 0 if self._before is None else grown(self._before, value, bits, most)
        self._before = value
        self.lost |= more is None
        if more is None or self.lost:
            return None
        self.total += more
        return self.total

    def add(self, bytes_per_s: float, seconds: float) -> int:
        """The total after a time at a mean rate."""
        self.total += round(bytes_per_s * seconds)
        return self.total
