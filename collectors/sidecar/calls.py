"""Collectives of one process: each call's issue, execution and completion, met on whatever thread they come."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

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
        self._open: dict[int, Call] = {}
        self._early: dict[int, tuple[int, tuple[int, int] | None, int, str]] = {}
        self.seen = _Seen()
        self.threads: set[int] = set()
        """Threads that execute calls."""

    def group(self, payload: dict[str, Any]) -> None:
        """A group of ranks, told before its first call."""
        self._groups[payload["name"]] = payload

    def remember(self, payload: dict[str, Any]) -> None:
        """A group that an earlier reader of the ring was told of."""
        self._groups.setdefault(payload["name"], payload)

    def issued(self, number: int, call: Call, batch: Batch) -> None:
        """The process has made a call."""
        self.seen.add(number)
        self._open[number] = call
        if number in self._early:
            done_ns, span, executor, name = self._early.pop(number)
            self._complete(number, done_ns, span, executor, name, batch)

    def failed(self, number: int) -> None:
        """The call raised: nothing was communicated."""
        self._open.pop(number, None)

    def executed(self, tid: int, records: Records, names: Names, batch: Batch) -> None:
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
                self._complete(b, end, (start, end), tid, name, batch)
                continue
            inside = [entry for entry in waiting if start <= entry[1] <= end]
            for entry in waiting:
                if entry not in inside:
                    self._complete(*entry, None, tid, "", batch)
            waiting = []
            if inside:
                # One range, one call; a second completion inside it belongs to a call without a range of its own.
                for entry in inside[:-1]:
                    self._complete(*entry, None, tid, "", batch)
                self._complete(*inside[-1], (start, end), tid, name, batch)
            else:
                self._kernel(name, start, dur, tid, a, None, "measured", batch)
        for entry in waiting:
            self._complete(*entry, None, tid, "", batch)

    def unfinished(self, batch: Batch) -> None:
        """Calls that were issued and never completed: a peer that died, or the end of the run."""
        for number, call in sorted(self._open.items()):
            self._collective(number, call, call.issue_ns, None, "derived", batch)
        self._open.clear()

    def _complete(
        self, number: int, done_ns: int, span: tuple[int, int] | None, tid: int, name: str, batch: Batch
    ) -> None:
        call = self._open.pop(number, None)
        if call is None:
            if number not in self.seen:
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
        origin = self._origin
        row = {
            "rank": origin.rank,
            "device": origin.device,
            "stream": origin.label(tid),
            "name": name,
            "kind": "comm",
            "start_ns": origin.epoch(start),
            "dur_ns": dur,
            "correlation": None if call is None else call + origin.id_base,
            "phase_id": origin.id(phase),
            "evidence": evidence,
        }
        batch.add("kernels", row)

    def _collective(self, number: int, call: Call, start: int, dur: int | None, evidence: str, batch: Batch) -> None:
        origin = self._origin
        group = self._groups.get(call.group, {})
        ranks: list[int] = group.get("ranks", [])
        me = ranks.index(origin.rank) if origin.rank in ranks else -1

        def others(parts: list[int] | None) -> int | None:
            return None if parts is None else sum(size for peer, size in enumerate(parts) if peer != me)

        start_ns = origin.epoch(start)
        row = {
            "rank": origin.rank,
            "call": number + origin.id_base,
            "op": call.op,
            "group": call.group,
            "group_ranks": ",".join(map(str, ranks)),
            "backend": group.get("backend"),
            "dtype": call.dtype,
            "sent_bytes": others(call.sent),
            "received_bytes": others(call.received),
            "issue_ns": origin.epoch(call.issue_ns),
            "start_ns": start_ns,
            "dur_ns": dur,
            "phase_id": origin.id(call.phase),
            "evidence": evidence,
        }
        batch.add("collectives", row)
        for peer, size in enumerate(call.sent or []):
            if peer != me and size and peer < len(ranks):
                transfer = {"rank": origin.rank, "src": origin.rank, "dst": ranks[peer], "op": call.op}
                transfer |= {"hop": group.get("hop", "direct"), "bytes": size, "evidence": evidence}
                transfer |= {"start_ns": start_ns, "dur_ns": dur}
                batch.add("transfers", transfer)
