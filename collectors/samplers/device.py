"""How busy the cores are, their clock and the memory: of the host, and of each rank's process."""

from __future__ import annotations

import os
import time
from pathlib import Path

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import PidSource, RankOf, Row, SamplerUnavailable
from moescope.collectors.samplers.files import Files

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
CLOCK_SHARE = 1e-4
"""Of the time, at most, to ask all cores for their clock: where there are many it takes milliseconds."""


class CpuSampler:
    """The CPU backend's device samples, from /proc. A GPU's come through the same interface."""

    name = "device"
    source = "/proc/stat, /proc/meminfo, cpufreq"

    def __init__(self, clock: Clock, host: str, rank_of: RankOf, pids: PidSource, root: Path = Path("/")) -> None:
        self._clock, self._host, self._rank_of, self._pids, self._root = clock, host, rank_of, pids, root
        self._busy: tuple[int, int] | None = None
        self._threads: dict[int, tuple[int, int]] = {}
        self._files = Files()
        self._clock_hz: int | None = None
        self._clock_due_ns = 0

    def open(self) -> None:
        """Raises SamplerUnavailable where there is no /proc."""
        if not (self._root / "proc/stat").exists():
            raise SamplerUnavailable("no /proc here: use of the cores is not seen")

    def attach(self, pid: int) -> None:
        """The host's cores are sampled whole."""

    def poll(self) -> list[Row]:
        """One row for the host, one for each rank's process."""
        mono = time.monotonic_ns()
        now = self._clock.epoch_ns(mono)
        total, available = _memory(self._text("proc/meminfo"))
        host = {"host": self._host, "device": "cpu", "t_ns": now, "sm_active": self._host_share()}
        host |= {"clock_hz": self._cores_hz(mono), "memory_bytes": total - available, "memory_total_bytes": total}
        rows: list[Row] = [("device_samples", None, host)]
        for pid in self._pids():
            rank = self._rank_of(pid)
            resident = self._resident_bytes(pid)
            if rank is None or resident is None:
                continue
            row = {"host": self._host, "device": f"cpu/{pid}", "t_ns": now, "sm_active": self._process_share(pid, mono)}
            rows.append(("device_samples", rank, row | {"memory_bytes": resident, "memory_total_bytes": total}))
        self._files.close_others()
        return rows

    def close(self) -> list[Row]:
        """The last samples."""
        rows = self.poll()
        self._files.close()
        return rows

    def _text(self, name: str) -> str:
        return self._files.text(f"{self._root}/{name}")

    def _host_share(self) -> float | None:
        """Share of all cores' time that was not idle since the last call."""
        fields = [int(v) for v in self._text("proc/stat").split("\n", 1)[0].split()[1:9]]
        total, idle = sum(fields), fields[3] + fields[4]
        before, self._busy = self._busy, (total, idle)
        if before is None or total == before[0]:
            return None
        return 1.0 - (idle - before[1]) / (total - before[0])

    def _cores_hz(self, now_ns: int) -> int | None:
        """Mean clock of the cores, Hz, as it was asked for last."""
        if now_ns >= self._clock_due_ns:
            start_ns = time.monotonic_ns()
            self._clock_hz = clock_hz(self._root)
            self._clock_due_ns = now_ns + int((time.monotonic_ns() - start_ns) / CLOCK_SHARE)
        return self._clock_hz

    def _process_share(self, pid: int, now_ns: int) -> float | None:
        """Share of one core that the process held since the last call (above 1 with several threads)."""
        try:
            fields = self._text(f"proc/{pid}/stat").rpartition(")")[2].split()
            ticks = int(fields[11]) + int(fields[12])
        except (OSError, IndexError, ValueError):
            return None
        before = self._threads.get(pid)
        self._threads[pid] = (ticks, now_ns)
        if before is None or now_ns == before[1]:
            return None
        return (ticks - before[0]) * _TICK_S * 1e9 / (now_ns - before[1])

    def _resident_bytes(self, pid: int) -> int | None:
        try:
            return int(self._text(f"proc/{pid}/statm").split()[1]) * _PAGE_BYTES
        except (OSError, IndexError, ValueError):
            return None


def memory(root: Path = Path("/")) -> tuple[int, int]:
    """Bytes of memory there are, and bytes available."""
    return _memory((root / "proc/meminfo").read_text())


def _memory(text: str) -> tuple[int, int]:
    fields = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        fields[key] = int(value.split()[0]) * 1024
    return fields["MemTotal"], fields.get("MemAvailable", fields.get("MemFree", 0))


def clock_hz(root: Path = Path("/")) -> int | None:
    """Mean clock of the cores, Hz: cpufreq, else /proc/cpuinfo; None where neither tells."""
    values = []
    for path in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq"):
        try:
            values.append(int(path.read_text()) * 1000)
        except (OSError, ValueError):
            continue
    if not values:
        try:
            text = (root / "proc/cpuinfo").read_text()
        except OSError:
            return None
        values = [int(float(line.partition(":")[2]) * 1e6) for line in text.splitlines() if line.startswith("cpu MHz")]
    return sum(values) // len(values) if values else None
