"""Which core ran which thread when, and whether that thread computed or communicated."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import PidSource, RankOf, RoleOf, Row, SamplerUnavailable
from moescope.collectors.samplers.perf_event import Switch, SwitchBuffer

MERGE_GAP_NS: Final = 20_000
"""A thread that leaves its core for less than this has not given it up."""

HOLD_NS: Final = 3_000_000_000
"""How long intervals of a process wait for it to be given a rank."""


@dataclass(slots=True)
class _Interval:
    pid: int
    tid: int
    core: int
    start_ns: int
    end_ns: int


class SwitchIntervals:
    """Turns switch records into closed intervals, merging short gaps of one thread on one core."""

    def __init__(self) -> None:
        self._running: dict[int, tuple[int, int, int]] = {}
        self._last: dict[tuple[int, int], _Interval] = {}

    def take(self, switches: list[Switch]) -> list[_Interval]:
        """Intervals that no later record can lengthen. switches: in order of time, all cores together."""
        done: list[_Interval] = []
        for pid, tid, core, t_ns, leaves in switches:
            if not leaves:
                self._running[tid] = (pid, core, t_ns)
                continue
            owner, came_to, start = self._running.pop(tid, (0, -1, 0))
            if came_to == core:  # else its coming was before the first record, or lost
                self._close(owner, tid, core, start, t_ns, done)
        return done

    def _close(self, pid: int, tid: int, core: int, start_ns: int, end_ns: int, done: list[_Interval]) -> None:
        """Ends an interval; the one before it of the same thread and core is done, unless the gap is short."""
        key = (tid, core)
        last = self._last.get(key)
        if last is not None and start_ns - last.end_ns < MERGE_GAP_NS:
            last.end_ns = end_ns
            return
        self._last[key] = _Interval(pid, tid, core, start_ns, end_ns)
        if last is not None:
            done.append(last)

    def flush(self, before_ns: int) -> list[_Interval]:
        """Intervals that ended before `before_ns`."""
        done = [i for i in self._last.values() if i.end_ns < before_ns]
        for interval in done:
            del self._last[(interval.tid, interval.core)]
        return done

    def cut(self, now_ns: int) -> list[_Interval]:
        """What threads that have not left their core have held until now; they go on from here."""
        done: list[_Interval] = []
        for tid, (pid, core, start) in list(self._running.items()):
            if now_ns > start:
                self._running[tid] = (pid, core, now_ns)
                self._close(pid, tid, core, start, now_ns, done)
        return done


class UnitSampler:
    """Cores by perf's context-switch records."""

    name = "units"
    source = "perf context switches"

    def __init__(self, clock: Clock, rank_of: RankOf, role_of: RoleOf) -> None:
        self._clock, self._rank_of, self._role_of = clock, rank_of, role_of
        self._buffers: list[SwitchBuffer] = []
        self._intervals = SwitchIntervals()
        self._waiting: list[_Interval] = []
        self._lost = 0

    def open(self) -> None:
        """Tries on this process; raises SamplerUnavailable."""
        SwitchBuffer(os.getpid(), 0, pages=1).close()

    def attach(self, pid: int) -> None:
        """One buffer a core: inherited events with a buffer must be bound to one."""
        for core in range(os.cpu_count() or 1):
            try:
                self._buffers.append(SwitchBuffer(pid, core))
            except SamplerUnavailable:
                if core == 0:
                    raise

    def poll(self) -> list[Row]:
        """Intervals of ranks that are complete."""
        switches = [switch for buffer in self._buffers for switch in buffer.read()]
        switches.sort(key=_in_time)
        self._waiting += self._intervals.take(switches)
        if switches:
            newest = switches[-1].t_ns
            self._waiting += self._intervals.cut(newest)
            self._waiting += self._intervals.flush(newest - MERGE_GAP_NS)
            return self._rows(newest)
        return []

    def _rows(self, newest_ns: int) -> list[Row]:
        rows: list[Row] = []
        kept: list[_Interval] = []
        rank_of, role_of = cache(self._rank_of), cache(self._role_of)
        for i in self._waiting:
            rank = rank_of(i.pid)
            if rank is None:
                if newest_ns - i.end_ns < HOLD_NS:
                    kept.append(i)
                continue
            row = {
                "rank": rank,
                "launch": i.tid,
                "unit": i.core,
                "role": role_of(i.pid, i.tid),
                "start_ns": i.start_ns + self._clock.offset_ns,
                "end_ns": i.end_ns + self._clock.offset_ns,
                "evidence": "measured",
            }
            rows.append(("unit_intervals", rank, row))
        self._waiting = kept
        lost = sum(buffer.lost for buffer in self._buffers)
        if lost > self._lost:
            text = f"{lost - self._lost} context-switch records were lost: use of cores is incomplete"
            row = {"t_ns": self._clock.epoch_ns(newest_ns), "level": "warning", "source": "units", "message": text}
            rows.append(("log", None, row | {"dropped": lost - self._lost}))
            self._lost = lost
        return rows

    def close(self) -> list[Row]:
        """The last intervals."""
        rows = self.poll()
        self._waiting += self._intervals.flush(1 << 62)
        rows += self._rows(1 << 61)
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        return rows


def _in_time(switch: Switch) -> tuple[int, bool]:
    """Order of switches: at one time, who leaves goes first."""
    return switch.t_ns, not switch.leaves


class SchedstatSampler:
    """Time on a core by thread between two polls, where perf is not to be had: no times of day, no exact core."""

    name = "units"
    source = "/proc/<pid>/task/*/schedstat"

    def __init__(self, clock: Clock, rank_of: RankOf, role_of: RoleOf, pids: PidSource, root: Path = Path("/")) -> None:
        self._clock, self._rank_of, self._role_of, self._pids, self._root = clock, rank_of, role_of, pids, root
        self._before: dict[tuple[int, int], tuple[int, int]] = {}

    def open(self) -> None:
        """Raises SamplerUnavailable where the kernel keeps no schedstat."""
        if not (self._root / f"proc/{os.getpid()}/schedstat").exists():
            raise SamplerUnavailable("this kernel keeps no /proc/<pid>/schedstat")

    def attach(self, pid: int) -> None:
        """Nothing to do: processes are found as they become ranks."""

    def poll(self) -> list[Row]:
        """An interval a thread as long as its time on a core since the last poll, ending now."""
        now = time.monotonic_ns()
        rows: list[Row] = []
        for pid in self._pids():
            rank = self._rank_of(pid)
            if rank is None:
                continue
            for tid, (on_core, core) in _thread_times(pid, self._root).items():
                before = self._before.get((pid, tid))
                self._before[(pid, tid)] = (on_core, now)
                if before is None or on_core <= before[0]:
                    continue
                held = min(on_core - before[0], now - before[1])
                row = {
                    "rank": rank,
                    "launch": tid,
                    "unit": core,
                    "role": self._role_of(pid, tid),
                    "evidence": "derived",
                }
                row |= {"start_ns": self._clock.epoch_ns(now - held), "end_ns": self._clock.epoch_ns(now)}
                rows.append(("unit_intervals", rank, row))
        return rows

    def close(self) -> list[Row]:
        """The last of it."""
        return self.poll()


def _thread_times(pid: int, root: Path) -> dict[int, tuple[int, int]]:
    """ns on a core, and the last core, by thread."""
    found: dict[int, tuple[int, int]] = {}
    try:
        tids = [int(name) for name in os.listdir(root / f"proc/{pid}/task")]
    except OSError:
        return found
    for tid in tids:
        try:
            on_core = int((root / f"proc/{pid}/task/{tid}/schedstat").read_text().split()[0])
            core = int((root / f"proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()[36])
        except (OSError, IndexError, ValueError):
            continue  # the thread has just ended
        found[tid] = (on_core, core)
    return found
