"""Takes one process's records out of its ring: how much of them can be turned into rows now, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.kineto import DEVICE_KERNELS
from moescope.collectors.agent.recorder import BLOB_COST_NS, CALL_COST_NS, PHASE_COST_NS
from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import (
    BLOB,
    CALL,
    DONE,
    EXECUTION,
    OPERATOR,
    PHASE,
    STEP,
    UNTOLD,
    Records,
    Ring,
    ThreadRecords,
    blob_bytes,
    blob_heads,
    blob_payload,
)
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.call_columns import Call
from moescope.collectors.sidecar.calls import Calls
from moescope.collectors.sidecar.device import RECORD as DEVICE_RECORD
from moescope.collectors.sidecar.device import Launched, device_records, launched, told_kernels
from moescope.collectors.sidecar.file_reader import FileRing
from moescope.collectors.sidecar.names import (
    ANYONES,
    COMM_FAILED,
    COMM_JSON,
    COMM_PACKED,
    DEVICE,
    ROW_PACKED,
    TOGETHER,
    Names,
)
from moescope.collectors.sidecar.operators import whole_trees
from moescope.collectors.sidecar.rows import operators, packed, ranges, told, where
from moescope.collectors.structured import pick

HOLD_NS: Final = 2_000_000_000
"""How long records wait for what belongs to them: an issued call for its completion, a completion for its range."""

IDLE_FILL: Final = 0.2
"""What a process has left before it shows work of its own waits in its ring, up to this share of it."""

TOGETHER_KEPT: Final = 4096
"""Of how many launches it is known that they are several calls: their kernels come within moments, or not at all."""

_IN_BULK: Final = np.zeros(256, np.bool_)
"""By kind of blob: those of which many are taken in at once."""
_IN_BULK[[COMM_PACKED, ROW_PACKED, DEVICE, TOGETHER]] = True
_WORK: Final = (OPERATOR, PHASE, EXECUTION, DONE, STEP, CALL)
_NO_NUMBERS: Final = np.empty(0, np.int64)
_NO_DEVICE: Final = np.empty(0, DEVICE_RECORD)
_NO_CALLS: Final = Launched()


@dataclass
class _Taken:
    """A thread's new records.

    heads: where blobs begin; kinds: of these, as in `Names`; is_record: which are no blob's payload
    device: what a GPU did, of all its blobs; device_at: the head of each
    """

    thread: ThreadRecords
    heads: npt.NDArray[np.intp]
    kinds: npt.NDArray[np.uint8]
    is_record: npt.NDArray[np.bool_]
    issues: npt.NDArray[np.intp]
    """Place of each call that was issued, rising."""
    numbers: npt.NDArray[np.int64]
    """The number of each."""
    failures: list[int]
    device: npt.NDArray[np.void]
    device_at: npt.NDArray[np.intp]
    launched: Launched


class ProcessDrain:
    """Turns what a ring holds into rows; keeps what must wait (open operator trees, calls on their way) in the ring."""

    def __init__(self, ring: Ring | FileRing, clock: Clock) -> None:
        self.ring = ring
        self.origin = Origin(ring.pid, clock)
        self.calls = Calls(self.origin)
        self.at_work = False
        """Whether the process has done anything of its own: logs and groups' names come from any that imports torch."""
        self.last_ns = 0
        self.events_cost_ns = 0
        self._names = Names(ring.names)
        self._together: dict[int, list[int]] = {}
        """Calls that were launched as one, by the number of that one."""

    def drain(self, now_ns: int, *, final: bool = False) -> Batch:
        """What is new and whole; everything there is where `final`. now_ns: CLOCK_MONOTONIC.

        Before the process is at work there is nothing, while its ring has room: who keeps no idle process loses none.
        """
        batch = Batch()
        taken = self.ring.take()
        self._names.update()
        threads = [self._view(thread) for thread in taken]
        for t in threads:
            if len(t.device):
                t.launched = launched(t.device, t.device_at, self._names, self._together)
        self.at_work = self.at_work or any(_shows_work(t) for t in threads)
        if not self.at_work and not final and self.ring.fill() < IDLE_FILL:
            return batch
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
            self.calls.executed(tid, pick(records, (types == EXECUTION) | (types == DONE)), self._names)
            on_gpu = t.launched.before(count)
            if len(on_gpu.calls):
                self.calls.executed_on_gpu(on_gpu.executions(), self._names)
            ranges(self.origin, tid, records, self._names, batch)
        self.calls.store(batch, final=final)
        return batch

    def commit(self, batch: Batch) -> None:
        """Marks the batch's records as stored."""
        for thread, count in batch.commits:
            self.ring.commit(thread, count)

    def _view(self, thread: ThreadRecords) -> _Taken:
        records = thread.records
        self.origin.named(thread.tid, thread.name)
        heads, is_record = blob_heads(records)
        kinds = self._names.kinds[records["name"][heads]]
        issues = heads[kinds == COMM_PACKED]
        numbers = blob_bytes(records, issues, 8).view("<i8")[:, 0]
        told = heads[kinds == COMM_JSON]
        if len(told):
            numbers = np.append(numbers, [int(blob_payload(records, i)[0]) for i in told])
            issues = np.append(issues, told)
            order = np.argsort(issues)
            issues, numbers = issues[order], numbers[order]
        failures = [int(blob_payload(records, i)[0]) for i in heads[kinds == COMM_FAILED]]
        for i in heads[kinds == TOGETHER]:
            number, *members = blob_payload(records, i)
            self._together[number] = members
            if len(self._together) > TOGETHER_KEPT:
                del self._together[next(iter(self._together))]
        device, at = _NO_DEVICE, _NO_NUMBERS
        of_device = heads[kinds == DEVICE]
        if len(of_device):
            payloads = [blob_payload(records, i, raw=True) for i in of_device]
            device = np.frombuffer(b"".join(payloads), DEVICE_RECORD)
            at = np.repeat(of_device, [len(payload) // DEVICE_RECORD.itemsize for payload in payloads])
        return _Taken(thread, heads, kinds, is_record, issues, numbers, failures, device, at, _NO_CALLS)

    def _whole(self, threads: list[_Taken], now_ns: int) -> list[int]:
        """How many records of each thread can be turned into rows now."""
        ended = [self._completions(t, len(t.thread.records))[1] for t in threads]
        completed = np.concatenate([_NO_NUMBERS, *ended])
        counts = [self._ready(t, completed, now_ns) for t in threads]
        issued = [t.numbers[t.issues < count] for t, count in zip(threads, counts, strict=True)]
        known = np.concatenate([_NO_NUMBERS, *issued])
        return [self._known(t, count, known, now_ns) for t, count in zip(threads, counts, strict=True)]

    def _ready(self, t: _Taken, completed: npt.NDArray[np.int64], now_ns: int) -> int:
        """How many records there are before the first that must wait for later ones of any thread."""
        records = t.thread.records
        if len(t.thread.positions) > 8:
            return len(records)
        types = np.where(t.is_record, records["type"], 0).astype(np.uint8)
        count = whole_trees(types, records["depth"], OPERATOR)
        if types[len(types) - 1] == DONE and now_ns - int(records["start_ns"][-1]) < HOLD_NS:
            count = min(count, len(types) - 1)
        late = np.flatnonzero((t.issues < count) & (now_ns - records["start_ns"][t.issues] < HOLD_NS))
        for i in late[~np.isin(t.numbers[late], completed)].tolist() if len(late) else ():
            number = int(t.numbers[i])
            if number not in t.failures and number not in self.calls.seen:
                return int(t.issues[i])
        return count

    def _known(self, t: _Taken, count: int, issued: npt.NDArray[np.int64], now_ns: int) -> int:
        """How many records there are before the first that completes a call which another thread still holds back."""
        places, numbers = self._completions(t, count)
        late = np.flatnonzero(now_ns - t.thread.records["start_ns"][places] < HOLD_NS)
        for i in late[~np.isin(numbers[late], issued)].tolist() if len(late) else ():
            if int(numbers[i]) not in self.calls.seen:
                return int(places[i])
        return count

    def _completions(self, t: _Taken, count: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
        """Places of what completes calls among the first `count` records, rising, and these calls' numbers."""
        records, is_record = t.thread.records[:count], t.is_record[:count]
        done = records["type"] == DONE
        told = (records["type"] == EXECUTION) & (records["b"] > 0) & ((records["flags"] & UNTOLD) == 0)
        places = np.flatnonzero(is_record & (done | told))
        numbers = np.where(done, records["a"], records["b"])[places].astype(np.int64)
        on_gpu = t.launched.before(count)
        if not len(on_gpu.calls):
            return places, numbers
        places, numbers = np.append(places, on_gpu.at), np.append(numbers, on_gpu.calls)
        order = np.argsort(places, kind="stable")
        return places[order], numbers[order]

    def _count(self, types: npt.NDArray[np.uint8], starts_ns: npt.NDArray[np.int64]) -> None:
        """Counts what phases and rows have cost the process, and notes when it did the last."""
        by_type = np.bincount(types, minlength=8)
        self.events_cost_ns += int(by_type[PHASE]) * PHASE_COST_NS + int(by_type[BLOB]) * BLOB_COST_NS
        if len(starts_ns):
            self.last_ns = max(self.last_ns, int(starts_ns.max()))

    def _blobs(self, t: _Taken, count: int, batch: Batch) -> None:
        """What is told in blobs, groups before their calls and calls before their completions."""
        records, tid = t.thread.records, t.thread.tid
        inside = t.heads < count
        calls = t.heads[inside & (t.kinds == COMM_PACKED)]
        self.events_cost_ns += len(calls) * (CALL_COST_NS - BLOB_COST_NS)
        for places, kind in self._by_name(records, calls):
            self.calls.issued_packed(places, kind, records)
        in_c = pick(records[:count], t.is_record[:count] & (records["type"][:count] == CALL))
        if len(in_c):
            self.calls.issued_in_c(in_c, self._names)
        singly = inside & ~_IN_BULK[t.kinds]
        others, kinds = t.heads[singly], t.kinds[singly].tolist()
        for at, kind, number, phase in zip(
            others.tolist(), kinds, records["name"][others].tolist(), records["a"][others].tolist(), strict=True
        ):
            name, payload = self._names[number], blob_payload(records, at)
            if kind == COMM_JSON:
                call, op, group, issue_ns, sent, received, dtype = payload
                whole, sent = (sent, None) if isinstance(sent, int) else (None, sent)
                self.calls.issued(call, Call(op, group, issue_ns, sent, received, dtype, phase, bytes=whole))
            elif kind == COMM_FAILED:
                self.calls.failed(payload[0])
            elif name == "group":
                self.calls.group(payload)
            elif name == "flight":
                self.calls.told_later(payload)
            elif name == DEVICE_KERNELS:
                told_kernels(self.origin, payload, batch)
            else:
                self._told(tid, name, records[at], payload, batch)
        device = pick(t.device, t.device_at < count)
        if len(device):
            device_records(self.origin, device, self._names, batch)
        rows = t.heads[inside & (t.kinds == ROW_PACKED)]
        if len(rows) and packed(self.origin, tid, records, rows, self._names, batch):
            self.calls.threads.add(tid)

    def _by_name(self, records: Records, heads: npt.NDArray[np.intp]) -> Iterator[tuple[npt.NDArray[np.intp], str]]:
        """The blobs of each name, and the name."""
        numbers = records["name"][heads]
        for number in np.unique(numbers).tolist():
            yield heads[numbers == number], self._names[number]

    def _told(self, tid: int, kind: str, record: Any, payload: Any, batch: Batch) -> None:
        try:
            told(self.origin, tid, kind, record, payload, batch)
            if kind == "kernel" and payload["kind"] == "comm":
                self.calls.threads.add(tid)
        except Exception as error:  # noqa: BLE001  whatever a model tells must not cost what else it has told
            text = f"a row of {kind} left out, it is not as it should be: {error!r}"
            log = {"level": "error", "source": "emit", "message": text, "dropped": 0, "rank": self.origin.rank}
            batch.add("log", log | {"t_ns": self.origin.epoch(record["start_ns"])})


def _shows_work(t: _Taken) -> bool:
    """Whether only a process at work leaves such records."""
    told = ~np.isin(t.kinds, (ANYONES, COMM_FAILED))
    return bool(told.any() or np.isin(t.thread.records["type"][t.is_record], _WORK).any())
