"""From one process's records to rows of the recording's tables."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.recorder import BLOB_COST_NS, PHASE_COST_NS
from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import (
    BLOB,
    DONE,
    EXECUTION,
    OPERATOR,
    PHASE,
    STEP,
    WINDOW,
    Records,
    Ring,
    ThreadRecords,
    blob_heads,
    blob_payload,
)
from moescope.collectors.schema import arrow_schema
from moescope.collectors.sidecar.file_reader import FileRing
from moescope.collectors.sidecar.operators import leaves, whole_trees

if TYPE_CHECKING:
    import pyarrow as pa

STAGES: Final = (None, "train", "prefill", "decode")
HOLD_NS: Final = 2_000_000_000
"""How long records wait for what belongs to them: an issued call for its completion, a completion for its range."""

_DIRECTION = re.compile(r"\(([FBW])\)$")
Rows = list[dict[str, Any]]


@dataclass
class _Call:
    """One collective between its issue and its completion."""

    op: str
    group: str
    issue_ns: int
    sent: list[int] | None
    received: list[int] | None
    dtype: str
    phase: int
    issuer: str


@dataclass
class Batch:
    """What one drain has found: Arrow tables where rows are many, plain rows where they are few."""

    tables: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    commits: list[tuple[ThreadRecords, int]] = field(default_factory=list)

    def add(self, table: str, row: dict[str, Any]) -> None:
        self.rows.setdefault(table, []).append(row)


def split_context(word: int) -> dict[str, Any]:
    """stage, micro_batch, layer and step of a packed context (collectors/agent/recorder.py); None where not told."""
    micro_batch, layer, step = (word >> 8 & 0xFF) - 1, (word >> 16 & 0xFFFF) - 1, (word >> 32) - 1
    return {
        "stage": STAGES[word & 0xFF] if word & 0xFF < len(STAGES) else None,
        "micro_batch": None if micro_batch < 0 else micro_batch,
        "layer": None if layer < 0 else layer,
        "step": None if step < 0 else step,
    }


class _Seen:
    """Numbers of calls that were taken in. They rise, a little out of order: old ones are known by their size."""

    KEPT: Final = 4096

    def __init__(self) -> None:
        self._below = 0
        self._recent: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self._below or number in self._recent

    def add(self, number: int) -> None:
        self._recent.add(number)
        if len(self._recent) > 2 * self.KEPT:
            kept = sorted(self._recent)[-self.KEPT :]
            self._below, self._recent = kept[0], set(kept)


class ProcessDrain:
    """Turns what a ring holds into rows; keeps what must wait (open operator trees, calls on their way) in the ring."""

    def __init__(self, ring: Ring | FileRing, clock: Clock, device: str = "cpu") -> None:
        self.ring = ring
        self.rank: int = -1
        self.id_base = 0
        """Added to the ids that the process counts itself: a rank may be several processes, one after another."""
        self.comm_threads: set[int] = set()
        self._clock = clock
        self._device = device
        self._labels: dict[int, str] = {}
        self._groups: dict[str, dict[str, Any]] = {}
        self._calls: dict[int, _Call] = {}
        self._seen_calls = _Seen()
        self._early: dict[int, tuple[int, tuple[int, int] | None, int, str]] = {}
        self.events = 0
        self.last_ns = 0
        self.events_cost_ns = 0

    def drain(self, now_ns: int, *, final: bool = False) -> Batch:
        """What is new and whole; everything there is where `final`. now_ns: CLOCK_MONOTONIC."""
        batch = Batch()
        taken = self.ring.take()
        names = self.ring.names()
        split = [(thread, *blob_heads(thread.records)) for thread in taken]
        completed = {int(call) for t, _, ok in split for call in t.records["a"][(t.records["type"] == DONE) & ok]}
        completed |= {int(call) for t, _, ok in split for call in t.records["b"][(t.records["type"] == EXECUTION) & ok]}
        counts = [
            len(thread.records) if final else self._ready(thread, heads, is_record, completed, names, now_ns)
            for thread, heads, is_record in split
        ]
        if not final:
            issued = {
                int(blob_payload(thread.records, at)[0])
                for (thread, heads, _), count in zip(split, counts, strict=True)
                for at in heads
                if at < count and names[thread.records["name"][at]] == "comm"
            }
            counts = [
                self._known(thread.records[:count], is_record[:count], issued, now_ns)
                for (thread, _, is_record), count in zip(split, counts, strict=True)
            ]
        for (thread, heads, _), count in zip(split, counts, strict=True):
            if count:
                self._blobs(thread, [at for at in heads if at < count], names, batch)
                batch.commits.append((thread, count))
        for thread, count in batch.commits:
            is_record = next(ok for t, _, ok in split if t is thread)[:count]
            records = _where(thread.records[:count], is_record)
            self._count(records, names)
            self._operators(thread.tid, _where(records, records["type"] == OPERATOR), names, batch)
            self._executions(thread.tid, records, names, batch)
            self._ranges(thread.tid, records, names, batch)
        if final:
            self._unfinished(batch)
        return batch

    def _count(self, records: Records, names: list[str]) -> None:
        """Counts what shows a rank at work, and what its phases and rows have cost it."""
        types = records["type"]
        # Logs and group names come from any process that imports torch.
        self.events += int(np.isin(types, (OPERATOR, PHASE, EXECUTION, DONE, STEP)).sum())
        self.events_cost_ns += int((types == PHASE).sum()) * PHASE_COST_NS + int((types == BLOB).sum()) * BLOB_COST_NS
        if len(records):
            self.last_ns = max(self.last_ns, int((records["start_ns"]).max()))

    def thread_name(self, tid: int) -> str:
        """The thread as the system names it, with its id; `main` for the first."""
        return self._label(tid)

    def commit(self, batch: Batch) -> None:
        """Marks the batch's records as stored."""
        for thread, count in batch.commits:
            self.ring.commit(thread, count)

    def _ready(
        self,
        thread: ThreadRecords,
        heads: list[int],
        is_record: npt.NDArray[np.bool_],
        completed: set[int],
        names: list[str],
        now_ns: int,
    ) -> int:
        """How many records of the thread can be turned into rows now."""
        records = thread.records
        if len(thread.positions) > 8:
            return len(records)
        types = np.where(is_record, records["type"], 0).astype(np.uint8)
        count = whole_trees(types, records["depth"], OPERATOR)
        if types[len(types) - 1] == DONE and now_ns - int(records["start_ns"][-1]) < HOLD_NS:
            count = min(count, len(types) - 1)
        failed = {int(blob_payload(records, at)[0]) for at in heads if names[records["name"][at]] == "comm_failed"}
        for at in heads:
            if at >= count:
                break
            if names[records["name"][at]] == "comm" and now_ns - int(records["start_ns"][at]) < HOLD_NS:
                number = int(blob_payload(records, at)[0])
                if number not in completed | failed and number not in self._seen_calls:
                    return at
        return count

    def _known(self, records: Records, is_record: npt.NDArray[np.bool_], issued: set[int], now_ns: int) -> int:
        """How many records there are before the first that completes a call which another thread still holds back."""
        types = np.where(is_record, records["type"], 0)
        for at in np.flatnonzero((types == DONE) | ((types == EXECUTION) & (records["b"] > 0))).tolist():
            number = int(records["a" if types[at] == DONE else "b"][at])
            if (
                number not in issued
                and number not in self._seen_calls
                and now_ns - int(records["start_ns"][at]) < HOLD_NS
            ):
                return int(at)
        return len(records)

    def _label(self, tid: int) -> str:
        """The thread as people read it."""
        label = self._labels.get(tid)
        if label is None:
            label = "main" if tid == self.ring.pid else f"{_thread_name(self.ring.pid, tid)} {tid}"
            self._labels[tid] = label
        return label

    def _id(self, number: int) -> int | None:
        """A phase's id in the rank; None for 0, no phase."""
        return int(number) + self.id_base if number else None

    def _epoch(self, mono_ns: int) -> int:
        return self._clock.epoch_ns(int(mono_ns))

    def _operators(self, tid: int, operators: Records, names: list[str], batch: Batch) -> None:
        if not len(operators):
            return
        import pyarrow as pa

        kernels = _where(operators, leaves(operators))
        # c10d's own ranges issue calls; the calls themselves are in `collectives`.
        issues = np.array([n.startswith("c10d::") for n in names], dtype=np.bool_)
        kernels = _where(kernels, ~issues[kernels["name"]])
        if not len(kernels):
            return
        n = len(kernels)
        schema = arrow_schema("kernels")
        phases, flops, shapes = kernels["a"].astype(np.int64), kernels["b"].astype(np.int64), kernels["c"]
        table = pa.array(names, pa.string())
        columns: dict[str, Any] = {
            "rank": pa.array(np.full(n, self.rank, np.int32)),
            "device": pa.repeat(self._device, n),
            "stream": pa.repeat(self._label(tid), n),
            "name": table.take(pa.array(kernels["name"])),
            "start_ns": pa.array(kernels["start_ns"] + self._clock.offset_ns),
            "dur_ns": pa.array(kernels["dur_ns"]),
            "phase_id": pa.array(phases + self.id_base, mask=phases == 0),
            "flops": pa.array(flops, mask=flops == 0),
            "evidence": pa.repeat("measured", n),
        }
        if shapes.any():
            columns["shapes"] = table.take(pa.array(shapes, mask=shapes == 0))
        arrays = [columns.get(f.name, pa.nulls(n, f.type)) for f in schema]
        batch.tables.setdefault("kernels", []).append(pa.RecordBatch.from_arrays(arrays, schema=schema))

    def _executions(self, tid: int, records: Records, names: list[str], batch: Batch) -> None:
        """Completions and execution ranges of one thread: a completion lies inside the range that it ends."""
        found = records[(records["type"] == EXECUTION) | (records["type"] == DONE)]
        if not len(found):
            return
        if tid != self.ring.pid:
            self.comm_threads.add(tid)
        waiting: list[tuple[int, int]] = []
        for record in found:
            start = int(record["start_ns"])
            if record["type"] == DONE:
                waiting.append((int(record["a"]), start))
                continue
            end = start + int(record["dur_ns"])
            if record["b"]:
                self._complete(int(record["b"]), end, (start, end), tid, names[record["name"]], batch)
                continue
            inside = [entry for entry in waiting if start <= entry[1] <= end]
            for entry in waiting:
                if entry not in inside:
                    self._complete(*entry, None, tid, "", batch)
            waiting = []
            name = names[record["name"]]
            if inside:
                # One range, one call; a second completion inside it belongs to a call without a range of its own.
                for entry in inside[:-1]:
                    self._complete(*entry, None, tid, "", batch)
                self._complete(*inside[-1], (start, end), tid, name, batch)
            else:
                self._kernel(name, start, end - start, tid, int(record["a"]), None, "measured", batch)
        for entry in waiting:
            self._complete(*entry, None, tid, "", batch)

    def _complete(
        self, number: int, done_ns: int, span: tuple[int, int] | None, tid: int, name: str, batch: Batch
    ) -> None:
        call = self._calls.pop(number, None)
        if call is None:
            if number not in self._seen_calls:
                self._early[number] = done_ns, span, tid, name
            return
        start, end = span or (call.issue_ns, done_ns)
        evidence = "measured" if span else "derived"
        self._collective(number, call, start, end - start, evidence, batch)
        backend = str(self._groups.get(call.group, {}).get("backend") or "comm")
        self._kernel(name or f"{backend}:{call.op}", start, end - start, tid, call.phase, number, evidence, batch)

    def _kernel(
        self, name: str, start: int, dur: int, tid: int, phase: int, call: int | None, evidence: str, batch: Batch
    ) -> None:
        row = {
            "rank": self.rank,
            "device": self._device,
            "stream": self._label(tid),
            "name": name,
            "kind": "comm",
            "start_ns": self._epoch(start),
            "dur_ns": dur,
            "correlation": None if call is None else call + self.id_base,
            "phase_id": self._id(phase),
            "evidence": evidence,
        }
        batch.add("kernels", row)

    def _collective(self, number: int, call: _Call, start: int, dur: int | None, evidence: str, batch: Batch) -> None:
        group = self._groups.get(call.group, {})
        ranks: list[int] = group.get("ranks", [])
        me = ranks.index(self.rank) if self.rank in ranks else -1

        def others(parts: list[int] | None) -> int | None:
            return None if parts is None else sum(size for peer, size in enumerate(parts) if peer != me)

        row = {
            "rank": self.rank,
            "call": number + self.id_base,
            "op": call.op,
            "group": call.group,
            "group_ranks": ",".join(map(str, ranks)),
            "backend": group.get("backend"),
            "dtype": call.dtype,
            "sent_bytes": others(call.sent),
            "received_bytes": others(call.received),
            "issue_ns": self._epoch(call.issue_ns),
            "start_ns": self._epoch(start),
            "dur_ns": dur,
            "phase_id": self._id(call.phase),
            "evidence": evidence,
        }
        batch.add("collectives", row)
        for peer, size in enumerate(call.sent or []):
            if peer != me and size and peer < len(ranks):
                transfer = {"rank": self.rank, "src": self.rank, "dst": ranks[peer], "op": call.op}
                transfer |= {"hop": group.get("hop", "direct"), "bytes": size, "evidence": evidence}
                transfer |= {"start_ns": self._epoch(start), "dur_ns": dur}
                batch.add("transfers", transfer)

    def _unfinished(self, batch: Batch) -> None:
        """Calls that were issued and never completed: a peer that died, or the end of the run."""
        for number, call in sorted(self._calls.items()):
            self._collective(number, call, call.issue_ns, None, "derived", batch)
        self._calls.clear()

    def _ranges(self, tid: int, records: Records, names: list[str], batch: Batch) -> None:
        for record in records[np.isin(records["type"], (PHASE, STEP, WINDOW))]:
            name, start, dur = names[record["name"]], self._epoch(record["start_ns"]), int(record["dur_ns"])
            row: dict[str, Any] = {"rank": self.rank, "start_ns": start, "dur_ns": dur}
            context = split_context(int(record["c"]))
            match int(record["type"]):
                case 2:
                    direction = _DIRECTION.search(name)
                    row |= {"id": self._id(record["a"]), "parent": self._id(record["b"]), "name": name}
                    row |= {"thread": self._label(tid), "direction": direction[1] if direction else None} | context
                    batch.add("phases", row)
                case 6:
                    batch.add("steps", row | {"step": context["step"], "stage": context["stage"], "source": name})
                case _:
                    batch.add("windows", row | {"source": name})

    def _blobs(self, thread: ThreadRecords, heads: list[int], names: list[str], batch: Batch) -> None:
        for at in heads:
            record = thread.records[at]
            read = _BLOBS.get(names[record["name"]])
            if read is not None:
                read(self, thread.tid, record, blob_payload(thread.records, at), batch)

    def _blob_comm(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        number, op, group, issue_ns, sent, received, dtype = payload
        self._seen_calls.add(number)
        self._calls[number] = _Call(op, group, issue_ns, sent, received, dtype, int(record["a"]), self._label(tid))
        if number in self._early:
            done_ns, span, executor, name = self._early.pop(number)
            self._complete(number, done_ns, span, executor, name, batch)

    def _blob_comm_failed(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        """The call raised: nothing was communicated."""
        self._calls.pop(payload[0], None)

    def _blob_group(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        self._groups[payload["name"]] = payload

    def _blob_log(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        batch.add("log", {"t_ns": self._epoch(record["start_ns"]), "rank": self.rank, "dropped": 0} | payload)

    def _stamped(self, record: Any, *keys: str) -> dict[str, Any]:
        context = split_context(int(record["b"]))
        return {"rank": self.rank, "t_ns": self._epoch(record["start_ns"])} | {key: context[key] for key in keys}

    def _blob_experts(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        head = self._stamped(record, "step", "stage") | {"layer": payload["layer"]}
        for i, tokens in enumerate(payload["tokens"]):
            batch.add("experts", head | {"expert": payload["first_expert"] + i, "tokens": int(tokens)})

    def _blob_quantisation(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        batch.add("quantisation", self._stamped(record, "step") | payload)

    def _blob_work(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        batch.add("work", self._stamped(record, "step", "stage") | {"phase_id": self._id(record["a"])} | payload)

    def _blob_gauges(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        head = self._stamped(record, "step", "stage")
        for name, value, unit, evidence in payload["values"]:
            batch.add("gauges", head | {"name": name, "value": float(value), "unit": unit, "evidence": evidence})

    def _blob_transfers(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        row = payload | {"rank": self.rank, "evidence": "measured", "start_ns": self._epoch(payload["start_ns"])}
        batch.add("transfers", row)

    def _blob_unit_intervals(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        head = {"rank": self.rank} | {key: payload[key] for key in ("launch", "role", "evidence")}
        for unit, start, end in zip(payload["units"], payload["start_ns"], payload["end_ns"], strict=True):
            times = {"start_ns": self._epoch(start), "end_ns": self._epoch(end)}
            batch.add("unit_intervals", head | {"unit": unit} | times)

    def _blob_kernel(self, tid: int, record: Any, payload: Any, batch: Batch) -> None:
        row = payload | {"rank": self.rank, "device": self._device, "stream": self._label(tid)}
        row |= {"start_ns": self._epoch(payload["start_ns"]), "phase_id": self._id(record["a"])}
        if payload["kind"] == "comm":
            self.comm_threads.add(tid)
        batch.add("kernels", row)


_BLOBS: dict[str, Callable[[ProcessDrain, int, Any, Any, Batch], None]] = {
    "comm": ProcessDrain._blob_comm,
    "comm_failed": ProcessDrain._blob_comm_failed,
    "group": ProcessDrain._blob_group,
    "log": ProcessDrain._blob_log,
    "experts": ProcessDrain._blob_experts,
    "quantisation": ProcessDrain._blob_quantisation,
    "work": ProcessDrain._blob_work,
    "gauges": ProcessDrain._blob_gauges,
    "transfers": ProcessDrain._blob_transfers,
    "unit_intervals": ProcessDrain._blob_unit_intervals,
    "kernel": ProcessDrain._blob_kernel,
}


def _where(records: Records, mask: npt.NDArray[np.bool_]) -> Records:
    """The marked records; no copy where that is all of them, as it mostly is."""
    return records if mask.all() else records[mask]


def _thread_name(pid: int, tid: int) -> str:
    """The thread's name as the kernel has it; `thread` where the process is gone."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip() or "thread"
    except OSError:
        return "thread"
