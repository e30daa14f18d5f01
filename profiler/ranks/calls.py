"""The communication calls of one rank, in the order in which it made them: what ranks are compared by.

A recording tells calls in `collectives`. A trace tells them there for kernels that bear metadata (process group,
elements, type); its other communication kernels are calls without a group, known by stream and name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.classify.classifier import classify_table, operator_of_collective
from moescope.profiler.overlap.intervals import Intervals, Times, covered_before

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

Names: TypeAlias = NDArray[np.object_]

UNKNOWN: Final = -1
PEER_TO_PEER: Final = frozenset({"send", "recv", "p2p", "coalesced"})
"""Calls that only some ranks of a group take part in, so that the n-th of one rank is not the n-th of another."""

PAIRED: Final = "send_recv"
"""A send, or the receive that it meets: both sides of one operation."""

_WHOLE: Final = frozenset({"broadcast", "reduce"})


@dataclass(frozen=True, slots=True)
class Group:
    """Who communicates.

    name: of the process group, or the stream where no group is told; members: its ranks as told, `0,1`, empty where
    they are not; told: whether the source names the group; peer, sends: of sends and receives whose other side is told,
    that rank, and whether this one sends to it; counted: whether its calls tell their place among all of the group
    """

    name: str
    members: str
    told: bool
    peer: int | None = None
    sends: bool = False
    counted: bool = False

    @property
    def ranks(self) -> tuple[int, ...] | None:
        """Its global ranks; None where they are not told, or only in part (`0, 1, ..., 63`)."""
        parts = [part.strip() for part in self.members.split(",") if part.strip()]
        return tuple(sorted({int(part) for part in parts})) if parts and all(p.isdecimal() for p in parts) else None


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of one rank, in the order in which they were issued.

    groups, ops, labels: what the codes stand for; group, op, label: [calls] codes, label that of the kernel's name;
    starts, ends: [calls] ns, ends UNKNOWN for a call that never ended; moved: [calls] bytes that must cross the rank's
    link; buffer: [calls] bytes of the whole operation by NCCL's convention (nccl-tests, PERFORMANCE.md); received:
    [calls] bytes from other ranks; sequence: [calls] place among all calls of a group that counts them; UNKNOWN where
    not known; compute, busy, seen: [2, calls] time before the start and
    before the end with compute, with any kernel, and recorded at all, ns; peer_to_peer: sends and receives whose other
    side is not told, left out;
    measured: whether start and end of all were seen; devices: those that communicate
    """

    groups: tuple[Group, ...]
    ops: tuple[str, ...]
    labels: tuple[str, ...]
    group: NDArray[np.int32]
    op: NDArray[np.int16]
    label: NDArray[np.int32]
    starts: Times
    ends: Times
    moved: Times
    buffer: Times
    received: Times
    sequence: Times
    compute: Times
    busy: Times
    seen: Times
    peer_to_peer: int
    measured: bool
    devices: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.starts)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Calls before they are put in order: [calls] each, as in `Calls`; size: of the group, UNKNOWN where not told."""

    group: Names
    members: Names
    told: NDArray[np.bool_]
    op: Names
    label: Names
    issued: Times
    starts: Times
    ends: Times
    moved: Times
    buffer: Times
    received: Times
    sequence: Times
    peer: Times
    sends: NDArray[np.bool_]


def calls_of(source: Source, compute: Intervals, busy: Intervals, recorded: Intervals | None) -> Calls:
    """The calls of a source of one rank.

    compute, busy: unions over the rank's devices; recorded: its windows, None where it was recorded throughout
    """
    kernels = source.table("kernels")
    communicating = _communicating(kernels)
    told = _told(source.table("collectives"), communicating)
    on_cpu = all(device.startswith("cpu") for device in communicating["device"].tolist())
    # On the CPU backend kernels are seen in windows only, so they say nothing where the calls themselves are known.
    left = communicating["told"] | (on_cpu and len(told.starts) > 0)
    rows = _joined(told, _untold({name: values[~left] for name, values in communicating.items()}))
    peers = np.isin(rows.op, list(PEER_TO_PEER)) & rows.told
    rows = _picked(rows, np.flatnonzero(~peers))
    rows = _picked(rows, np.argsort(rows.issued, kind="stable"))
    sides = [None if peer == UNKNOWN else peer for peer in rows.peer.tolist()]
    groups, group = _coded(
        list(
            zip(
                *(rows.group.tolist(), rows.members.tolist(), rows.told.tolist(), sides, rows.sends.tolist()),
                (rows.sequence >= 0).tolist(),
                strict=True,
            )
        )
    )
    ops, op = _coded(rows.op.tolist())
    labels, label = _coded(rows.label.tolist())
    edges = np.stack((rows.starts, np.maximum(rows.starts, rows.ends)))
    return Calls(
        groups=tuple(Group(*one) for one in groups),
        ops=tuple(ops),
        labels=tuple(labels),
        group=group.astype(np.int32),
        op=op.astype(np.int16),
        label=label.astype(np.int32),
        starts=rows.starts,
        ends=rows.ends,
        moved=rows.moved,
        buffer=rows.buffer,
        received=rows.received,
        sequence=rows.sequence,
        compute=covered_before(compute, edges),
        busy=covered_before(busy, edges),
        seen=covered_before(recorded, edges) if recorded is not None else edges,
        peer_to_peer=int(peers.sum()),
        measured=bool((communicating["evidence"] == "measured").all()),
        devices=tuple(sorted(set(communicating["device"].tolist()))),
    )


def _communicating(kernels: pa.Table) -> dict[str, Any]:
    """Columns of the kernels that communicate; `told` is for whoever finds them in `collectives`."""
    kinds, operators, _ = classify_table(kernels)
    pick = np.flatnonzero(np.isin(kinds, ("comm",)))
    rows = kernels.take(pick) if len(pick) else kernels.slice(0, 0)
    starts = rows.column("start_ns").fill_null(0).to_numpy()
    return {
        "op": operators[pick],
        "name": _texts(rows, "name"),
        "stream": _texts(rows, "stream"),
        "device": _texts(rows, "device", "cpu"),
        "evidence": _texts(rows, "evidence", "measured"),
        "start": starts,
        "dur": rows.column("dur_ns").fill_null(0).to_numpy(),
        "bytes": rows.column("bytes").fill_null(UNKNOWN).to_numpy(),
        "told": np.zeros(len(starts), np.bool_),
    }


def _texts(table: pa.Table, column: str, instead: str = "") -> Names:
    """[rows] text; equal ones are one string: the members of a large group are long."""
    encoded = table.column(column).fill_null(instead).combine_chunks().dictionary_encode()
    known = np.array(encoded.dictionary.to_pylist(), object)
    texts: Names = known[encoded.indices.to_numpy()]
    return texts


def _told(collectives: pa.Table, kernels: dict[str, Any]) -> _Rows:
    """Calls of the table; marks the kernels that are such calls as told."""
    # Simultaneous calls keep the order in which they were made.
    rows = collectives.sort_by([("issue_ns", "ascending"), ("call", "ascending")])
    starts = rows.column("start_ns").to_numpy()
    durations = rows.column("dur_ns").fill_null(UNKNOWN).to_numpy()
    told = _texts(rows, "op")
    named = {text: _op(text) for text in dict.fromkeys(told.tolist())}
    ops = np.array([named[text] for text in told.tolist()], object)
    members = _texts(rows, "group_ranks")
    given = rows.column("bytes").fill_null(UNKNOWN).to_numpy()
    buffer = np.maximum(_kernel_bytes(starts, durations, kernels), given)
    sent, received = (rows.column(f"{way}_bytes").fill_null(UNKNOWN).to_numpy() for way in ("sent", "received"))
    size_of = {text: _size(text) for text in dict.fromkeys(members.tolist())}
    sizes = np.array([size_of[text] for text in members.tolist()], np.int64)
    moved, buffer = _bytes(ops, sizes, buffer, sent, received)
    uneven = (ops == "all_to_all") & (sent >= 0)
    moved[uneven] = sent[uneven]
    peers = rows.column("peer").fill_null(UNKNOWN).to_numpy()
    sends = (ops == "send") & (peers >= 0)
    pairs = sends | ((ops == "recv") & (peers >= 0))
    moved[pairs] = buffer[pairs] = np.where(sends, sent, received)[pairs]
    ops[pairs] = PAIRED
    return _Rows(
        group=_texts(rows, "group"),
        members=members,
        told=np.ones(len(starts), np.bool_),
        op=ops,
        label=ops,
        issued=rows.column("issue_ns").to_numpy(),
        starts=starts,
        ends=np.where(durations < 0, UNKNOWN, starts + durations),
        moved=moved,
        buffer=buffer,
        received=received,
        sequence=rows.column("sequence").fill_null(UNKNOWN).to_numpy(),
        peer=np.where(pairs, peers, UNKNOWN),
        sends=sends,
    )


def _op(text: str) -> str:
    """`_allgather_base`, `ALLGATHER_coalesced` … as `all_gather`; what is not known stays as it is told."""
    plain = text.strip("_").lower()
    if plain in PEER_TO_PEER or plain.startswith("barrier"):
        return "barrier" if plain.startswith("barrier") else plain
    found = operator_of_collective(plain)
    return plain if found in ("collective", "p2p", "notify") else found


def _size(members: str) -> int:
    ranks = Group("", members, told=True).ranks
    return len(ranks) if ranks else UNKNOWN


def _kernel_bytes(starts: Times, durations: Times, kernels: dict[str, Any]) -> Times:
    """[calls] bytes of the kernel that runs at the very time of each call; UNKNOWN where none does."""
    found = np.full(len(starts), UNKNOWN, np.int64)
    if not len(starts) or not len(kernels["start"]):
        return found
    rows: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(kernels["start"].tolist(), kernels["dur"].tolist(), strict=True)):
        rows.setdefault(key, []).append(row)
    for call, key in enumerate(zip(starts.tolist(), durations.tolist(), strict=True)):
        held = rows.get(key)
        if held:
            row = held.pop(0)
            kernels["told"][row] = True
            found[call] = kernels["bytes"][row]
    return found


def _bytes(ops: Names, sizes: Times, given: Times, sent: Times, received: Times) -> tuple[Times, Times]:
    """[calls] bytes that must cross each rank's link, and bytes of the whole operation, by NCCL's convention.

    given: bytes of the rank's input buffer, as traces tell; sent, received: to and from others, as recordings tell. Of
    n ranks an all-reduce moves 2 (n - 1) / n of its buffer, all-gather, reduce-scatter and all-to-all (n - 1) / n,
    broadcast and reduce all of it; an all-gather's buffer is its output.
    """
    moved, buffer = np.full(len(ops), UNKNOWN, np.int64), np.full(len(ops), UNKNOWN, np.int64)
    told = (sizes > 1) & (given >= 0)
    gathers, reduces, whole = ops == "all_gather", ops == "all_reduce", np.isin(ops, list(_WHOLE))
    shares = np.isin(ops, ("reduce_scatter", "all_to_all", "all_gather"))
    buffer[told] = np.where(gathers, given * sizes, given)[told]
    parts = buffer // np.maximum(sizes, 1)
    moved[told & reduces] = (2 * (buffer - parts))[told & reduces]
    moved[told & shares] = (buffer - parts)[told & shares]
    moved[told & whole] = buffer[told & whole]
    recorded = ~told & (sizes > 1) & (sent >= 0)
    moved[recorded & shares] = sent[recorded & shares]
    even = recorded & np.isin(ops, ("reduce_scatter", "all_gather"))
    buffer[even] = (sent * sizes // np.maximum(sizes - 1, 1))[even]
    casts = recorded & (ops == "broadcast")
    buffer[casts] = np.maximum(sent // np.maximum(sizes - 1, 1), received)[casts]
    moved[casts] = buffer[casts]
    return moved, buffer


def _untold(kernels: dict[str, Any]) -> _Rows:
    """Kernels that no table tells the group of: known by device, stream and name."""
    count = len(kernels["start"])
    unknown = np.full(count, UNKNOWN, np.int64)
    return _Rows(
        group=kernels["stream"],
        members=np.full(count, "", object),
        told=np.zeros(count, np.bool_),
        op=kernels["op"],
        label=kernels["name"],
        issued=kernels["start"],
        starts=kernels["start"],
        ends=kernels["start"] + np.maximum(kernels["dur"], 0),
        moved=unknown,
        buffer=unknown,
        received=unknown,
        sequence=unknown,
        peer=unknown,
        sends=np.zeros(count, np.bool_),
    )


def _joined(a: _Rows, b: _Rows) -> _Rows:
    return _Rows(*(np.concatenate((getattr(a, name), getattr(b, name))) for name in _Rows.__slots__))


def _picked(rows: _Rows, at: Times) -> _Rows:
    return _Rows(*(getattr(rows, name)[at] for name in _Rows.__slots__))


def _coded(values: list[Any]) -> tuple[list[Any], NDArray[np.int64]]:
    """The distinct values in order of appearance, and each value's place among them."""
    places = {value: place for place, value in enumerate(dict.fromkeys(values))}
    return list(places), np.array([places[value] for value in values], np.int64)
