"""What is kept of a rank once its tables are gone, and how parts merge: in any order and grouping, to the same whole.

What the answer lists by rank is kept by rank; what it only sums is summed here, in integers, so that merging is exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

import numpy as np

from moescope.profiler.findings.aggregates import Aggregates, CallCount, KernelTime, compute_by_rank
from moescope.profiler.growing.columns import NULL
from moescope.profiler.hardware.samples import HostUse
from moescope.profiler.live.figures import total_shares
from moescope.profiler.live.rows import rank_tokens
from moescope.profiler.ranks.calls import Calls
from moescope.profiler.snapshot import ExpertRow, PhaseRow, QuantisationRow, Shares
from moescope.profiler.steps.amounts import StepAmounts
from moescope.profiler.steps.durations import Steps, steps_from

if TYPE_CHECKING:
    import pyarrow as pa

Key: TypeAlias = tuple[int, int]
"""Where a rank comes from: the place of its file among those given, and its number in there."""

LOG_LINES: Final = 50
_NOTHING: Final = Shares(0, 0, 0, 0, 0, 0)
_T = TypeVar("_T", bound=tuple[int, ...])


@dataclass(frozen=True, slots=True)
class StepTime:
    """One step of one rank.

    stage: empty where it is not told; end_ns, dur_ns: None while it goes on
    """

    stage: str
    step: int | None
    end_ns: int | None
    dur_ns: int | None


@dataclass(frozen=True, slots=True)
class RankPart:
    """One rank.

    devices: entries of the answer's `ranks`, one a device; evidence: place in EVIDENCE of the weakest label that
    counts; counted_ns, extent_ns: recorded time, and the time between its first and last window, 0 for a rank without
    windows; amounts: what its steps hold;
    shares, seen_recorded_ns, seen_extent_ns: the same within its steps; calls: its
    communication; host: whose clock its times are read from, empty where that is not known; clock_hz: mean clock of its
    device, None where not sampled
    """

    devices: tuple[dict[str, Any], ...]
    evidence: int
    counted_ns: int
    extent_ns: int
    steps: tuple[StepTime, ...]
    amounts: StepAmounts
    shares: Shares
    seen_recorded_ns: int
    seen_extent_ns: int
    calls: Calls
    host: str
    clock_hz: float | None


@dataclass(frozen=True, slots=True)
class Log:
    """Warnings and errors: how many there were, and the first of those that differ."""

    warnings: int
    lines: tuple[dict[str, Any], ...]


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over ranks that the findings are drawn from; times ns.

    phases: name to (ranges, total, communication, exposed); kernels: (name, operator, kind) to (calls, total);
    calls: (op, group) to (calls, unfinished); traffic: (from, to, hop) to (transfers, bytes); experts: (layer, expert)
    to (tokens,); quantisation: (tensor, format) to its rows
    """

    phases: Mapping[str, tuple[int, int, int, int]] = field(default_factory=dict)
    kernels: Mapping[tuple[str, str, str], tuple[int, int]] = field(default_factory=dict)
    calls: Mapping[tuple[str, str], tuple[int, int]] = field(default_factory=dict)
    traffic: Mapping[tuple[int, int, str], tuple[int, int]] = field(default_factory=dict)
    experts: Mapping[tuple[int, int], tuple[int]] = field(default_factory=dict)
    quantisation: Mapping[tuple[str, str], QuantisationRow] = field(default_factory=dict)
    short_kernels: int = 0
    dropped: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """Any number of ranks of one run.

    logs: by key, those of a file's host under rank HOST; hosts: by key, samples of its hosts' GPUs and links; listed:
    every rank that the source names; told_dropped: what the source itself says it lost; torn: files that end in a torn
    batch
    """

    ranks: Mapping[Key, RankPart] = field(default_factory=dict)
    logs: Mapping[Key, Log] = field(default_factory=dict)
    totals: Totals = field(default_factory=Totals)
    listed: frozenset[Key] = frozenset()
    told_dropped: int = 0
    torn: frozenset[str] = frozenset()
    hosts: Mapping[Key, HostUse] = field(default_factory=dict)


def merge(a: Part, b: Part) -> Part:
    """Both parts' ranks; a rank that is in both is an error of the caller.

    Raises ValueError for such a rank.
    """
    twice = a.ranks.keys() & b.ranks.keys()
    if twice:
        raise ValueError(f"rank {min(twice)} is in both parts")
    return Part(
        ranks={**a.ranks, **b.ranks},
        logs={**a.logs, **b.logs},
        totals=_merge_totals(a.totals, b.totals),
        listed=a.listed | b.listed,
        told_dropped=max(a.told_dropped, b.told_dropped),
        torn=a.torn | b.torn,
        hosts={**a.hosts, **b.hosts},
    )


def merged(parts: Iterable[Part]) -> Part:
    """All parts as one."""
    return reduce(merge, parts, Part())


def numbered(part: Part, ranks: Mapping[int, int]) -> Part:
    """The same ranks under other numbers, and without their logs. ranks: by place, a rank each"""
    return Part(
        ranks={
            (0, ranks[place]): replace(one, devices=tuple(entry | {"rank": ranks[place]} for entry in one.devices))
            for (place, _), one in part.ranks.items()
        },
        totals=part.totals,
        listed=frozenset((0, ranks[place]) for place, _ in part.listed),
        told_dropped=part.told_dropped,
        torn=part.torn,
    )


def _merge_totals(a: Totals, b: Totals) -> Totals:
    return Totals(
        phases=_added(a.phases, b.phases),
        kernels=_added(a.kernels, b.kernels),
        calls=_added(a.calls, b.calls),
        traffic=_added(a.traffic, b.traffic),
        experts=_added(a.experts, b.experts),
        quantisation={
            key: _both(a.quantisation[key], b.quantisation[key])
            if key in a.quantisation and key in b.quantisation
            else a.quantisation.get(key) or b.quantisation[key]
            for key in {**a.quantisation, **b.quantisation}
        },
        short_kernels=a.short_kernels + b.short_kernels,
        dropped=a.dropped + b.dropped,
    )


def _added(a: Mapping[Any, _T], b: Mapping[Any, _T]) -> dict[Any, _T]:
    found = dict(a)
    for key, values in b.items():
        held = found.get(key)
        found[key] = values if held is None else cast(_T, tuple(map(int.__add__, held, values)))
    return found


def _both(a: QuantisationRow, b: QuantisationRow) -> QuantisationRow:
    return QuantisationRow(
        tensor=a.tensor,
        format=a.format,
        calls=a.calls + b.calls,
        amax=_extreme(max, a.amax, b.amax),
        scale_min=_extreme(min, a.scale_min, b.scale_min),
        scale_max=_extreme(max, a.scale_max, b.scale_max),
        saturated=a.saturated + b.saturated,
        flushed=a.flushed + b.flushed,
        nonfinite=a.nonfinite + b.nonfinite,
        elements=a.elements + b.elements,
    )


def _extreme(choose: Any, a: float, b: float) -> float:
    """The greater or smaller; NaN, not known, gives way to the other."""
    known = [value for value in (a, b) if value == value]
    return float(choose(known)) if known else float("nan")


def totals_of(seen: Aggregates, transfers: pa.Table) -> Totals:
    """The summable part of one rank's aggregates; transfers: the table of the rank"""
    kernels: dict[tuple[str, str, str], tuple[int, int]] = {}
    for kernel in seen.kernels:
        key = (kernel.name, kernel.operator, kernel.kind)
        kernels = _added(kernels, {key: (kernel.calls, kernel.total_ns)})
    calls: dict[tuple[str, str], tuple[int, int]] = {}
    for row in seen.collectives:
        calls = _added(calls, {(row.op, row.group): (row.calls, row.unfinished)})
    return Totals(
        phases={row.name: (row.count, row.total_ns, row.comm_ns, row.exposed_ns) for row in seen.phases},
        kernels=kernels,
        calls=calls,
        traffic=_traffic(transfers),
        experts={(row.layer, expert): (tokens,) for row in seen.experts for expert, tokens in enumerate(row.tokens)},
        quantisation={(row.tensor, row.format): row for row in seen.quantisation},
        short_kernels=seen.short_kernels,
        dropped=seen.dropped,
    )


def step_times(steps: pa.Table) -> tuple[StepTime, ...]:
    """One rank's rows of `steps`."""
    return tuple(
        StepTime(
            stage=row["stage"] or "",
            step=row["step"],
            end_ns=None if row["dur_ns"] is None else row["start_ns"] + row["dur_ns"],
            dur_ns=row["dur_ns"],
        )
        for row in steps.select(["stage", "step", "start_ns", "dur_ns"]).to_pylist()
    )


def aggregates(part: Part, *, finished: bool) -> Aggregates:
    """What the findings of all ranks are drawn from; each rank's figures are of its own steps."""
    totals, ranks = part.totals, [part.ranks[key] for key in sorted(part.ranks)]
    experts = expert_rows(totals.experts)
    steps = steps_of(part)
    whole = sum(rank.seen_extent_ns for rank in ranks)
    return Aggregates(
        shares=total_shares([rank.shares for rank in ranks] or [_NOTHING]),
        step_ns=None if steps.among else steps.mean_ns,
        phases=tuple(
            sorted(
                (PhaseRow(name, *values) for name, values in totals.phases.items()),
                key=lambda row: (-row.exposed_ns, -row.total_ns, row.name),
            )
        ),
        kernels=tuple(
            sorted(
                (KernelTime(*key, *values) for key, values in totals.kernels.items()),
                key=lambda row: (-row.total_ns, row.name, row.kind),
            )
        ),
        collectives=tuple(CallCount(*key, *values) for key, values in sorted(totals.calls.items())),
        experts=experts,
        rank_tokens=rank_tokens(experts, len(part.listed)),
        quantisation=tuple(
            sorted(
                totals.quantisation.values(), key=lambda row: (-row.saturated - row.nonfinite, row.tensor, row.format)
            )
        ),
        rank_compute=_rank_compute(part, steps.mean_ns),
        coverage=sum(rank.seen_recorded_ns for rank in ranks) / whole if whole else 0.0,
        dropped=totals.dropped,
        finished=finished,
        short_kernels=totals.short_kernels,
        worst_exposed_ns=None,
        recorded_ns=sum(rank.seen_recorded_ns for rank in ranks),
        extent_ns=whole,
        devices=tuple(device for rank in ranks for device in rank.devices),
        stage=steps.stage,
        steps=steps,
    )


def _traffic(transfers: pa.Table) -> dict[tuple[int, int, str], tuple[int, int]]:
    if not transfers.num_rows:
        return {}
    known = transfers.select(["src", "dst", "hop", "bytes"]).drop_null()
    summed = known.group_by(["src", "dst", "hop"]).aggregate([("bytes", "count"), ("bytes", "sum")]).to_pylist()
    return {(row["src"], row["dst"], row["hop"]): (row["bytes_count"], row["bytes_sum"]) for row in summed}


def expert_rows(tokens: Mapping[tuple[int, int], tuple[int]]) -> tuple[ExpertRow, ...]:
    """Tokens by layer and expert, from `Totals.experts`."""
    size = max((expert for _, expert in tokens), default=-1) + 1
    layers = sorted({layer for layer, _ in tokens})
    return tuple(ExpertRow(layer, tuple(tokens.get((layer, e), (0,))[0] for e in range(size))) for layer in layers)


def steps_of(part: Part) -> Steps:
    """The steps of all ranks, as `durations.steps_in` has them: each takes what its median rank takes."""
    rows = [row for key in sorted(part.ranks) for row in part.ranks[key].steps]
    rows = [row for row in rows if row.dur_ns is not None and row.end_ns is not None]
    stages = sorted({row.stage for row in rows})
    number = {stage: at for at, stage in enumerate(stages)}
    durations = np.array([row.dur_ns for row in rows], np.int64)
    return steps_from(
        np.array([number[row.stage] for row in rows], np.int64),
        np.array([NULL if row.step is None else row.step for row in rows], np.int64),
        np.array([row.end_ns for row in rows], np.int64) - durations,
        durations,
        stages.__getitem__,
    )


def _rank_compute(part: Part, step_ns: float | None) -> dict[int, float]:
    """How long each rank computes, as `live` has it."""
    seen = {key[1]: rank for key, rank in sorted(part.ranks.items())}
    return compute_by_rank(
        {
            number: (
                rank.shares.compute_only_ns + rank.shares.overlapped_ns,
                rank.shares.span_ns,
                rank.seen_extent_ns,
            )
            for number, rank in seen.items()
        },
        step_ns,
    )
