"""What is told of collectives that have ended, as columns of `collectives`, `kernels` and `transfers`.

Calls that met their execution range plainly come many at once (`Packed` and `Executed`, row by row), all others one by
one (`Ended`, `Range`). Both give the same columns, with times and numbers as the process has them; `finished` brings
those to the recording's clock and ids.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.packed import COMM
from moescope.collectors.ring_reader import Records
from moescope.collectors.sidecar.batch import Origin
from moescope.collectors.sidecar.names import Names
from moescope.collectors.structured import pick

_WHOLE: Final = -2
"""Stands for how many sizes are sent where the operand's follows."""

Columns = dict[str, Any]
"""Columns of equal length, by name: arrays, sequences, or where values are few `Same` and `Among`."""


class Same(NamedTuple):
    """A column of one value."""

    value: str | None


class Among(NamedTuple):
    """A column of few values; which: [rows], the place of each row's."""

    values: list[str | None]
    which: npt.NDArray[np.intp]


@dataclass(slots=True)
class Call:
    """One collective between its issue and its completion.

    sent, received: bytes for each rank of the group; sequence: its place in the group's order, of one that C++ issued;
    bytes: of its operand, where these do not tell what goes to whom
    """

    op: str
    group: str
    issue_ns: int
    sent: list[int] | None
    received: list[int] | None
    dtype: str
    phase: int
    sequence: int | None = None
    bytes: int | None = None


@dataclass(slots=True)
class Packed:
    """Calls of one kind that were issued, many at once.

    kind: as it was packed, `=comm OP DTYPE GROUP`; phases: [calls]
    words: [calls, 4 + sizes] int64, one call at least: number, issue, how many sizes are sent and received (-1: not
    told; -2 sent: the operand's instead), and these
    """

    kind: str
    words: npt.NDArray[np.int64]
    phases: npt.NDArray[np.uint64]

    def __len__(self) -> int:
        return len(self.words)

    @property
    def group(self) -> str:
        return call_kind(self.kind)[2]

    def where(self, mask: npt.NDArray[np.bool_]) -> Packed:
        return Packed(self.kind, self.words[mask], self.phases[mask])

    def sizes(self) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.int64] | None]:
        """Bytes sent to and received from each rank of the group, [calls, ranks] each; None where not told."""
        sent, received = self.words[0, 2:4].tolist()
        middle = 4 + (1 if sent == _WHOLE else max(sent, 0))
        return None if sent < 0 else self.words[:, 4:middle], None if received < 0 else self.words[:, middle:]

    def operands(self) -> npt.NDArray[np.int64] | None:
        """Bytes of each call's operand; None where they are not told, or what goes to whom is."""
        return self.words[:, 4] if self.words[0, 2] == _WHOLE else None

    def each(self) -> Iterator[tuple[int, Call]]:
        """The calls one by one, with their numbers."""
        op, dtype, group = call_kind(self.kind)
        sent, received = self.sizes()
        operands = self.operands()
        for i, (number, issue_ns) in enumerate(self.words[:, :2].tolist()):
            whole = None if operands is None else int(operands[i])
            to = None if sent is None else sent[i].tolist()
            of = None if received is None else received[i].tolist()
            yield number, Call(op, group, issue_ns, to, of, dtype, int(self.phases[i]), bytes=whole)


@dataclass(slots=True)
class Executed:
    """Execution ranges that tell their calls, of all threads together.

    numbers: [ranges] of the calls; records: EXECUTION; tids: [ranges]
    """

    numbers: npt.NDArray[np.int64]
    records: Records
    tids: npt.NDArray[np.int64]

    def where(self, which: npt.NDArray[Any]) -> Executed:
        return Executed(self.numbers[which], pick(self.records, which), self.tids[which])


class Ended(NamedTuple):
    """A call that has ended, or will not; start_ns, dur_ns on the target's clock, dur_ns None where it never completed.

    measured: whether its execution was seen
    """

    number: int
    call: Call
    start_ns: int
    dur_ns: int | None
    measured: bool


class Range(NamedTuple):
    """A communication kernel; call: the number of the call that it executes, None where that is not known."""

    name: str
    start_ns: int
    dur_ns: int
    tid: int
    phase: int
    call: int | None
    measured: bool


class Group(NamedTuple):
    """A group as this process sees it; me: its own place among `ranks`, -1 where it is not one of them."""

    ranks: tuple[int, ...]
    text: str
    me: int
    backend: str | None
    hop: str


@lru_cache(maxsize=4096)
def call_kind(kind: str) -> tuple[str, str, str]:
    """Operation, element type and group of a packed call."""
    op, dtype, group = kind.removeprefix(COMM).split(" ", 2)
    return op, dtype, group


def kernels(ranges: Sequence[Range]) -> Columns:
    """Rows of `kernels`, one by one."""
    names, starts, durs, tids, phases, numbers, measured = zip(*ranges, strict=True)
    return _kernels(names, starts, durs, tids, phases, numbers, _evidence(measured))


def kernels_met(packed: Packed, executed: Executed, names: Names) -> Columns:
    """Rows of `kernels`, many at once."""
    records, op = executed.records, call_kind(packed.kind)[0]
    numbers, which = np.unique(records["name"], return_inverse=True)
    titles = Among([range_name(names[number], op) for number in numbers.tolist()], which)
    times = records["start_ns"], records["dur_ns"]
    return _kernels(titles, *times, executed.tids, packed.phases, executed.numbers, Same("measured"))


def range_name(name: str, op: str) -> str:
    """What an execution range is called: gloo makes some operations of others, and names those."""
    return f"gloo:{op}" if name.startswith("gloo:") else name


def _kernels(names: Any, starts: Any, durs: Any, tids: Any, phases: Any, numbers: Any, evidence: Any) -> Columns:
    return {
        "kind": Same("comm"),
        "name": names,
        "start_ns": starts,
        "dur_ns": durs,
        "stream": tids,
        "phase_id": phases,
        "correlation": numbers,
        "evidence": evidence,
    }


def collectives(ended: Sequence[Ended], groups: Sequence[Group]) -> Columns:
    """Rows of `collectives`, one by one; groups: of each call."""
    numbers, calls, starts, durs, measured = zip(*ended, strict=True)
    both = list(zip(calls, groups, strict=True))
    return {
        "call": numbers,
        "sequence": [call.sequence for call in calls],
        "op": [call.op for call in calls],
        "group": [call.group for call in calls],
        "group_ranks": [group.text for group in groups],
        "backend": [group.backend for group in groups],
        "dtype": [call.dtype for call in calls],
        "bytes": [call.bytes for call in calls],
        "sent_bytes": [None if call.sent is None else _to_others(call.sent, group.me) for call, group in both],
        "received_bytes": [None if c.received is None else _to_others(c.received, group.me) for c, group in both],
        "issue_ns": [call.issue_ns for call in calls],
        "start_ns": starts,
        "dur_ns": durs,
        "phase_id": [call.phase for call in calls],
        "evidence": _evidence(measured),
    }


def collectives_met(packed: Packed, executed: Executed, group: Group) -> Columns:
    """Rows of `collectives`, many at once."""
    op, dtype, name = call_kind(packed.kind)
    sent, received = packed.sizes()
    none = Same(None)
    return {
        "call": executed.numbers,
        "sequence": none,
        "op": Same(op),
        "group": Same(name),
        "group_ranks": Same(group.text),
        "backend": Same(group.backend),
        "dtype": Same(dtype),
        "bytes": none if (operands := packed.operands()) is None else operands,
        "sent_bytes": none if sent is None else _to_others(sent, group.me),
        "received_bytes": none if received is None else _to_others(received, group.me),
        "issue_ns": packed.words[:, 1],
        "start_ns": executed.records["start_ns"],
        "dur_ns": executed.records["dur_ns"],
        "phase_id": packed.phases,
        "evidence": Same("measured"),
    }


def transfers(ended: Sequence[Ended], groups: Sequence[Group]) -> Columns:
    """Rows of `transfers`, one by one; groups: of each call."""
    rows = [
        (group.ranks[peer], group.hop, one.call.op, size, one.start_ns, one.dur_ns, _label(one.measured))
        for one, group in zip(ended, groups, strict=True)
        for peer, size in enumerate(one.call.sent or ())
        if peer != group.me and size and peer < len(group.ranks)
    ]
    names = ("dst", "hop", "op", "bytes", "start_ns", "dur_ns", "evidence")
    return dict(zip(names, zip(*rows, strict=True), strict=True)) if rows else {}


def transfers_met(packed: Packed, executed: Executed, group: Group) -> Columns:
    """Rows of `transfers`, many at once."""
    sent = packed.sizes()[0]
    if sent is None:
        return {}
    sent = sent[:, : len(group.ranks)]
    calls, to = np.nonzero((sent != 0) & (np.arange(sent.shape[1]) != group.me))
    return {
        "dst": np.array(group.ranks, np.int64)[to],
        "hop": Same(group.hop),
        "op": Same(call_kind(packed.kind)[0]),
        "bytes": sent[calls, to],
        "start_ns": executed.records["start_ns"][calls],
        "dur_ns": executed.records["dur_ns"][calls],
        "evidence": Same("measured"),
    }


def finished(parts: Sequence[Columns], origin: Origin, constants: Columns) -> tuple[int, Columns]:
    """The rows of all parts, one after another, as the table has them; how many, and the columns.

    parts: each may be empty; constants: columns with one value for all rows
    """
    import pyarrow as pa

    some = [part for part in parts if part]
    if not some:
        return 0, {}
    counts = [len(part["start_ns"]) for part in some]
    found = {name: _joined([part[name] for part in some], counts) for name in some[0]}
    for name in {"start_ns", "issue_ns"} & found.keys():
        found[name] = np.array(found[name], np.int64) + origin.clock.offset_ns
    for name in {"call", "correlation"} & found.keys():
        if isinstance(found[name], np.ndarray):
            found[name] = found[name] + origin.id_base
        else:
            found[name] = [None if number is None else int(number) + origin.id_base for number in found[name]]
    if "phase_id" in found:
        found["phase_id"] = origin.ids(np.array(found["phase_id"], np.uint64))
    if "stream" in found:
        tids, which = np.unique(np.array(found["stream"], np.int64), return_inverse=True)
        labels = pa.array([origin.label(tid) for tid in tids.tolist()], pa.string())
        found["stream"] = labels.take(pa.array(which))
    return sum(counts), found | constants


def _joined(columns: list[Any], counts: list[int]) -> Any:
    """The columns one after another, as `Batch.add_columns` takes them; counts: of their rows."""
    if all(isinstance(column, np.ndarray) for column in columns):
        return np.concatenate(columns)
    if all(isinstance(column, Same) for column in columns) and len({column.value for column in columns}) == 1:
        return columns[0].value
    if all(isinstance(column, Same | Among) for column in columns):
        return _taken(columns, counts)
    return [value for one, count in zip(columns, counts, strict=True) for value in _listed(one, count)]


def _taken(columns: list[Same | Among], counts: list[int]) -> Any:
    import pyarrow as pa

    values: list[str | None] = []
    which = []
    for column, count in zip(columns, counts, strict=True):
        of_column = column if isinstance(column, Among) else Among([column.value], np.zeros(count, np.intp))
        which.append(of_column.which + len(values))
        values += of_column.values
    return pa.array(values, pa.string()).take(pa.array(np.concatenate(which)))


def _listed(column: Any, count: int) -> Sequence[Any]:
    if isinstance(column, Same):
        return [column.value] * count
    if isinstance(column, Among):
        return [column.values[i] for i in column.which.tolist()]
    found: Sequence[Any] = column.tolist() if isinstance(column, np.ndarray) else column
    return found


def _evidence(measured: Sequence[bool]) -> list[str]:
    return [_label(seen) for seen in measured]


def _label(measured: bool) -> str:
    return "measured" if measured else "derived"


def _to_others(parts: Any, me: int) -> Any:
    """Bytes to or from all ranks but this one; parts: [..., ranks]"""
    sizes = np.asarray(parts, np.int64)
    total = sizes.sum(axis=-1)
    return total - sizes[..., me] if 0 <= me < sizes.shape[-1] else total
