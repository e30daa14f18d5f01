"""Collectives of one process: each call's issue, execution and completion, met on whatever thread they come."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.ring_reader import DONE, EXECUTION, UNTOLD, Records, blob_bytes
from moescope.collectors.sidecar.batch import Batch, Origin
from moescope.collectors.sidecar.call_columns import (
    Call,
    Ended,
    Executed,
    Group,
    Packed,
    Range,
    call_kind,
    collectives,
    collectives_met,
    finished,
    kernels,
    kernels_met,
    range_name,
    transfers,
    transfers_met,
)
from moescope.collectors.sidecar.flight import Execution, Flights, Issue, Told
from moescope.collectors.sidecar.names import Names
from moescope.collectors.structured import joined, pick, values

LOST_NS: Final = 60_000_000_000
"""A call whose kernel was not told, this long before one that a later call of the group had: the record was lost."""


_BETWEEN_TWO: Final = ("gloo:send", "gloo:recv")


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
        self._known: dict[str, Group] = {}
        self._open: dict[int, Call] = {}
        self._early: dict[int, tuple[int, tuple[int, int] | None, int, str]] = {}
        self._ended: list[Ended] = []
        self._ranges: list[Range] = []
        self._packed: list[Packed] = []
        self._told: list[tuple[int, Records, Names]] = []
        self._flights = Flights()
        self._told_between_two = False
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
        self._told_between_two = self._told_between_two or call.op in ("send", "recv")
        self._open_call(number, call)

    def issued_packed(self, places: npt.NDArray[np.intp], kind: str, records: Records) -> None:
        """The process has made calls of one kind; places: of their blobs among `records`."""
        sizes = records["dur_ns"][places]
        self._told_between_two = self._told_between_two or call_kind(kind)[0] in ("send", "recv")
        for size in values(sizes):
            at = places[sizes == size]
            words = blob_bytes(records, at, size).view("<i8")
            self.seen.add(words[:, 0].tolist())
            # Of one length, and yet not with as many sizes each way: a broadcast's root and the others.
            counts = words[:, 2] << 32 | words[:, 3] & 0xFFFFFFFF
            for both in values(counts):
                alike = counts == both
                self._packed.append(Packed(kind, words[alike], records["a"][at[alike]]))

    def issued_in_c(self, records: Records, names: Names) -> None:
        """C++ has made calls, and which they are is told later; records: CALL alone"""
        columns = (records[name].tolist() for name in ("name", "start_ns", "dur_ns", "a", "b"))
        for name, start, dur, phase, thread in zip(*columns, strict=True):
            self._flights.issued(thread, Issue(start, start + dur, names[name], phase))

    def told_later(self, row: dict[str, Any]) -> None:
        """What torch's flight recorder tells of calls that C++ made."""
        self._flights.told(row)

    def _name_calls(self, *, final: bool) -> None:
        """Files calls that C++ made, as far as they are known."""
        for told, issue, execution in self._flights.met(final=final):
            op = "reduce_scatter" if "reduce_scatter" in issue.operator else told.op.removeprefix("sparse_")
            call = Call(op, told.group, told.issued_ns, None, None, told.dtype, issue.phase, told.sequence)
            call.sent, call.received = _moved(op, told, self._group(told.group))
            call.bytes = told.bytes if call.sent is None and told.bytes >= 0 and op == told.op else None
            span = execution.start_ns, execution.end_ns - execution.start_ns
            self._ended.append(Ended(execution.number, call, *span, measured=True))

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
        of_group = pick(records, (records["type"] == EXECUTION) & (records["c"] > 0))
        if len(of_group):  # a thread executes the calls of one group
            self._flights.busy(names[int(of_group["c"][0])], of_group["start_ns"] + of_group["dur_ns"])

    def executed_on_gpu(self, records: Records, names: Names) -> None:
        """Execution ranges that a GPU's kernels tell; records: EXECUTION alone, each with the number of its call"""
        self._told.append((self._origin.pid, records, names))

    def _meet(self) -> list[tuple[Packed, Executed, Names]]:
        """Brings together what was issued and what was executed: what meets plainly is returned, row by row.

        All else (completions without a range, ranges without a number, calls on their way) goes one by one.
        """
        told, self._told = self._told, []
        packed, self._packed = self._packed, []
        plain: list[tuple[int, Records, Names]] = []
        others: list[tuple[int, Records, Names]] = []
        for one in told:
            is_plain = (one[1]["type"] != DONE) & (one[1]["b"] > 0) & ((one[1]["flags"] & UNTOLD) == 0)
            (plain if is_plain.all() else others).append(one)
        met: list[tuple[Packed, Executed, Names]] = []
        left = packed
        if plain:
            names = plain[0][2]
            records = joined([of_thread for _, of_thread, _ in plain])
            tids = np.repeat([tid for tid, _, _ in plain], [len(of_thread) for _, of_thread, _ in plain])
            numbers, first = np.unique(records["b"].astype(np.int64), return_index=True)
            executed = Executed(numbers, pick(records, first), tids[first])
            alone, left = np.ones(len(numbers), np.bool_), []
            for calls in packed:
                at = np.minimum(np.searchsorted(numbers, calls.words[:, 0]), len(numbers) - 1)
                found = numbers[at] == calls.words[:, 0]
                alone[at[found]] = False
                if found.any():
                    met.append((calls.where(found), executed.where(at[found]), names))
                if not found.all():
                    left.append(calls.where(~found))
            rest = executed.where(alone)
            others += [(tid, rest.records[i : i + 1], names) for i, tid in enumerate(rest.tids.tolist())]
        for calls in left:
            for number, call in calls.each():
                self._open_call(number, call)
        for tid, of_thread, its_names in others:
            self._one_by_one(tid, of_thread, its_names)
        return met

    def _one_by_one(self, tid: int, records: Records, names: Names) -> None:
        waiting: list[tuple[int, int]] = []
        columns = (records[name].tolist() for name in ("type", "flags", "start_ns", "dur_ns", "a", "b", "c", "name"))
        for type_, flags, start, dur, a, b, c, name_number in zip(*columns, strict=True):
            if type_ == DONE:
                waiting.append((a, start))
                continue
            end = start + dur
            name = names[name_number]
            if b and not flags & UNTOLD:
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
                if name in _BETWEEN_TWO and self._told_between_two:
                    continue  # the call's own row tells
                self._ranges.append(Range(name, start, dur, tid, a, b or None, measured=True))
                if b and c:
                    self._flights.ran(names[c], name.partition(":")[2], Execution(start, end, b))
        for entry in waiting:
            self._complete(*entry, None, tid, "")

    def store(self, batch: Batch, *, final: bool = False) -> None:
        """Puts into the batch what has ended since the last time; where `final`, what never will as well."""
        met = self._meet()
        self._name_calls(final=final)
        if final:
            # A peer that died, or the end of the run.
            for number, call in sorted(self._open.items()):
                self._ended.append(Ended(number, call, call.issue_ns, None, measured=False))
            self._open.clear()
        elif self._open:
            self._give_up_lost(met)
        ended, self._ended = self._ended, []
        ranges, self._ranges = self._ranges, []
        of_kernels = [kernels(ranges)] if ranges else []
        of_collectives, of_transfers = [], []
        seen = [one for one in ended if not self._ends_on_gpu(one)]
        if seen:
            of_collectives.append(collectives(seen, [self._group(one.call.group) for one in seen]))
        if ended:
            told = [one._replace(dur_ns=None) if self._ends_on_gpu(one) else one for one in ended]
            of_transfers.append(transfers(told, [self._group(one.call.group) for one in told]))
        for packed, executed, names in met:
            group = self._group(packed.group)
            of_kernels.append(kernels_met(packed, executed, names))
            of_collectives.append(collectives_met(packed, executed, group))
            of_transfers.append(transfers_met(packed, executed, group))
        if self._origin.kernels_told or self._origin.devices:
            of_kernels = []  # NCCL's kernels are told by the GPU itself; what goes over the host is in `collectives`
        rank = self._origin.rank
        for table, parts, constants in (
            ("kernels", of_kernels, {"rank": rank, "device": self._origin.device}),
            ("collectives", of_collectives, {"rank": rank}),
            ("transfers", of_transfers, {"rank": rank, "src": rank}),
        ):
            count, columns = finished(parts, self._origin, constants)
            if count:
                batch.add_columns(table, count, columns)

    def _give_up_lost(self, met: list[tuple[Packed, Executed, Names]]) -> None:
        """Ends calls whose kernels will not be told any more, so that nobody takes them for calls that hang."""
        latest = {packed.group: int(executed.records["start_ns"].max()) for packed, executed, _ in met}
        for one in self._ended:
            if one.measured:
                latest[one.call.group] = max(one.start_ns, latest.get(one.call.group, 0))
        for number, call in list(self._open.items()):
            if call.issue_ns + LOST_NS < latest.get(call.group, 0) and self._of_nccl(call):
                del self._open[number]
                self._ended.append(Ended(number, call, call.issue_ns, 0, measured=False))

    def _ends_on_gpu(self, one: Ended) -> bool:
        """Whether the host alone tells of the call, which put NCCL's kernel into the queue: not when that ended.

        The kernel itself is in `kernels`; beside it a call of the wrong length would count twice.
        """
        told = self._origin.kernels_told or bool(self._origin.devices)
        return told and not one.measured and one.dur_ns is not None and self._of_nccl(one.call)

    def _of_nccl(self, call: Call) -> bool:
        return "nccl" in (self._group(call.group).backend or "")

    def _complete(self, number: int, done_ns: int, span: tuple[int, int] | None, tid: int, name: str) -> None:
        call = self._open.pop(number, None)
        if call is None:
            if number not in self.seen:
                self._early[number] = done_ns, span, tid, name
            return
        start, end = span or (call.issue_ns, done_ns)
        measured = span is not None
        self._ended.append(Ended(number, call, start, end - start, measured))
        title = range_name(name, call.op) if name else f"{self._group(call.group).backend or 'comm'}:{call.op}"
        self._ranges.append(Range(title, start, end - start, tid, call.phase, number, measured))

    def _group(self, name: str) -> Group:
        known = self._known.get(name)
        if known is None:
            told = self._groups.get(name, {})
            ranks = tuple(told.get("ranks", ()))
            me = ranks.index(self._origin.rank) if self._origin.rank in ranks else -1
            text = ",".join(map(str, ranks))
            known = Group(ranks, text, me, told.get("backend"), told.get("hop", "direct"))
            if told and self._origin.rank >= 0:
                self._known[name] = known
        return known


def _moved(op: str, told: Told, group: Group) -> tuple[list[int] | None, list[int] | None]:
    """Bytes to and from each rank of the group, of what takes as much from each; None where that is not known."""
    n = len(group.ranks)
    if told.bytes < 0 or group.me < 0 or op not in ("all_gather", "reduce_scatter"):
        return None, None
    size = told.bytes if op == "all_gather" else told.bytes // n
    each = [0 if place == group.me else size for place in range(n)]
    return each, each
