"""Collectives of one process: each call's issue, execution and completion, met on whatever thread they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.packed import COMM
from moescope.collectors.ring_reader import DONE, RECORD, Records, blob_bytes
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.names import Names


@dataclass(slots=True)
class Call:
    """One collective between its issue and its completion; sent, received: bytes for each rank of the group."""

    op: str
    group: str
    issue_ns: int
    sent: list[int] | None
    received: list[int] | None
    dtype: str
    phase: int


@dataclass(slots=True)
class _Packed:
    """Calls of one kind that were issued, many at once.

    kind: as it was packed, `=comm OP DTYPE GROUP`; phases: [calls]
    words: [calls, 4 + sizes] int64, one call at least: number, issue, how many sizes are sent and received (-1: not
    told), and these
    """

    kind: str
    words: npt.NDArray[np.int64]
    phases: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.words)

    def where(self, mask: npt.NDArray[np.bool_]) -> _Packed:
        return _Packed(self.kind, self.words[mask], self.phases[mask])

    def sizes(self) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
        """Bytes sent to and received from each rank of the group, [calls, ranks] each; None where not told."""
        sent, received = self.words[0, 2:4].tolist()
        middle = 4 + max(sent, 0)
        return None if sent < 0 else self.words[:, 4:middle], None if received < 0 else self.words[:, middle:]

    def each(self) -> Iterator[tuple[int, Call]]:
        """The calls one by one, with their numbers."""
        op, dtype, group = _call_kind(self.kind)
        sent, received = self.sizes()
        for i, (number, issue_ns) in enumerate(self.words[:, :2].tolist()):
            to = None if sent is None else sent[i].tolist()
            of = None if received is None else received[i].tolist()
            yield number, Call(op, group, issue_ns, to, of, dtype, int(self.phases[i]))


@dataclass(slots=True)
class _Executed:
    """Execution ranges that tell their calls, of all threads together, by the number of the call.

    numbers: [ranges], rising, each once; records: EXECUTION; tids: [ranges]
    """

    numbers: npt.NDArray[np.int64]
    records: Records
    tids: npt.NDArray[np.int64]
    names: Names | None


_Columns = dict[str, Any]
"""Columns of equal length, by name."""


class _Ended(NamedTuple):
    """A call that has ended, or will not; start_ns, dur_ns on the target's clock, dur_ns None where it never completed.

    measured: whether its execution was seen
    """

    number: int
    call: Call
    start_ns: int
    dur_ns: int | None
    measured: bool


class _Range(NamedTuple):
    """A communication kernel; call: the number of the call that it executes, None where that is not known."""

    name: str
    start_ns: int
    dur_ns: int
    tid: int
    phase: int
    call: int | None
    measured: bool


class _Group(NamedTuple):
    """A group as this process sees it; me: its own place among `ranks`, -1 where it is not one of them."""

    ranks: tuple[int, ...]
    text: str
    me: int
    backend: str | None
    hop: str


class _Seen:
    """Numbers of calls that were taken in. They rise, a little out of order: old ones are known by their size."""

    KEPT: Final = 4096

    def __init__(self) -> None:
        self._below = 0
        self._recent: set[int] = set()

    def __contains__(self, number: int) -> bool:
        return number < self._below or number in self._recent

    def add(self, numbers: list[int]) -> None:
        self._recent.update(numbers)
        if len(self._recent) > 2 * self.KEPT:
            kept = sorted(self._recent)[-self.KEPT :]
            self._below, self._recent = kept[0], set(kept)


class Calls:
    """Calls on their way. What is complete goes into the batch: a row of `collectives`, its kernel, its transfers."""

    def __init__(self, origin: Origin) -> None:
        self._origin = origin
        self._groups: dict[str, dict[str, Any]] = {}
        self._known: dict[str, _Group] = {}
        self._open: dict[int, Call] = {}
        self._early: dict[int, tuple[int, tuple[int, int] | None, int, str]] = {}
        self._ended: list[_Ended] = []
        self._ranges: list[_Range] = []
        self._packed: list[_Packed] = []
        self._told: list[tuple[int, Records, Names]] = []
        self.seen = _Seen()
        self.threads: set[int] = set()
        """Threads that execute calls."""

    def group(self, payload: dict[str, Any]) -> None:
        """A group of ranks, told before its first call."""
        self._groups[payload["name"]] = payload
        self._known.pop(payload["name"], None)

    def remember(self, payload: dict[str, Any]) -> None:
        """A group that an earlier reader of the ring was told of."""
        self._groups.setdefault(payload["name"], payload)

    def issued(self, number: int, call: Call) -> None:
        """The process has made a call."""
        self.seen.add([number])
        self._open_call(number, call)

    def issued_packed(self, places: npt.NDArray[np.intp], kind: str, records: Records) -> None:
        """The process has made calls of one kind; places: of their blobs among `records`."""
        sizes = records["dur_ns"][places]
        for size in np.unique(sizes).tolist():
            at = places[sizes == size]
            words = blob_bytes(records, at, size).view("<i8")
            self.seen.add(words[:, 0].tolist())
            # Of one length, and yet not with as many sizes each way: a broadcast's root and the others.
            for counts in np.unique(words[:, 2:4], axis=0):
                alike = (words[:, 2:4] == counts).all(axis=1)
                self._packed.append(_Packed(kind, words[alike], records["a"][at[alike]]))

    def _open_call(self, number: int, call: Call) -> None:
        self._open[number] = call
        if number in self._early:
            self._complete(number, *self._early.pop(number))

    def failed(self, number: int) -> None:
        """The call raised: nothing was communicated."""
        self._open.pop(number, None)
        self._packed = [kept for one in self._packed if len(kept := one.where(one.words[:, 0] != number))]

    def executed(self, tid: int, records: Records, names: Names) -> None:
        """Completions and execution ranges of one thread: a completion lies inside the range that it ends.

        records: DONE and EXECUTION alone
        """
        if not len(records):
            return
        if tid != self._origin.pid:
            self.threads.add(tid)
        self._told.append((tid, records, names))

    def _meet(self) -> list[tuple[_Packed, _Executed]]:
        """Brings together what was issued and what was executed: what meets plainly is returned, row by row.

        All else (completions without a range, ranges without a number, calls on their way) goes one by one.
        """
        executed = self._plainly_executed()
        packed, self._packed = self._packed, []
        met: list[tuple[_Packed, _Executed]] = []
        matched = np.zeros(len(executed.numbers), np.bool_)
        for one in packed:
            numbers = one.words[:, 0]
            at = np.minimum(np.searchsorted(executed.numbers, numbers), max(len(matched) - 1, 0))
            found = executed.numbers[at] == numbers if len(matched) else np.zeros(len(numbers), np.bool_)
            if found.any():
                at = at[found]
                matched[at] = True
                of_calls = _Executed(executed.numbers[at], executed.records[at], executed.tids[at], executed.names)
                met.append((one.where(found), of_calls))
            if not found.all():
                for number, call in one.where(~found).each():
                    self._open_call(number, call)
        for i in np.flatnonzero(~matched).tolist():
            assert executed.names is not None
            self._one_by_one(int(executed.tids[i]), executed.records[i : i + 1], executed.names)
        told, self._told = self._told, []
        for tid, records, names in told:
            self._one_by_one(tid, records, names)
        return met

    def _plainly_executed(self) -> _Executed:
        """The ranges of threads that tell nothing but ranges with the numbers of their calls."""
        told, self._told = self._told, []
        plain: list[tuple[int, Records, Names]] = []
        for tid, records, names in told:
            mine = plain if (records["type"] != DONE).all() and records["b"].all() else self._told
            mine.append((tid, records, names))
        if not plain:
            return _Executed(np.empty(0, np.int64), np.empty(0, RECORD), np.empty(0, np.int64), None)
        records = np.concatenate([one for _, one, _ in plain])
        tids = np.repeat([tid for tid, _, _ in plain], [len(one) for _, one, _ in plain])
        numbers, first = np.unique(records["b"].astype(np.int64), return_index=True)
        return _Executed(numbers, records[first], tids[first], plain[0][2])

    def _one_by_one(self, tid: int, records: Records, names: Names) -> None:
        waiting: list[tuple[int, int]] = []
        columns = (records[name].tolist() for name in ("type", "start_ns", "dur_ns", "a", "b", "name"))
        for type_, start, dur, a, b, name_number in zip(*columns, strict=True):
            if type_ == DONE:
                waiting.append((a, start))
                continue
            end = start + dur
            name = names[name_number]
            if b:
                self._complete(b, end, (start, end), tid, name)
                continue
            inside = [entry for entry in waiting if start <= entry[1] <= end]
            for entry in waiting:
                if entry not in inside:
                    self._complete(*entry, None, tid, "")
            waiting = []
            if inside:
                # One range, one call; a second completion inside it belongs to a call without a range of its own.
                for entry in inside[:-1]:
                    self._complete(*entry, None, tid, "")
                self._complete(*inside[-1], (start, end), tid, name)
            else:
                self._ranges.append(_Range(name, start, dur, tid, a, None, measured=True))
        for entry in waiting:
            self._complete(*entry, None, tid, "")

    def store(self, batch: Batch, *, final: bool = False) -> None:
        """Puts into the batch what has ended since the last time; where `final`, what never will as well."""
        met = self._meet()
        if final:
            # A peer that died, or the end of the run.
            for number, call in sorted(self._open.items()):
                self._ended.append(_Ended(number, call, call.issue_ns, None, measured=False))
            self._open.clear()
        ended, self._ended = self._ended, []
        ranges, self._ranges = self._ranges, []
        collectives, transfers = [], []
        kernels = [self._kernels(ranges)] if ranges else []
        if ended:
            seen = [one for one in ended if not self._ends_on_gpu(one)]
            collectives += [self._collectives(seen)] if seen else []
            transfers.append(self._transfers(ended))
        for packed, executed in met:
            group = self._group(_call_kind(packed.kind)[2])
            collectives.append(self._collectives_met(packed, executed, group))
            transfers.append(self._transfers_met(packed, executed, group))
            kernels.append(self._kernels_met(packed, executed))
        if self._origin.kernels_told or self._origin.devices:
            kernels = []  # NCCL's kernels are told by the GPU itself; what goes over the host is in `collectives`
        for table, parts in (("kernels", kernels), ("collectives", collectives), ("transfers", transfers)):
            columns = _joined(parts)
            if columns and len(columns["start_ns"]):
                batch.add_columns(table, len(columns["start_ns"]), columns | {"rank": self._origin.rank})

    def _ends_on_gpu(self, one: _Ended) -> bool:
        """Whether the host cannot tell when the call ended: it saw NCCL's kernel put into the queue, no more.

        The kernel itself is in `kernels`; beside it a call of the wrong length would count twice.
        """
        told = self._origin.kernels_told or bool(self._origin.devices)
        return told and one.dur_ns is not None and self._group(one.call.group).backend == "nccl"

    def _complete(self, number: int, done_ns: int, span: tuple[int, int] | None, tid: int, name: str) -> None:
        call = self._open.pop(number, None)
        if call is None:
            if number not in self.seen:
                self._early[number] = done_ns, span, tid, name
            return
        start, end = span or (call.issue_ns, done_ns)
        measured = span is not None
        self._ended.append(_Ended(number, call, start, end - start, measured))
        title = name or f"{self._group(call.group).backend or 'comm'}:{call.op}"
        self._ranges.append(_Range(title, start, end - start, tid, call.phase, number, measured))

    def _group(self, name: str) -> _Group:
        known = self._known.get(name)
        if known is None:
            told = self._groups.get(name, {})
            ranks = tuple(told.get("ranks", ()))
            me = ranks.index(self._origin.rank) if self._origin.rank in ranks else -1
            text = ",".join(map(str, ranks))
            known = _Group(ranks, text, me, told.get("backend"), told.get("hop", "direct"))
            if told and self._origin.rank >= 0:
                self._known[name] = known
        return known

    def _kernels(self, ranges: list[_Range]) -> _Columns:
        names, starts, durs, tids, phases, calls, measured = zip(*ranges, strict=True)
        return {
            "device": [self._origin.device] * len(ranges),
            "stream": [self._origin.label(tid) for tid in tids],
            "name": names,
            "kind": ["comm"] * len(ranges),
            "start_ns": self._times(starts),
            "dur_ns": durs,
            "correlation": [None if call is None else call + self._origin.id_base for call in calls],
            "phase_id": self._phases(phases),
            "evidence": _labels(measured),
        }

    def _kernels_met(self, packed: _Packed, executed: _Executed) -> _Columns:
        assert executed.names is not None
        n = len(packed)
        return {
            "device": [self._origin.device] * n,
            "stream": [self._origin.label(tid) for tid in executed.tids.tolist()],
            "name": [executed.names[number] for number in executed.records["name"].tolist()],
            "kind": ["comm"] * n,
            "start_ns": self._times(executed.records["start_ns"]),
            "dur_ns": executed.records["dur_ns"],
            "correlation": executed.numbers + self._origin.id_base,
            "phase_id": self._phases(packed.phases),
            "evidence": ["measured"] * n,
        }

    def _collectives(self, ended: list[_Ended]) -> _Columns:
        numbers, calls, starts, durs, measured = zip(*ended, strict=True)
        groups = [self._group(call.group) for call in calls]
        return {
            "call": np.array(numbers, np.int64) + self._origin.id_base,
            "op": [call.op for call in calls],
            "group": [call.group for call in calls],
            "group_ranks": [group.text for group in groups],
            "backend": [group.backend for group in groups],
            "dtype": [call.dtype for call in calls],
            "sent_bytes": [_others(call.sent, group.me) for call, group in zip(calls, groups, strict=True)],
            "received_bytes": [_others(call.received, group.me) for call, group in zip(calls, groups, strict=True)],
            "issue_ns": self._times([call.issue_ns for call in calls]),
            "start_ns": self._times(starts),
            "dur_ns": durs,
            "phase_id": self._phases([call.phase for call in calls]),
            "evidence": _labels(measured),
        }

    def _collectives_met(self, packed: _Packed, executed: _Executed, group: _Group) -> _Columns:
        op, dtype, name = _call_kind(packed.kind)
        sent, received = packed.sizes()
        n = len(packed)
        return {
            "call": executed.numbers + self._origin.id_base,
            "op": [op] * n,
            "group": [name] * n,
            "group_ranks": [group.text] * n,
            "backend": [group.backend] * n,
            "dtype": [dtype] * n,
            "sent_bytes": [None] * n if sent is None else _to_others(sent, group.me),
            "received_bytes": [None] * n if received is None else _to_others(received, group.me),
            "issue_ns": self._times(packed.words[:, 1]),
            "start_ns": self._times(executed.records["start_ns"]),
            "dur_ns": executed.records["dur_ns"],
            "phase_id": self._phases(packed.phases),
            "evidence": ["measured"] * n,
        }

    def _transfers(self, ended: list[_Ended]) -> _Columns:
        rows = [
            (group.ranks[peer], group.hop, call.op, size, start, None if self._ends_on_gpu(one) else dur, measured)
            for one in ended
            for (_, call, start, dur, measured) in (one,)
            if call.sent
            for group in (self._group(call.group),)
            for peer, size in enumerate(call.sent)
            if peer != group.me and size and peer < len(group.ranks)
        ]
        if not rows:
            return {}
        peers, hops, ops, sizes, starts, durs, measured = zip(*rows, strict=True)
        return {
            "src": [self._origin.rank] * len(rows),
            "dst": peers,
            "hop": hops,
            "op": ops,
            "bytes": sizes,
            "start_ns": self._times(starts),
            "dur_ns": durs,
            "evidence": _labels(measured),
        }

    def _transfers_met(self, packed: _Packed, executed: _Executed, group: _Group) -> _Columns:
        sent = packed.sizes()[0]
        if sent is None:
            return {}
        sent = sent[:, : len(group.ranks)]
        peers = np.arange(sent.shape[1])
        calls, to = np.nonzero((sent != 0) & (peers != group.me))
        n = len(calls)
        return {
            "src": [self._origin.rank] * n,
            "dst": np.array(group.ranks, np.int64)[to],
            "hop": [group.hop] * n,
            "op": [_call_kind(packed.kind)[0]] * n,
            "bytes": sent[calls, to],
            "start_ns": self._times(executed.records["start_ns"][calls]),
            "dur_ns": executed.records["dur_ns"][calls],
            "evidence": ["measured"] * n,
        }

    def _times(self, starts_ns: Sequence[int] | npt.NDArray[np.int64]) -> Any:
        return np.array(starts_ns, np.int64) + self._origin.clock.offset_ns

    def _phases(self, numbers: Any) -> list[int | None]:
        """Ids of phases; None for 0, no phase."""
        base = self._origin.id_base
        return [int(number) + base if number else None for number in numbers]


def _others(parts: list[int] | None, me: int) -> int | None:
    """Bytes to or from all ranks but this one."""
    if parts is None:
        return None
    return sum(parts) - (parts[me] if 0 <= me < len(parts) else 0)


def _to_others(parts: npt.NDArray[np.int64], me: int) -> npt.NDArray[np.int64]:
    """The same for many calls; parts: [calls, ranks]."""
    total: npt.NDArray[np.int64] = parts.sum(axis=1)
    return total - parts[:, me] if 0 <= me < parts.shape[1] else total


def _joined(parts: list[_Columns]) -> _Columns:
    """Rows of all parts, one after another; a part may have none, and no columns."""
    parts = [part for part in parts if part]
    if len(parts) < 2:
        return parts[0] if parts else {}
    found: _Columns = {}
    for name in parts[0]:
        columns = [part[name] for part in parts]
        if all(isinstance(column, np.ndarray) for column in columns):
            found[name] = np.concatenate(columns)
        else:
            found[name] = [value for one in columns for value in (one.tolist() if isinstance(one, np.ndarray) else one)]
    return found


@lru_cache(maxsize=4096)
def _call_kind(kind: str) -> tuple[str, str, str]:
    """Operation, element type and group of a packed call."""
    op, dtype, group = kind.removeprefix(COMM).split(" ", 2)
    return op, dtype, group


def _labels(measured: Sequence[bool]) -> list[str]:
    return ["measured" if seen else "derived" for seen in measured]
