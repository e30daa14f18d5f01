"""Which core ran which thread when, and whether that thread computed or communicated."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import PidSource, RankOf, RoleOf, Row, Rows, SamplerUnavailable
from moescope.collectors.samplers.perf_event import SWITCH, SwitchBuffer, Switches
from moescope.collectors.schema import arrow_schema
from moescope.collectors.structured import joined, pick

if TYPE_CHECKING:
    import pyarrow as pa

MERGE_GAP_NS: Final = 20_000
"""A thread that leaves its core for less than this has not given it up."""

PERIOD_S: Final = 1.0
UNWATCHED_S: Final = 10.0
PAGES: Final = (512, 128)
"""Of a core's buffer: what is tried first, for all cores, and what every user may have (perf_event_mlock_kb)."""
PAGES_IN_ALL: Final = 8192
"""What is tried first may come to."""
FULL: Final = 0.4
"""Share of a core's buffer from which on it is read without waiting for the period to be over."""

HOLD_NS: Final = 3_000_000_000
"""How long intervals of a process wait for it to be given a rank."""


INTERVAL: Final = np.dtype([("pid", "<u4"), ("tid", "<u4"), ("core", "<u4"), ("start_ns", "<i8"), ("end_ns", "<i8")])

Intervals = npt.NDArray[np.void]
Column = npt.NDArray[Any]


class SwitchIntervals:
    """Turns switch records into intervals, merging short gaps of one thread on one core."""

    def __init__(self, alive: Callable[[int, int], bool] = lambda pid, tid: True) -> None:
        """alive: whether a thread of a process still exists: a thread that ends leaves its core without a record"""
        self._alive = alive
        self._running = np.empty(0, SWITCH)

    def take(self, switches: Switches, until_ns: int) -> Intervals:
        """Intervals up to `until_ns`; a thread that is on a core then goes on from there.

        switches: SWITCH, all cores together, in any order, none after `until_ns`
        """
        found = joined((self._running, switches))
        # Columns by themselves: rows of several fields are moved ten times as slowly.
        pid, tid, core, t_ns, leaves = (found[name] for name in ("pid", "tid", "core", "t_ns", "leaves"))
        # At one time, who leaves goes first.
        order = np.lexsort((2 * t_ns - leaves, core))
        pid, tid, core, t_ns, leaves = (column[order] for column in (pid, tid, core, t_ns, leaves))
        last = np.append(core[1:] != core[:-1], True)[: len(found)]
        # Whatever comes next on a core, the thread before has left it. A leaving without a coming: that was before the
        # first record, or lost.
        came = np.flatnonzero(~leaves & ~last)
        still = np.flatnonzero(~leaves & last)
        lives = [self._alive(int(pid[at]), int(tid[at])) for at in still]
        still = still[np.array(lives, np.bool_)]
        self._running = found[order[still]]
        self._running["t_ns"] = until_ns
        ends_ns = np.concatenate((t_ns[came + 1], np.full(len(still), until_ns)))
        first = np.concatenate((came, still))
        # By core and time, as they were: those that go on are the last of their cores.
        first, at = np.unique(first, return_index=True) if len(still) else (first, np.arange(len(first)))
        return _merged(pid[first], tid[first], core[first], t_ns[first], ends_ns[at])


def _merged(pid: Column, tid: Column, core: Column, starts_ns: Column, ends_ns: Column) -> Intervals:
    """Intervals of some length, with the short gaps closed, by thread and core; they come by core and time."""
    order = np.argsort(_codes(tid), kind="stable")
    order = order[ends_ns[order] > starts_ns[order]]
    pid, tid, core, starts_ns, ends_ns = (column[order] for column in (pid, tid, core, starts_ns, ends_ns))
    parted = (tid[1:] != tid[:-1]) | (core[1:] != core[:-1]) | (starts_ns[1:] - ends_ns[:-1] >= MERGE_GAP_NS)
    first = np.flatnonzero(np.append(True, parted)[: len(order)])
    merged = np.empty(len(first), INTERVAL)
    merged["pid"], merged["tid"], merged["core"] = pid[first], tid[first], core[first]
    merged["start_ns"] = starts_ns[first]
    merged["end_ns"] = ends_ns[np.append(first[1:], len(order)) - 1] if len(first) else ends_ns[:0]
    return merged


def _codes(tid: Column) -> Column:
    """Numbers in the order of `tid`, of two bytes where that can be: these are sorted in a tenth of the time."""
    lowest = tid.min(initial=np.iinfo(np.uint32).max)
    return (tid - lowest).astype(np.uint16) if len(tid) and tid.max() - lowest < 1 << 16 else tid


def _exists(pid: int, tid: int) -> bool:
    """Whether the thread has not ended."""
    try:
        state = Path(f"/proc/{pid}/task/{tid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in "ZX"


class UnitSampler:
    """Cores by perf's context-switch records."""

    name = "units"
    source = "perf context switches"

    def __init__(self, clock: Clock, rank_of: RankOf, role_of: RoleOf) -> None:
        self._clock, self._rank_of, self._role_of = clock, rank_of, role_of
        self._buffers: list[SwitchBuffer] = []
        self._early = np.empty(0, SWITCH)
        self._intervals = SwitchIntervals(_exists)
        self._waiting = np.empty(0, INTERVAL)
        self._lost = 0

    @property
    def period_s(self) -> float:
        """Seconds between two polls: none where a buffer fills up."""
        return 0.0 if any(buffer.fill() > FULL for buffer in self._buffers) else PERIOD_S

    @property
    def wakes(self) -> list[int]:
        """Files that are readable where a buffer fills up."""
        return [buffer.fileno() for buffer in self._buffers]

    @property
    def unwatched_s(self) -> float:
        """The same while nobody looks."""
        return UNWATCHED_S if self.period_s else 0.0

    def open(self) -> None:
        """Tries on this process; raises SamplerUnavailable."""
        SwitchBuffer(os.getpid(), 0, pages=1).close()

    def attach(self, pid: int) -> None:
        """One buffer a core: inherited events with a buffer must be bound to one."""
        cores = range(os.cpu_count() or 1)
        most, least = PAGES
        if most * len(cores) <= PAGES_IN_ALL:
            try:
                self._buffers = _buffers(pid, cores, most)
                return
            except SamplerUnavailable:
                pass  # what one core's has too much another's would lack
        self._buffers = _buffers(pid, cores, least, missing_too=True)

    def poll(self) -> list[Row | Rows]:
        """Intervals of ranks until now."""
        until_ns = time.monotonic_ns()
        switches = joined((self._early, *(buffer.read() for buffer in self._buffers)))
        # Cores are read one after another: what came meanwhile waits until all of them have told it.
        early = switches["t_ns"] > until_ns
        self._early = pick(switches, early)
        found = self._intervals.take(pick(switches, ~early), until_ns)
        return self._rows(joined((self._waiting, found)), until_ns)

    def _rows(self, intervals: Intervals, now_ns: int) -> list[Row | Rows]:
        # They come by thread, but for those that have waited.
        if len(self._waiting):
            intervals = pick(intervals, np.argsort(intervals["tid"], kind="stable"))
        tid = intervals["tid"]
        first = np.flatnonzero(np.append(True, tid[1:] != tid[:-1])[: len(tid)])
        counts = np.diff(np.append(first, len(tid)))
        threads = list(zip(intervals["pid"][first].tolist(), tid[first].tolist(), strict=True))
        owners = {pid: self._rank_of(pid) for pid in {pid for pid, _ in threads}}
        ranks = np.array([-1 if (owner := owners[pid]) is None else owner for pid, _ in threads], np.int32)
        rank = np.repeat(ranks, counts)
        rows: list[Row | Rows] = []
        for owner in sorted(set(ranks.tolist()) - {-1}):
            mine = ranks == owner
            roles = [self._role_of(*thread) for thread, own in zip(threads, mine.tolist(), strict=True) if own]
            which = np.repeat(np.arange(len(roles)), counts[mine])
            rows.append(("unit_intervals", owner, self._batch(owner, pick(intervals, rank == owner), roles, which)))
        self._waiting = pick(intervals, (rank == -1) & (now_ns - intervals["end_ns"] < HOLD_NS))
        lost = sum(buffer.lost for buffer in self._buffers)
        if lost > self._lost:
            text = f"{lost - self._lost} context-switch records were lost: use of cores is incomplete"
            row = {"t_ns": self._clock.epoch_ns(now_ns), "level": "warning", "source": "units", "message": text}
            rows.append(("log", None, row | {"dropped": lost - self._lost}))
            self._lost = lost
        return rows

    def _batch(self, rank: int, intervals: Intervals, roles: list[str], which: npt.NDArray[np.intp]) -> pa.RecordBatch:
        """roles: of each thread; which: the thread of each interval"""
        import pyarrow as pa

        schema = arrow_schema("unit_intervals")
        columns = {
            "rank": np.full(len(intervals), rank, np.int32),
            "device": pa.nulls(len(intervals)),
            "launch": intervals["tid"].astype(np.int64),
            "unit": intervals["core"].astype(np.int32),
            "role": pa.array(roles, pa.string()).take(pa.array(which)),
            "start_ns": intervals["start_ns"] + self._clock.offset_ns,
            "end_ns": intervals["end_ns"] + self._clock.offset_ns,
            "evidence": pa.repeat("measured", len(intervals)),
        }
        return pa.RecordBatch.from_arrays([pa.array(columns[f.name], f.type) for f in schema], schema=schema)

    def close(self) -> list[Row | Rows]:
        """The last intervals."""
        rows = self.poll()
        for buffer in self._buffers:
            buffer.close()
        self._buffers = []
        return rows


def _buffers(pid: int, cores: range, pages: int, *, missing_too: bool = False) -> list[SwitchBuffer]:
    """One a core; raises SamplerUnavailable, with none left open, where one cannot be had.

    missing_too: cores beside the first may be left out, as one that is offline is
    """
    found: list[SwitchBuffer] = []
    for core in cores:
        try:
            found.append(SwitchBuffer(pid, core, pages))
        except SamplerUnavailable:
            if missing_too and core:
                continue
            for buffer in found:
                buffer.close()
            raise
    return found


class SchedstatSampler:
    """Time on a core by thread between two polls, where perf is not to be had: no times of day, no exact core."""

    name = "units"
    source = "/proc/<pid>/task/*/schedstat"
    period_s = 0.5
    """Seconds between two polls: what has ended between them is not seen."""

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
