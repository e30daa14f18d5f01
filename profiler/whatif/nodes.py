"""The kernels of a whole run on one clock, in lanes that each run one kernel after another: what a replay moves about.

A lane is a stream of a GPU, or a thread of the CPU backend, of one rank and one recorded stretch of time. Collectives
that several ranks take part in are matched, so that a replay can let them end together.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.labels import labels_in
from moescope.profiler.overlap.intervals import Intervals, Times, empty, intersect
from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows
from moescope.profiler.ranks.calls import Calls, calls_of
from moescope.profiler.ranks.clocks import Clocks, align
from moescope.profiler.ranks.facts import host_of
from moescope.profiler.ranks.matched import Matching
from moescope.profiler.ranks.matching import match
from moescope.profiler.ranks.view import RankView, ranks_in
from moescope.profiler.whatif.issues import exchanges_of, issues_of, unseen_wires
from moescope.profiler.whatif.whole import with_whole_steps

if TYPE_CHECKING:
    from moescope.profiler.source import Source

NOBODY: Final = -1


@dataclass(frozen=True, slots=True)
class Lane:
    """A stream, or a thread of the CPU backend; comm: whether most of its time is communication"""

    rank: int
    device: str
    stream: str
    segment: int
    comm: bool

    @property
    def on_cpu(self) -> bool:
        """Whether it is a thread."""
        return self.device.startswith("cpu")


@dataclass(frozen=True, slots=True)
class Nodes:
    """Kernels of all ranks, by lane and in it by start.

    starts, ends: [nodes] ns on the common clock; lane: [nodes] place in `lanes`; kinds, operators: [nodes] str; rows:
    [nodes] row in `kernels`; meetings: matched collectives, each the nodes of its ranks; left_out: kernels outside
    the stretches that all ranks recorded, or, where whole_steps, outside those in which each recorded a whole step;
    clock_error_ns: how far 95 % of the clocks are off at most, 0 for one clock; reason: why collectives were not
    matched across ranks, empty where they were; ahead: [nodes] how long before its start a call was issued, NOBODY
    where not told, and issuer: [nodes] the lane that issued it; exchange: [nodes] of what an emulated wire adds to
    an exchange, that exchange; NOBODY for all else; wire: [nodes] ns that an emulated wire was busy beneath an
    exchange that outlasted it, 0 for all else; clocks: of all ranks
    """

    starts: Times
    ends: Times
    lane: Times
    kinds: NDArray[np.object_]
    operators: NDArray[np.object_]
    rows: Times
    lanes: tuple[Lane, ...]
    meetings: tuple[Times, ...]
    left_out: int
    whole_steps: bool
    clock_error_ns: float
    reason: str
    ahead: Times
    issuer: Times
    exchange: Times
    wire: Times
    clocks: Clocks

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def is_comm(self) -> NDArray[np.bool_]:
        """[nodes] whether it moves data between ranks; a fused kernel computes, too, and does not count."""
        found: NDArray[np.bool_] = self.kinds == "comm"
        return found

    def of_lanes(self, value: Any) -> NDArray[Any]:
        """[nodes] something of each node's lane. value: from a Lane"""
        found: NDArray[Any] = np.array([value(lane) for lane in self.lanes])[self.lane]
        return found

    @property
    def ranks(self) -> Times:
        """[nodes] rank of each."""
        return self.of_lanes(lambda lane: lane.rank).astype(np.int64)

    @property
    def segments(self) -> Times:
        """[nodes] recorded stretch of each."""
        return self.of_lanes(lambda lane: lane.segment).astype(np.int64)


def with_comm_apart(nodes: Nodes) -> tuple[Nodes, Times]:
    """The same with communication out of computing lanes, in lanes of its own, and the old place of each node."""
    moves = nodes.is_comm & ~nodes.of_lanes(lambda lane: lane.comm).astype(bool)
    used, lane = np.unique(2 * nodes.lane + moves, return_inverse=True)
    lanes = tuple(
        replace(nodes.lanes[key // 2], comm=nodes.lanes[key // 2].comm or key % 2 == 1) for key in used.tolist()
    )
    order = np.argsort(lane.reshape(-1), kind="stable")
    place = np.empty(len(order) + 1, np.int64)
    place[order] = np.arange(len(order))
    place[NOBODY] = NOBODY
    lane_place = np.append(np.searchsorted(used, 2 * np.arange(len(nodes.lanes))), NOBODY)
    moved = replace(
        nodes,
        starts=nodes.starts[order],
        ends=nodes.ends[order],
        lane=lane.reshape(-1)[order].astype(np.int64),
        kinds=nodes.kinds[order],
        operators=nodes.operators[order],
        rows=nodes.rows[order],
        lanes=lanes,
        meetings=tuple(place[meeting] for meeting in nodes.meetings),
        ahead=nodes.ahead[order],
        issuer=lane_place[nodes.issuer[order]],
        exchange=place[nodes.exchange[order]],
        wire=nodes.wire[order],
    )
    return moved, order


def nodes_of(source: Source) -> Nodes:
    """The kernels of a source that lie inside one stretch that all of its ranks recorded; at least one is expected."""
    table = source.table("kernels")
    devices = kernels_by_device(table)
    held = sorted({device.rank for device in devices})
    world, matching, clocks = _clocks(source, held)
    shared = _shared(recorded_windows(source), held, clocks)
    of_steps = None if shared is None else with_whole_steps(shared, source, held, partial(_aligned, clocks))
    shared = shared if of_steps is None else of_steps
    streams = labels_in(table.column("stream"))
    parts = []
    for number, device in enumerate(devices):
        starts = _aligned(clocks, device.rank, device.starts)
        ends = np.maximum(_aligned(clocks, device.rank, device.ends), starts)
        parts.append(
            {
                "starts": starts,
                "ends": ends,
                "own_starts": device.starts,
                "own_ends": device.ends,
                "device": np.full(len(starts), number, np.int64),
                "stream": streams.codes[device.rows],
                "segment": _segments(shared, starts, ends),
                "kinds": device.kinds,
                "operators": device.operators,
                "rows": device.rows,
            }
        )
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    kept = np.flatnonzero(joined["segment"] >= 0)
    left_out = len(joined["segment"]) - len(kept)
    keys, lane = np.unique(
        np.stack([joined[name][kept] for name in ("device", "segment", "stream")]), axis=1, return_inverse=True
    )
    lane = lane.reshape(-1)
    order = np.lexsort((joined["ends"][kept], joined["starts"][kept], lane))
    columns = {name: values[kept[order]] for name, values in joined.items()}
    lane = lane[order].astype(np.int64)
    # What a stream or thread is for is told by all stretches together.
    same = np.unique(keys[[0, 2]], axis=1, return_inverse=True)[1].reshape(-1)
    lasting = (columns["ends"] - columns["starts"]).astype(np.float64)
    comm = np.bincount(same[lane], lasting * (columns["kinds"] == "comm"), minlength=keys.shape[1])[same]
    whole = np.bincount(same[lane], lasting, minlength=keys.shape[1])[same]
    lanes = tuple(
        Lane(devices[device].rank, devices[device].device, streams.texts[stream], segment, bool(mine > all_ - mine))
        for (device, segment, stream), mine, all_ in zip(keys.T.tolist(), comm.tolist(), whole.tolist(), strict=True)
    )
    where = _places(columns, np.array([one.rank for one in lanes], np.int64)[lane] if lanes else lane)
    ahead, issuer = _issuers(source, where, lanes, lane)
    exchange = exchanges_of(table, columns["rows"], columns["starts"], columns["ends"], lane, issuer)
    meetings, reason = _meetings(world, matching, clocks, where, len(held))
    return Nodes(
        starts=columns["starts"],
        ends=columns["ends"],
        lane=lane,
        kinds=columns["kinds"],
        operators=columns["operators"],
        rows=columns["rows"],
        lanes=lanes,
        meetings=meetings,
        left_out=left_out,
        whole_steps=of_steps is not None,
        clock_error_ns=clocks.residual_ns or 0.0 if len(set(clocks.clock_of.values())) > 1 else 0.0,
        reason=reason,
        ahead=ahead,
        issuer=issuer,
        exchange=exchange,
        wire=unseen_wires(source, where, columns["ends"] - columns["starts"], ahead, issuer, exchange),
        clocks=clocks,
    )


def _clocks(source: Source, held: list[int]) -> tuple[dict[int, Calls], Matching, Clocks]:
    """Calls of every rank that communicates, which of them are one collective, and all clocks on one."""
    world = {rank: calls_of(RankView(source, rank), empty(), empty(), None) for rank in held}
    world = {rank: calls for rank, calls in world.items() if len(calls)}
    matching = match(world)
    hosts = {rank: host for rank in ranks_in(source) if (host := host_of(source, rank))}
    return world, matching, align(world, matching, hosts)


def _shared(windows: dict[int, Intervals], held: list[int], clocks: Clocks) -> Intervals | None:
    """Stretches that all ranks recorded, on the common clock; None where recording went on throughout."""
    found: Intervals | None = None
    for rank in held:
        if rank in windows:
            own = _aligned(clocks, rank, windows[rank][0]), _aligned(clocks, rank, windows[rank][1])
            found = own if found is None else intersect(found, own)
    return found


def _segments(shared: Intervals | None, starts: Times, ends: Times) -> Times:
    """[kernels] which stretch each lies in, NOBODY where it lies in none."""
    if shared is None:
        return np.zeros(len(starts), np.int64)
    if not len(shared[0]):
        return np.full(len(starts), NOBODY, np.int64)
    at = np.searchsorted(shared[0], starts, side="right") - 1
    inside = (at >= 0) & (ends <= shared[1][np.maximum(at, 0)])
    return np.where(inside, at, NOBODY)


def _aligned(clocks: Clocks, rank: int, times: Times) -> Times:
    return clocks.aligned(rank, times) if rank in clocks.by_rank else times


def _places(columns: dict[str, NDArray[Any]], ranks: Times) -> dict[tuple[int, int, int], int]:
    """The communication kernel of each rank, start and end, by the rank's own clock."""
    own = np.flatnonzero(columns["kinds"] == "comm")
    keys = zip(ranks[own].tolist(), columns["own_starts"][own].tolist(), columns["own_ends"][own].tolist(), strict=True)
    return dict(zip(keys, own.tolist(), strict=True))


def _issuers(
    source: Source, where: dict[tuple[int, int, int], int], lanes: tuple[Lane, ...], lane: Times
) -> tuple[Times, Times]:
    """How long before its start each call was issued, and by which lane."""
    ahead, threads = issues_of(source, where, len(lane))
    numbers = {(one.rank, one.device, one.segment, one.stream): place for place, one in enumerate(lanes)}
    issuer = np.full(len(lane), NOBODY, np.int64)
    for node in np.flatnonzero(ahead >= 0).tolist():
        own = lanes[int(lane[node])]
        issuer[node] = numbers.get((own.rank, own.device, own.segment, threads[node]), NOBODY)
    return ahead, issuer


def _meetings(
    world: dict[int, Calls], matching: Matching, clocks: Clocks, where: dict[tuple[int, int, int], int], ranks: int
) -> tuple[tuple[Times, ...], str]:
    """The nodes of each collective that two ranks or more were seen in, and why there are none."""
    found: list[Times] = []
    for one in matching.groups:
        if any(clocks.by_rank[rank].offset_ns is None for rank in one.ranks):
            continue
        for column in one.rows.T.tolist():
            nodes = [
                where.get((rank, int(world[rank].starts[row]), int(world[rank].ends[row])), NOBODY)
                for rank, row in zip(one.ranks, column, strict=True)
                if row >= 0
            ]
            nodes = [node for node in nodes if node != NOBODY]
            if len(nodes) > 1:
                found.append(np.array(nodes, np.int64))
    if found:
        return tuple(found), ""
    if ranks < 2:
        return (), "the source holds one rank alone"
    if not world:
        return (), "no communication calls"
    return (), "no collective could be matched across ranks"
