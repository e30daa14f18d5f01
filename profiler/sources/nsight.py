"""Nsight Systems' SQLite export: the work of its devices, launches and NVTX ranges as columns, a rank a process.

Tables and columns as in NVIDIA's "SQLite Schema Reference" (Nsight Systems user guide, exporter). They differ by
version: what is not there is not known. A `globalTid` holds a process in bits 24-47 and a thread in bits 0-23.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.sources.columns import (
    FARTHEST_NS,
    LAUNCH,
    LONGEST_NS,
    NO_INT,
    NO_TEXT,
    OPERATOR,
    RANGE,
    WORK,
    Codes,
    Growing,
    Ints,
    Numbered,
    Origin,
    Texts,
    Thread,
    TraceColumns,
    TraceFile,
    empty,
    groups_of,
    sizes,
)
from moescope.profiler.sources.nsight_processes import Processes
from moescope.profiler.sources.sqlite import Database, integers, opened

KERNELS, COPIES, SETS, GRAPHS = (
    f"CUPTI_ACTIVITY_KIND_{kind}" for kind in ("KERNEL", "MEMCPY", "MEMSET", "GRAPH_TRACE")
)
LAUNCHES: Final = ("CUPTI_ACTIVITY_KIND_RUNTIME", "CUPTI_ACTIVITY_KIND_DRIVER")
NVTX: Final = "NVTX_EVENTS"
PUSH_POP, START_END = 59, 60
"""`eventType` of the two kinds of ranges; all others are marks and names."""

_THREAD_BITS: Final = 24
_COPY_KINDS: Final = {
    1: "HtoD", 2: "DtoH", 3: "HtoA", 4: "AtoH", 5: "AtoA", 6: "AtoD", 7: "DtoA", 8: "DtoD", 9: "HtoH", 10: "PtoP",
    11: "HtoD", 12: "DtoH", 13: "DtoD",
}  # fmt: skip
"""CUPTI's `CUpti_ActivityMemcpyKind`, and from 11 on Nsight's migrations of unified memory."""
_NOT_A_PHASE: Final = re.compile(r"nccl[A-Z]\w*$|.*, op_id = \d+|(?:aten|c10d|autograd)::")
"""Ranges that NCCL puts around its own calls, and PyTorch around every operator."""


def read_nsight(path: Path) -> list[TraceFile]:
    """Read an export, one rank for each process that used a device.

    Raises NoData where it holds no device work, MoescopeError where it is no such export or damaged.
    """
    with opened(path) as database:
        if not any(table in database.tables for table in (KERNELS, COPIES, SETS, GRAPHS, NVTX)):
            raise MoescopeError(f"{path}: SQLite, but no export of Nsight Systems (no {KERNELS}, no {NVTX})")
        columns = _Reader(database).columns()
        processes = Processes.of(database)
    if not len(columns.work["start"]):
        raise NoData(f"{path}: no device work; record with `nsys profile --trace cuda,nvtx`")
    ranks = groups_of(columns)
    pids = [int(group) for group in ranks]
    several = len(pids) > 1
    found: list[TraceFile] = []
    for pid, own in zip(pids, ranks.values(), strict=True):
        used = np.unique(own.work["device"]).tolist()
        origin = Origin(
            path,
            "nsight",
            rank=processes.ranks.get(pid),
            group=f"process {pid}" if several else "",
            devices=processes.devices(pid, used),
        )
        # What is said of the file is said once.
        found.append(TraceFile(origin, replace(own, notes=[]) if found else own))
    return processes.in_order(found, pids)


class _Reader:
    """Fills the columns table by table."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.texts = Texts()
        self.threads: Numbered[tuple[int, int]] = Numbered()
        self.lost = 0
        self.open_ranges = 0
        self.only_process = 0
        """The process that launched, where there is only one: some versions do not tell whose device work is."""
        self._kernel_name = next((one for one in _NAMES if one in database.tables.get(KERNELS, ())), _NAMES[0])
        self._names = database.strings(((KERNELS, self._kernel_name), (NVTX, "textId"), ("ThreadNames", "nameId")))

    def columns(self) -> TraceColumns:
        """Everything that is wanted, times from the start of the session."""
        launches, ranges = self._launches(), self._ranges()
        launching = {pid for pid, _ in self.threads}
        self.only_process = launching.pop() if len(launching) == 1 else 0
        work = Growing(**WORK)
        self._add_kernels(work)
        self._add_copies(work)
        self._add_sets(work)
        graphs = self._add_graphs(work)
        base_ns = self._base_ns()
        notes = []
        if self.lost:
            notes.append((f"{self.lost} rows without usable times are left out", self.lost))
        if self.open_ranges:
            notes.append((f"{self.open_ranges} NVTX ranges that had not ended are left out", 0))
        if graphs:
            how = "`nsys profile --cuda-graph-trace=node` records their kernels one by one"
            notes.append((f"{graphs} launches of CUDA graphs are recorded as a whole: {how}", 0))
        if not base_ns:
            notes.append(("the time of day is not recorded: times count from the start of the session", 0))
        return TraceColumns(
            base_ns=base_ns,
            work=work.done(),
            launches=launches,
            ranges=ranges,
            device_ranges=empty(RANGE),
            operators=empty(OPERATOR),
            texts=self.texts.values(),
            threads=self._threads(),
            notes=notes,
        )

    def _named(self, ids: Sequence[object]) -> list[str | None]:
        """[ids] names of StringIds; a text that stands in a column itself is its own."""
        known = self._names
        return [known.get(one) if isinstance(one, int) else one if isinstance(one, str) else None for one in ids]

    def _base_ns(self) -> int:
        rows = self.database.rows("TARGET_INFO_SESSION_START_TIME", ("utcEpochNs",))
        told = rows[0][0] if rows else None
        return told if type(told) is int and 0 < told <= FARTHEST_NS else 0

    def _times(self, starts: Sequence[object], ends: Sequence[object]) -> tuple[NDArray[np.bool_], Ints, Ints]:
        """Which rows have times, their starts and durations. CUPTI writes two zeros where it could not take any."""
        first, last = integers(starts), integers(ends)
        good = _is_time(first) & _is_time(last) & (last >= first) & (last - first <= LONGEST_NS)
        good &= (first != 0) | (last != 0)
        return good, first[good], (last - first)[good]

    def _process_of(self, globals_: Sequence[object]) -> tuple[Ints, Ints]:
        """Process and thread of serialised ids; 0 where they are not told."""
        told = integers(globals_)
        told = np.where(told == NO_INT, 0, told)
        mask = (1 << _THREAD_BITS) - 1
        return told >> _THREAD_BITS & mask, told & mask

    def _threads_of(self, processes: Ints, threads: Ints) -> Codes:
        return self.threads.of(zip(processes.tolist(), threads.tolist(), strict=True))

    def _add(
        self, work: Growing, piece: Sequence[list[Any]], names: Sequence[str | None], **more: NDArray[Any]
    ) -> None:
        """Add device work. piece: start, end, deviceId, streamId, correlationId, globalPid; more: [rows] of WORK"""
        starts, ends, devices, streams, correlations, processes = piece
        good, start, dur = self._times(starts, ends)
        self.lost += int((~good).sum())
        pid, _ = self._process_of(processes)
        pid = np.where(pid == 0, self.only_process, pid)
        device = integers(devices)
        none = np.full(len(starts), NO_TEXT, np.int32)
        unknown = np.full(len(starts), NO_INT, np.int64)
        columns: dict[str, NDArray[Any]] = {
            "thread": self._threads_of(pid, np.full(len(pid), -1)),
            "device": np.where((device < 0) | (device >= 2**31), 0, device),
            "stream": self.texts.codes("" if one is None else str(one) for one in streams),
            "name": self.texts.codes(name or "" for name in names),
            "correlation": integers(correlations),
            "grid": none, "block": none, "dtype": none, "op": none, "group": none, "ranks": none,
            "message": none,
            "registers": unknown, "shared": unknown, "bytes": unknown,
        }  # fmt: skip
        columns |= more
        work.add(start=start, dur=dur, **{name: values[good] for name, values in columns.items()})

    def _add_kernels(self, work: Growing) -> None:
        columns = (
            *_ACTIVITY, self._kernel_name, "gridX", "gridY", "gridZ", "blockX", "blockY", "blockZ",
            "registersPerThread", "staticSharedMemory", "dynamicSharedMemory",
        )  # fmt: skip
        for piece in self.database.pieces(KERNELS, columns):
            names, dimensions, resources = piece[6], piece[7:13], [integers(one) for one in piece[13:]]
            registers, static, dynamic = resources
            static, dynamic = sizes(static), sizes(dynamic)
            both = (static != NO_INT) & (dynamic != NO_INT)
            self._add(
                work,
                piece[:6],
                self._named(names),
                grid=self._triples(*dimensions[:3]),
                block=self._triples(*dimensions[3:]),
                registers=np.where((registers < 0) | (registers >= 2**31), NO_INT, registers),
                shared=np.where(both, np.where(both, static, 0) + np.where(both, dynamic, 0), NO_INT),
            )

    def _triples(self, *dimensions: list[Any]) -> Codes:
        return self.texts.codes(
            ",".join(map(str, three)) if all(type(one) is int for one in three) else None
            for three in zip(*dimensions, strict=True)
        )

    def _add_copies(self, work: Growing) -> None:
        for piece in self.database.pieces(COPIES, (*_ACTIVITY, "copyKind", "bytes")):
            names = [f"Memcpy {_COPY_KINDS.get(kind, f'(kind {kind})')}" for kind in piece[6]]
            self._add(work, piece[:6], names, bytes=sizes(integers(piece[7])))

    def _add_sets(self, work: Growing) -> None:
        for piece in self.database.pieces(SETS, (*_ACTIVITY, "bytes")):
            self._add(work, piece[:6], ["Memset (Device)"] * len(piece[0]), bytes=sizes(integers(piece[6])))

    def _add_graphs(self, work: Growing) -> int:
        """Launches of graphs whose kernels are not recorded one by one; their number."""
        number = 0
        for piece in self.database.pieces(GRAPHS, (*_ACTIVITY, "graphId")):
            self._add(work, piece[:6], [f"CUDA graph {graph}" for graph in piece[6]])
            number += len(piece[0])
        return number

    def _launches(self) -> dict[str, NDArray[Any]]:
        found = Growing(**LAUNCH)
        for table in LAUNCHES:
            for starts, threads, correlations in self.database.pieces(table, ("start", "globalTid", "correlationId")):
                start = integers(starts)
                pid, tid = self._process_of(threads)
                correlation = integers(correlations)
                good = _is_time(start) & (correlation != NO_INT)
                found.add(
                    start=start[good], correlation=correlation[good], thread=self._threads_of(pid[good], tid[good])
                )
        return found.done()

    def _ranges(self) -> dict[str, NDArray[Any]]:
        """NVTX ranges of the model."""
        found = Growing(**RANGE)
        columns = ("start", "end", "eventType", "text", "textId", "globalTid")
        typed = "eventType" in self.database.tables.get(NVTX, ())
        for starts, ends, kinds, texts, ids, threads in self.database.pieces(NVTX, columns):
            names = [
                text if isinstance(text, str) else named for text, named in zip(texts, self._named(ids), strict=True)
            ]
            wanted = np.array(
                [
                    (not typed or kind in (PUSH_POP, START_END)) and bool(name) and not _NOT_A_PHASE.match(name or "")
                    for kind, name in zip(kinds, names, strict=True)
                ],
                np.bool_,
            )
            unfinished = wanted & np.array([end is None or end == -1 for end in ends], np.bool_)
            if typed:
                self.open_ranges += int(unfinished.sum())
            rows = np.flatnonzero(wanted & ~unfinished)
            good, start, dur = self._times([starts[row] for row in rows], [ends[row] for row in rows])
            self.lost += int((~good).sum())
            rows = rows[good]
            pid, tid = self._process_of([threads[row] for row in rows])
            found.add(
                start=start,
                dur=dur,
                thread=self._threads_of(pid, tid),
                name=self.texts.codes(names[row] for row in rows),
            )
        return found.done()

    def _threads(self) -> list[Thread]:
        named: dict[tuple[int, int], str | None] = {}
        for globals_, ids in self.database.pieces("ThreadNames", ("globalTid", "nameId")):
            pid, tid = self._process_of(globals_)
            named |= dict(zip(zip(pid.tolist(), tid.tolist(), strict=True), self._named(ids), strict=True))
        return [Thread(str(pid), _label(named.get((pid, tid)), tid), str(pid)) for pid, tid in self.threads]


_ACTIVITY: Final = ("start", "end", "deviceId", "streamId", "correlationId", "globalPid")
_NAMES: Final = ("demangledName", "shortName", "mangledName", "name")
"""Columns that may hold a kernel's name, the best first."""


def _is_time(times: Ints) -> NDArray[np.bool_]:
    return (times >= -FARTHEST_NS) & (times <= FARTHEST_NS)


def _label(name: str | None, tid: int) -> str:
    return f"{name or ''} {tid}".strip()
