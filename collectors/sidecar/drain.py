"""Takes one process's records out of its ring: how much of them can be turned into rows now, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from struct import Struct, unpack_from
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.kineto import DEVICE_KERNELS
from moescope.collectors.agent.packed import COMM
from moescope.collectors.agent.recorder import BLOB_COST_NS, PHASE_COST_NS
from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import (
    BLOB,
    DONE,
    EXECUTION,
    OPERATOR,
    PHASE,
    RECORD,
    STEP,
    Ring,
    ThreadRecords,
    blob_bytes,
    blob_heads,
    blob_payload,
)
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.calls import Call, Calls
from moescope.collectors.sidecar.device import device_records, told_kernels
from moescope.collectors.sidecar.file_reader import FileRing
from moescope.collectors.sidecar.names import COMM_FAILED, COMM_JSON, COMM_PACKED, DEVICE, ROW_PACKED, Names
from moescope.collectors.sidecar.operators import whole_trees
from moescope.collectors.sidecar.rows import operators, packed, ranges, told, where

HOLD_NS: Final = 2_000_000_000
"""How long records wait for what belongs to them: an issued call for its completion, a completion for its range."""


@dataclass
class _Taken:
    """A thread's new records.

    heads: where blobs begin; kinds: of these, as in `Names`; is_record: which are no blob's payload
    """

    thread: ThreadRecords
    heads: npt.NDArray[np.intp]
    kinds: npt.NDArray[np.uint8]
    is_record: npt.NDArray[np.bool_]
    issues: list[tuple[int, int]]
    """Place and number of each call that was issued."""
    failures: set[int]


class ProcessDrain:
    """Turns what a ring holds into rows; keeps what must wait (open operator trees, calls on their way) in the ring."""

    def __init__(self, ring: Ring | FileRing, clock: Clock) -> None:
        self.ring = ring
        self.origin = Origin(ring.pid, clock)
        self.calls = Calls(self.origin)
        self.events = 0
        self.last_ns = 0
        self.events_cost_ns = 0
        self._names = Names(ring.names)

    def drain(self, now_ns: int, *, final: bool = False) -> Batch:
        """What is new and whole; everything there is where `final`. now_ns: CLOCK_MONOTONIC."""
        batch = Batch()
        taken = self.ring.take()
        self._names.update()
        threads = [self._view(thread) for thread in taken]
        counts = [len(t.thread.records) for t in threads] if final else self._whole(threads, now_ns)
        for t, count in zip(threads, counts, strict=True):
            if count:
                self._blobs(t, count, batch)
                batch.commits.append((t.thread, count))
        for t, count in zip(threads, counts, strict=True):
            if not count:
                continue
            records = where(t.thread.records[:count], t.is_record[:count])
            types, tid = records["type"], t.thread.tid
            self._count(types, records["start_ns"])
            operators(self.origin, tid, where(records, types == OPERATOR), self._names, batch)
            self.calls.executed(tid, records[(types == EXECUTION) | (types == DONE)], self._names)
            ranges(self.origin, tid, records, self._names, batch)
        if final:
            self.calls.unfinished()
        self.calls.store(batch)
        return batch

    def commit(self, batch: Batch) -> None:
        """Marks the batch's records as stored."""
        for thread, count in batch.commits:
            self.ring.commit(thread, count)

    def _view(self, thread: ThreadRecords) -> _Taken:
        records = thread.records
        heads, is_record = blob_heads(records)
        kinds = self._names.kinds[records["name"][heads]]
        at = heads[kinds == COMM_PACKED]
        numbers = blob_bytes(records, at, 8).view("<i8")[:, 0] if len(at) else at
        issues = list(zip(at.tolist(), numbers.tolist(), strict=True))
        issues += [(int(i), int(blob_payload(records, i)[0])) for i in heads[kinds == COMM_JSON]]
        failures = {int(blob_payload(records, i)[0]) for i in heads[kinds == COMM_FAILED]}
        return _Taken(thread, heads, kinds, is_record, issues, failures)

    def _whole(self, threads: list[_Taken], now_ns: int) -> list[int]:
        """How many records of each thread can be turned into rows now."""
        completed: set[int] = set()
        for t in threads:
            records = t.thread.records
            completed.update(records["a"][(records["type"] == DONE) & t.is_record].tolist())
            completed.update(records["b"][(records["type"] == EXECUTION) & t.is_record].tolist())
        counts = [self._ready(t, completed, now_ns) for t in threads]
        issued = {number for t, count in zip(threads, counts, strict=True) for at, number in t.issues if at < count}
        return [self._known(t, count, issued, now_ns) for t, count in zip(threads, counts, strict=True)]

    def _ready(self, t: _Taken, completed: set[int], now_ns: int) -> int:
        """How many records there are before the first that must wait for later ones of any thread."""
        records = t.thread.records
        if len(t.thread.positions) > 8:
            return len(records)
        types = np.where(t.is_record, records["type"], 0).astype(np.uint8)
        count = whole_trees(types, records["depth"], OPERATOR)
        if types[len(types) - 1] == DONE and now_ns - int(records["start_ns"][-1]) < HOLD_NS:
            count = min(count, len(types) - 1)
        for at, number in sorted(t.issues):
            if at >= count:
                break
            if number in completed or number in t.failures or number in self.calls.seen:
                continue
            if now_ns - int(records["start_ns"][at]) < HOLD_NS:
                return at
        return count

    def _known(self, t: _Taken, count: int, issued: set[int], now_ns: int) -> int:
        """How many records there are before the first that completes a call which another thread still holds back."""
        records = t.thread.records[:count]
        types = np.where(t.is_record[:count], records["type"], 0)
        for at in np.flatnonzero((types == DONE) | ((types == EXECUTION) & (records["b"] > 0))).tolist():
            number = int(records["a" if types[at] == DONE else "b"][at])
            if (
                number not in issued
                and number not in self.calls.seen
                and now_ns - int(records["start_ns"][at]) < HOLD_NS
            ):
                return int(at)
        return count

    def _count(self, types: npt.NDArray[np.uint8], starts_ns: npt.NDArray[np.int64]) -> None:
        """Counts what shows a rank at work, and what its phases and rows have cost it."""
        by_type = np.bincount(types, minlength=8)
        # Logs and group names come from any process that imports torch.
        self.events += int(by_type[[OPERATOR, PHASE, EXECUTION, DONE, STEP]].sum())
        self.events_cost_ns += int(by_type[PHASE]) * PHASE_COST_NS + int(by_type[BLOB]) * BLOB_COST_NS
        if len(starts_ns):
            self.last_ns = max(self.last_ns, int(starts_ns.max()))

    def _blobs(self, t: _Taken, count: int, batch: Batch) -> None:
        """What is told in blobs, groups before their calls and calls before their completions."""
        records, tid = t.thread.records, t.thread.tid
        inside = t.heads < count
        single = inside & (t.kinds != ROW_PACKED) & (t.kinds != DEVICE)
        others = t.heads[single]
        kinds = t.kinds[single].tolist()
        heads = records[others]
        data = records.view(np.uint8).data
        for at, kind, number, phase in zip(
            others.tolist(), kinds, heads["name"].tolist(), heads["a"].tolist(), strict=True
        ):
            name = self._names[number]
            if kind == COMM_PACKED:
                self.calls.issued(*_unpacked(name, data, (at + 1) * RECORD.itemsize, phase))
                continue
            payload = blob_payload(records, at)
            if kind == COMM_JSON:
                call, op, group, issue_ns, sent, received, dtype = payload
                self.calls.issued(call, Call(op, group, issue_ns, sent, received, dtype, phase))
            elif kind == COMM_FAILED:
                self.calls.failed(payload[0])
            elif name == "group":
                self.calls.group(payload)
            elif name == DEVICE_KERNELS:
                self.events += told_kernels(self.origin, payload, batch)
            else:
                self._told(tid, name, records[at], payload, batch)
        device = t.heads[inside & (t.kinds == DEVICE)].tolist()
        if device:
            payloads = [blob_payload(records, at, raw=True) for at in device]
            self.events += device_records(self.origin, payloads, self._names, batch)
        rows = t.heads[inside & (t.kinds == ROW_PACKED)]
        if len(rows) and packed(self.origin, tid, records, rows, self._names, batch):
            self.calls.threads.add(tid)

    def _told(self, tid: int, kind: str, record: Any, payload: Any, batch: Batch) -> None:
        try:
            told(self.origin, tid, kind, record, payload, batch)
            if kind == "kernel" and payload["kind"] == "comm":
                self.calls.threads.add(tid)
        except Exception as error:  # noqa: BLE001  whatever a model tells must not cost what else it has told
            text = f"a row of {kind} left out, it is not as it should be: {error!r}"
            log = {"level": "error", "source": "emit", "message": text, "dropped": 0, "rank": self.origin.rank}
            batch.add("log", log | {"t_ns": self.origin.epoch(record["start_ns"])})


_CALL_HEAD = Struct("<4q")


@lru_cache(maxsize=4096)
def _call_kind(kind: str) -> tuple[str, str, str]:
    """Operation, element type and group of a packed call."""
    op, dtype, group = kind.removeprefix(COMM).split(" ", 2)
    return op, dtype, group


def _unpacked(kind: str, data: memoryview, at: int, phase: int) -> tuple[int, Call]:
    """A collective's issue as `pack_comm` wrote it at byte `at`: its number, and the call."""
    op, dtype, group = _call_kind(kind)
    number, issue_ns, n_sent, n_received = _CALL_HEAD.unpack_from(data, at)
    n = max(n_sent, 0)
    sizes = unpack_from(f"<{n + max(n_received, 0)}q", data, at + _CALL_HEAD.size)
    sent = None if n_sent < 0 else list(sizes[:n])
    received = None if n_received < 0 else list(sizes[n:])
    return number, Call(op, group, issue_ns, sent, received, dtype, phase)
