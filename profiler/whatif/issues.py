"""Which thread issued each call of the CPU backend, when, and what an emulated wire added to it; traces do not tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from moescope.profiler.overlap.intervals import Times

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

NOBODY = -1
_FEW = 8
"""Fewer emulated waits than this tell no rate."""


def issues_of(source: Source, where: Mapping[tuple[int, int, int], int], count: int) -> tuple[Times, Sequence[str]]:
    """How long before its start each communication kernel was issued, and the thread that did; of the calls that both
    are known of.

    where: node by rank, start and end on the rank's own clock; returns: [nodes] ns, NOBODY where not told; [nodes] name
    """
    ahead = np.full(count, NOBODY, np.int64)
    threads = [""] * count
    calls = source.table("collectives")
    columns = ("rank", "issue_ns", "start_ns", "dur_ns", "phase_id", "evidence")
    phases = source.table("phases")
    thread_of = dict(
        zip(
            zip(phases.column("rank").to_pylist(), phases.column("id").to_pylist(), strict=True),
            phases.column("thread").to_pylist(),
            strict=True,
        )
    )
    for rank, issue, start, dur, phase, evidence in zip(
        *(calls.column(name).to_pylist() for name in columns), strict=True
    ):
        if None in (issue, start, dur) or evidence != "measured" or issue >= start:
            continue
        node = where.get((rank or 0, start, start + dur))
        thread = thread_of.get((rank, phase))
        if node is not None and thread:
            ahead[node] = start - issue
            threads[node] = thread
    return ahead, threads


def exchanges_of(table: pa.Table, rows: Times, starts: Times, ends: Times, lane: Times, issuer: Times) -> Times:
    """The exchange that each emulated wait belongs to: the last one that its thread issued; NOBODY for all else.

    An emulated wire lasts from the beginning of its exchange, and the wait is what the exchange itself left of it.

    table: `kernels`; rows, starts, ends, lane, issuer: [nodes], by lane and in it by start
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    found = np.full(len(rows), NOBODY, np.int64)
    label = table.column("evidence").take(pa.array(rows))
    emulated = np.flatnonzero(pc.fill_null(pc.equal(label, "modelled"), False).to_numpy())
    issued = np.flatnonzero(issuer != NOBODY)
    issued = issued[np.argsort(starts[issued], kind="stable")]
    for node in emulated.tolist():
        own = issued[issuer[issued] == lane[node]]
        at = int(np.searchsorted(starts[own], starts[node])) - 1
        if at >= 0 and starts[own[at]] < ends[node] and ends[own[at]] <= starts[node]:
            found[node] = own[at]
    return found


def unseen_wires(
    source: Source,
    where: Mapping[tuple[int, int, int], int],
    lasting: Times,
    ahead: Times,
    issuer: Times,
    exchange: Times,
) -> Times:
    """How long the emulated wire was busy beneath exchanges that outlasted it, so that no wait shows it: [nodes] ns.

    By latency and rate that the waits of other exchanges tell, for those as large that the same threads issued.

    lasting, ahead, issuer, exchange: [nodes]
    """
    found = np.zeros(len(lasting), np.int64)
    shown = np.flatnonzero(exchange != NOBODY)
    if len(shown) < _FEW:
        return found
    moved = np.full(len(lasting), NOBODY, np.int64)
    calls = source.table("collectives")
    columns = ("rank", "start_ns", "dur_ns", "sent_bytes", "received_bytes")
    for rank, start, dur, sent, received in zip(*(calls.column(name).to_pylist() for name in columns), strict=True):
        node = where.get((rank or 0, start, start + dur)) if None not in (start, dur) else None
        if node is not None:
            moved[node] = max(sent or 0, received or 0)
    seen = exchange[shown]
    # The wire is busy from the call on; the wait tells when it was free.
    busy = lasting[shown] + lasting[seen] + ahead[seen]
    if moved[seen].min() < 0 or len(np.unique(moved[seen])) < 2:
        return found
    slope, latency = np.polyfit(moved[seen].astype(np.float64), busy.astype(np.float64), 1)
    like = (issuer != NOBODY) & np.isin(issuer, issuer[seen]) & (moved >= moved[seen].min())
    like[seen] = False
    if slope > 0:
        told = np.rint(latency + slope * moved[like]).astype(np.int64) - ahead[like]
        found[like] = np.clip(told, 0, lasting[like])
    return found
