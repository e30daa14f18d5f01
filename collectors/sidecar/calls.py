"""Collectives of one process: each call's issue, execution and completion, met on whatever thread they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np

from moescope.collectors.ring_reader import DONE, Records
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

    def add(self, number: int) -> None:
        self._recent.add(number)
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
        self.seen.add(number)
        self._open[number] = call
        if number in self._early:
            self._complete(number, *self._early.pop(number))

    def failed(self, number: int) -> None:
        """The call raised: nothing was communicated."""
        self._open.pop(number, None)

    def executed(self, tid: int, records: Records, names: Names) -> None:
        """Completions and execution ranges of one thread: a completion lies inside the range that it ends.

        records: DONE and EXECUTION alone
        """
        if not len(records):
            return
        if tid != self._origin.pid:
            self.threads.add(tid)
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

    def unfinished(self) -> None:
        """Calls that were issued and never completed: a peer that died, or the end of the run."""
        for number, call in sorted(self._open.items()):
            self._ended.append(_Ended(number, call, call.issue_ns, None, measured=False))
        self._open.clear()

    def store(self, batch: Batch) -> None:
        """Puts into the batch what has ended since the last time."""
        ended, self._ended = self._ended, []
        ranges, self._ranges = self._ranges, []
        if ended:
            seen = [one for one in ended if not self._ends_on_gpu(one)]
            if seen:
                self._collectives(seen, batch)
            self._transfers(ended, batch)
        if ranges:
            self._kernels(ranges, batch)

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

    def _kernels(self, ranges: list[_Range], batch: Batch) -> None:
        origin = self._origin
        if origin.kernels_told or origin.devices:
            return  # NCCL's kernels are told by the GPU itself; what goes over the host is in `collectives`
        names, starts, durs, tids, phases, calls, measured = zip(*ranges, strict=True)
        columns = {
            "rank": origin.rank,
            "device": origin.device,
            "stream": [origin.label(tid) for tid in tids],
            "name": names,
            "kind": "comm",
            "start_ns": self._times(starts),
            "dur_ns": durs,
            "correlation": [None if call is None else call + origin.id_base for call in calls],
            "phase_id": origin.ids(np.array(phases, np.uint64)),
            "evidence": _labels(measured),
        }
        batch.add_columns("kernels", len(ranges), columns)

    def _collectives(self, ended: list[_Ended], batch: Batch) -> None:
        origin = self._origin
        numbers, calls, starts, durs, measured = zip(*ended, strict=True)
        groups = [self._group(call.group) for call in calls]
        columns = {
            "rank": origin.rank,
            "call": np.array(numbers, np.int64) + origin.id_base,
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
            "phase_id": origin.ids(np.array([call.phase for call in calls], np.uint64)),
            "evidence": _labels(measured),
        }
        batch.add_columns("collectives", len(ended), columns)

    def _transfers(self, ended: list[_Ended], batch: Batch) -> None:
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
            return
        peers, hops, ops, sizes, starts, durs, measured = zip(*rows, strict=True)
        columns = {
            "rank": self._origin.rank,
            "src": self._origin.rank,
            "dst": peers,
            "hop": hops,
            "op": ops,
            "bytes": sizes,
            "start_ns": self._times(starts),
            "dur_ns": durs,
            "evidence": _labels(measured),
        }
        batch.add_columns("transfers", len(rows), columns)

    def _times(self, starts_ns: Sequence[int]) -> Any:
        return np.array(starts_ns, np.int64) + self._origin.clock.offset_ns


def _others(parts: list[int] | None, me: int) -> int | None:
    """Bytes to or from all ranks but this one."""
    if parts is None:
        return None
    return sum(parts) - (parts[me] if 0 <= me < len(parts) else 0)


def _labels(measured: Sequence[bool]) -> list[str]:
    return ["measured" if seen else "derived" for seen in measured]
