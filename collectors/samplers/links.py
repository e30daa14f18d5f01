"""Bytes through each NIC and InfiniBand port, as running totals."""

from __future__ import annotations

import os
import time
from pathlib import Path

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import Row, SamplerUnavailable
from moescope.collectors.samplers.files import Files

IB_WORD_BYTES = 4
"""InfiniBand's port_xmit_data and port_rcv_data count words of four bytes (IBTA, PortCounters)."""


class LinkSampler:
    """Counters of sysfs; `lo` counts both directions of a local exchange."""

    name = "links"
    source = "/sys/class/net, /sys/class/infiniband"

    def __init__(self, clock: Clock, host: str, root: Path = Path("/")) -> None:
        self._clock, self._host = clock, host
        self._net = root / "sys/class/net"
        self._ib = root / "sys/class/infiniband"
        self._peaks: dict[str, int | None] = {}
        self._files = Files()

    def open(self) -> None:
        """Raises SamplerUnavailable where there is no sysfs."""
        if not self._net.is_dir() and not self._ib.is_dir():
            raise SamplerUnavailable("no /sys/class/net here: links are not seen")

    def attach(self, pid: int) -> None:
        """Links serve the whole host."""

    def poll(self) -> list[Row]:
        """One row a link."""
        now = self._clock.epoch_ns(time.monotonic_ns())
        rows: list[Row] = []
        for link, (sent, received, peak) in self.totals().items():
            row = {"host": self._host, "link": link, "t_ns": now, "tx_bytes": sent, "rx_bytes": received}
            rows.append(("link_samples", None, row | {"peak_bytes_per_s": peak}))
        self._files.close_others()
        return rows

    def close(self) -> list[Row]:
        """The last totals."""
        rows = self.poll()
        self._files.close()
        return rows

    def totals(self) -> dict[str, tuple[int, int, int | None]]:
        """Bytes sent and received and the line rate (bytes/s, one direction), by link."""
        found: dict[str, tuple[int, int, int | None]] = {}
        for name in _names(self._net):
            counters = f"{self._net}/{name}/statistics"
            sent, received = self._count(f"{counters}/tx_bytes"), self._count(f"{counters}/rx_bytes")
            if sent is not None and received is not None:
                found[name] = (sent, received, self._nic_peak(self._net / name))
        for device in _names(self._ib):
            for port in _names(self._ib / device / "ports"):
                counters = f"{self._ib}/{device}/ports/{port}/counters"
                sent, received = self._count(f"{counters}/port_xmit_data"), self._count(f"{counters}/port_rcv_data")
                if sent is not None and received is not None:
                    name = f"{device}/{port}"
                    peak = self._ib_peak(name, self._ib / device / "ports" / port)
                    found[name] = (sent * IB_WORD_BYTES, received * IB_WORD_BYTES, peak)
        return found

    def _count(self, path: str) -> int | None:
        try:
            return int(self._files.text(path))
        except (OSError, ValueError):
            return None

    def _nic_peak(self, folder: Path) -> int | None:
        """`speed` is in Mbit/s; -1 or an error where the device has none."""
        if folder.name not in self._peaks:
            speed = self._count(f"{folder}/speed")
            self._peaks[folder.name] = speed * 125_000 if speed is not None and speed > 0 else None
        return self._peaks[folder.name]

    def _ib_peak(self, name: str, port: Path) -> int | None:
        """`rate` reads like `400 Gb/sec (4X NDR)`."""
        if name not in self._peaks:
            try:
                words = (port / "rate").read_text().split()
                self._peaks[name] = int(float(words[0]) * 125_000_000) if words[1].startswith("Gb") else None
            except (OSError, ValueError, IndexError):
                self._peaks[name] = None
        return self._peaks[name]


def _names(folder: Path) -> list[str]:
    """What is in a folder of sysfs, in order; nothing where there is none."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []
