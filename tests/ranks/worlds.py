"""Runs of many ranks whose truth is known: every arrival, every end and every clock is chosen, then written as rows."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.live_recording import MemorySource

NCCL = "ncclDevKernel_{}_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
KERNEL_OF = {"all_reduce": "AllReduce_Sum_bf16", "all_gather": "AllGather", "reduce_scatter": "ReduceScatter_Sum_bf16"}


@dataclass
class Call:
    """One rank in one collective, true times, ns."""

    op: str
    group: tuple[int, ...]
    number: int
    arrival: int
    end: int
    idle: int


@dataclass
class World:
    """What happened. offsets, drifts: by rank, of its clock; calls: by rank in order; meetings: (op, group, number)"""

    offsets: dict[int, int]
    drifts: dict[int, float]
    calls: dict[int, list[Call]] = field(default_factory=dict)
    work: dict[int, list[tuple[int, int]]] = field(default_factory=dict)

    def shown(self, rank: int, time: int) -> int:
        """What a rank's clock shows at a true time."""
        return ORIGIN + time + self.offsets[rank] + round(self.drifts[rank] * time)

    def meetings(self) -> dict[tuple[tuple[int, ...], int], dict[int, Call]]:
        """Calls of each collective by rank."""
        found: dict[tuple[tuple[int, ...], int], dict[int, Call]] = {}
        for rank, calls in self.calls.items():
            for call in calls:
                found.setdefault((call.group, call.number), {})[rank] = call
        return found


ORIGIN = 1_700_000_000_000_000_000


def run(
    groups: list[tuple[int, ...]],
    rounds: int,
    *,
    seed: int = 0,
    offset_ns: int = 0,
    drift: float = 0.0,
    jitter_ns: int = 0,
    gap_ns: int = 1_000_000,
    slower: dict[int, int] | None = None,
    idler: dict[int, int] | None = None,
) -> World:
    """Every group meets once a round, in order; between meetings each rank computes for a random time.

    slower, idler: by rank, ns that it computes or idles more before every meeting; jitter_ns: how far ends lie apart
    """
    draw = random.Random(seed)
    ranks = sorted({rank for group in groups for rank in group})
    world = World(
        {rank: draw.randint(-offset_ns, offset_ns) for rank in ranks},
        {rank: draw.uniform(-drift, drift) for rank in ranks},
        {rank: [] for rank in ranks},
        {rank: [] for rank in ranks},
    )
    now = dict.fromkeys(ranks, 0)
    ops = list(KERNEL_OF)
    for number in range(rounds):
        for group in groups:
            for rank in group:
                idle = draw.randint(0, gap_ns // 20) + (idler or {}).get(rank, 0)
                work = draw.randint(gap_ns // 2, gap_ns) + (slower or {}).get(rank, 0)
                world.work[rank].append((now[rank], work))
                now[rank] += work + idle
            left = max(now[rank] for rank in group) + draw.randint(20_000, 60_000)
            op = ops[(number * len(groups) + len(group)) % len(ops)]
            for rank in group:
                end = left + draw.randint(0, jitter_ns)
                world.calls[rank].append(Call(op, group, number, now[rank], end, 0))
                now[rank] = end
    return world


def rows_of(world: World, *, told: bool, hosts: bool = False) -> tuple[dict[str, list[dict[str, Any]]], dict[str, Any]]:
    """Rows of `kernels` and `collectives`, and `meta`.

    told: the source names process groups; hosts: all ranks read one host's clock; groups of a size share a stream
    """
    kernels: list[dict[str, Any]] = []
    collectives: list[dict[str, Any]] = []
    for rank, calls in world.calls.items():
        for start, work in world.work[rank]:
            kernels.append(_kernel(world, rank, "ampere_bf16_s16816gemm_bf16", start, start + work, "7"))
        for number, call in enumerate(calls):
            name = NCCL.format(KERNEL_OF[call.op])
            stream = f"{len(call.group)}0"
            kernels.append(_kernel(world, rank, name, call.arrival, call.end, stream))
            start = world.shown(rank, call.arrival)
            row = {
                "rank": rank,
                "call": number,
                "op": call.op,
                "group": f"g{len(call.group)}",
                "group_ranks": ",".join(map(str, call.group)),
                "backend": "nccl",
                "issue_ns": start,
                "start_ns": start,
                "dur_ns": world.shown(rank, call.end) - start,
                "evidence": "measured",
            }
            collectives.append(row)
    ranks = [{"rank": rank} | ({"host": "one"} if hosts else {}) for rank in world.calls]
    return {"kernels": kernels, "collectives": collectives if told else []}, {"ranks": ranks}


def source_of(world: World, *, told: bool, hosts: bool = False) -> MemorySource:
    """The run as a source."""
    rows, meta = rows_of(world, told=told, hosts=hosts)
    source = MemorySource(meta=meta)
    for table, held in rows.items():
        source.add(table, held)
    return source


def _kernel(world: World, rank: int, name: str, start: int, end: int, stream: str) -> dict[str, Any]:
    shown = world.shown(rank, start)
    return {
        "rank": rank,
        "device": "cuda:0",
        "stream": stream,
        "name": name,
        "start_ns": shown,
        "dur_ns": world.shown(rank, end) - shown,
        "evidence": "measured",
    }
