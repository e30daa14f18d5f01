"""The tables `collectives` and `transfers` of one rank from a trace's columns: calls that bear PyTorch's metadata."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from moescope.profiler.roofline.operands import ITEM_BYTES
from moescope.profiler.sources.arrow import nullable, strings, table_of
from moescope.profiler.sources.columns import (
    NO_INT,
    NO_TEXT,
    Codes,
    Columns,
    Ints,
    Numbered,
    TraceColumns,
    count,
    picked,
)
from moescope.profiler.sources.messages import Carried, Message, carried, ranks_text

if TYPE_CHECKING:
    import pyarrow as pa

MOST_TRANSFERS: Final = 4_000_000
"""Rows beyond which they are left out: calls times ranks."""
_NOTHING: Final = Message()


@dataclass(frozen=True, slots=True)
class _Call:
    """What calls of one form have in common. group_ranks: written out, `0,1`"""

    op: str
    group: str
    group_ranks: str
    dtype: str | None
    peer: int | None
    carried: Carried


def collective_tables(
    columns: TraceColumns, work: Columns, phase_ids: Ints, me: int | None
) -> tuple[pa.Table, pa.Table, int]:
    """`collectives` and `transfers` of one trace, and of how many calls the transfers are left out as too many.

    work: device work in order of start; phase_ids: [work] 0 outside all; me: rank whose trace it is, as the trace says
    """
    import pyarrow as pa

    own = np.flatnonzero(work["op"] != NO_TEXT)
    phase_ids, rows = phase_ids[own], picked(work, own)
    forms: Numbered[tuple[int, ...]] = Numbered()
    each = zip(*(rows[name].tolist() for name in ("op", "group", "ranks", "dtype", "message")), strict=True)
    number = forms.of(each)
    calls = [_call(columns, form, me) for form in forms]

    def of(values: Sequence[str | int | None], kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind).take(pa.array(number))

    starts = rows["start"] + columns.base_ns
    collectives = table_of(
        "collectives",
        count(rows),
        rank=np.zeros(count(rows)),
        call=np.arange(count(rows)),
        op=of([call.op for call in calls], pa.string()),
        group=of([call.group for call in calls], pa.string()),
        group_ranks=of([call.group_ranks or None for call in calls], pa.string()),
        peer=of([call.peer for call in calls], pa.int32()),
        backend=pa.repeat("nccl", count(rows)),
        dtype=of([call.dtype for call in calls], pa.string()),
        sent_bytes=of([call.carried.sent for call in calls], pa.int64()),
        received_bytes=of([call.carried.received for call in calls], pa.int64()),
        issue_ns=starts,
        start_ns=starts,
        dur_ns=rows["dur"],
        phase_id=nullable(np.where(phase_ids == 0, NO_INT, phase_ids)),
        evidence=pa.repeat("measured", count(rows)),
    )
    transfers, left_out = _transfers(calls, number, starts, rows["dur"], me)
    return collectives, transfers, left_out


def _call(columns: TraceColumns, form: tuple[int, ...], me: int | None) -> _Call:
    op, group, ranks, dtype, message = form

    def text(code: int) -> str:
        return columns.texts[code] if code != NO_TEXT else ""

    told = columns.messages[message] if message != NO_TEXT else _NOTHING
    name, members = text(op).lstrip("_"), ranks_text(text(ranks), told.size, text(group), columns.groups)
    listed = members.split(",")
    numbers = tuple(map(int, listed)) if all(one.isdecimal() and len(one) < 10 for one in listed) else ()
    return _Call(
        op=name,
        group=text(group),
        group_ranks=members,
        dtype=text(dtype) or None,
        peer=told.peer if name in ("send", "recv") else None,
        carried=carried(name, told, ITEM_BYTES.get(text(dtype)), numbers, me),
    )


def _transfers(calls: list[_Call], number: Codes, starts: Ints, lasts: Ints, me: int | None) -> tuple[pa.Table, int]:
    """A row for each rank that a call sends to, where the call tells that: all-to-alls and sends."""
    import pyarrow as pa

    each = np.array([len(call.carried.to) if me is not None else 0 for call in calls], np.int64)
    left_out = 0
    if len(calls) and int(each[number].sum()) > MOST_TRANSFERS:
        left_out, each = int((each[number] > 0).sum()), np.zeros_like(each)
    sending = np.flatnonzero(each[number]) if len(calls) else np.empty(0, np.int64)
    row = np.repeat(sending, each[number[sending]]) if len(sending) else sending
    pairs = [np.array(call.carried.to, np.int64).reshape(-1, 2) for call in calls]
    to = np.concatenate([np.empty((0, 2), np.int64), *(pairs[at] for at in number[sending].tolist())])
    ops = strings(number[row], ["all_to_all" if call.op not in ("send", "recv") else call.op for call in calls])
    table = table_of(
        "transfers",
        len(row),
        rank=np.zeros(len(row)),
        src=np.full(len(row), me or 0),
        dst=to[:, 0],
        hop=pa.repeat("direct", len(row)),
        op=ops,
        bytes=to[:, 1],
        start_ns=starts[row],
        dur_ns=lasts[row],
        evidence=pa.repeat("measured", len(row)),
    )
    return table, left_out
