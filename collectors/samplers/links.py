"""Bytes through each NIC and InfiniBand port, as running totals."""

from __future__ import annotations

import time
from pathlib import Path

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import Row, SamplerUnavailable

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
        return rows

    def close(self) -> list[Row]:
        """The last totals."""
        return self.poll()

    def totals(self) -> dict[str, tuple[int, int, int | None]]:
        """Bytes sent and received and the line rate (bytes/s, one direction), by link."""
        found: dict[str, tuple[int, int, int | None]] = {}
        for folder in sorted(self._net.glob("*")):
            sent, received = _number(folder / "statistics/tx_bytes"), _number(folder / "statistics/rx_bytes")
            if sent is not None and received is not None:
                found[folder.name] = (sent, received, self._nic_peak(folder))
        for port in sorted(self._ib.glob("*/ports/*")):
            sent, received = _number(port / "counters/port_xmit_data"), _number(port / "counters/port_rcv_data")
            if sent is not None and received is not None:
                name = f"{port.parent.parent.name}/{port.name}"
                found[name] = (sent * IB_WORD_BYTES, received * IB_WORD_BYTES, self._ib_peak(name, port))
        return found

    def _nic_peak(self, folder: Path) -> int | None:
        """`speed` is in Mbit/s; -1 or an error where the device has none."""
        if folder.name not in self._peaks:
            speed = _number(folder / "speed")
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


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
