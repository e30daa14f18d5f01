"""What costs time, with its evidence, what to try, and at most how much that can bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from moescope.profiler.advice import advice, why
from moescope.profiler.findings_devices import (
    casts,
    clock_falls,
    clock_held,
    decode_memory,
    exposed_operators,
    layout,
    many_units,
    short_gaps,
)
from moescope.profiler.gains import bounds_json, duration_text, gain
from moescope.profiler.snapshot import (
    CollectiveRow,
    ExpertRow,
    Finding,
    KernelRow,
    PhaseRow,
    QuantisationRow,
    Shares,
    View,
    severity_of,
)
from moescope.profiler.steps import Steps

if TYPE_CHECKING:
    from moescope.profiler.source import Source

EXPOSED_SHARE: Final = 0.01
IDLE_SHARE: Final = 0.10
UNKNOWN_SHARE: Final = 0.01
UNBALANCED: Final = 1.5
STRAGGLER_SHARE: Final = 0.02
WHOLE: Final = 0.9
"""Share of a rank's time that is recorded, from which on it is taken for all of it rather than for windows."""
LOW_COVERAGE: Final = 0.10
MOSTLY: Final = 0.5
SHORT_KERNEL_NS: Final = 5_000


@dataclass(frozen=True, slots=True)
class KernelTime:
    """All kernels of one name: what is left of a `KernelRow` when ranks are merged."""

    name: str
    operator: str
    kind: str
    calls: int
    total_ns: int


@dataclass(frozen=True, slots=True)
class CallCount:
    """All calls of one collective on one group: what is left of a `CollectiveRow` when ranks are merged."""

    op: str
    group: str
    calls: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class Aggregates:
    """What the findings are drawn from, all over one window.

    shares: summed over devices, unscaled; step_ns: mean step, None where no step is known or they are not alike;
    rank_compute: how long each rank computes, over the mean time that ranks were looked at; worst_exposed_ns: start of
    the longest exposed stretch; stage: what advice is for, empty where it has no name;
    recorded_ns, extent_ns: what `coverage` is the quotient of; devices: entries of the answer's `ranks`, over the whole
    recording, none while it is live; waiting: share of the time in collectives that ranks wait for the last one, None
    where it is not told from transfer
    """

    shares: Shares
    step_ns: float | None
    phases: tuple[PhaseRow, ...]
    kernels: tuple[KernelRow | KernelTime, ...]
    collectives: tuple[CollectiveRow | CallCount, ...]
    experts: tuple[ExpertRow, ...]
    rank_tokens: tuple[int, ...]
    quantisation: tuple[QuantisationRow, ...]
    rank_compute: dict[int, float]
    coverage: float
    dropped: int
    finished: bool
    short_kernels: int
    worst_exposed_ns: int | None
    stage: str = ""
    steps: Steps = field(default=Steps())
    recorded_ns: int = 0
    extent_ns: int = 0
    devices: tuple[dict[str, Any], ...] = ()
    waiting: float | None = None


def aggregates_of(source: Source) -> Aggregates:
    """Aggregates of a source over its steps, so that starting up is no loss; over its whole run where it has none."""
    from moescope.profiler.live import LiveFeed

    feed = LiveFeed(source)
    feed.poll()
    return feed.aggregates(View(window=feed.steps_span() or feed.span()))


def findings(source: Source | Aggregates) -> tuple[Finding, ...]:
    """Findings of a source, as `aggregates_of` has it, or of aggregates at hand; the gravest first."""
    aggregates = source if isinstance(source, Aggregates) else aggregates_of(source)
    return ranked([finding for rule in _RULES for finding in rule(aggregates)])


def ranked(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """What is wrong and no matter of time first, then what costs time by how much, then the rest; the gravest first."""
    grave = {"high": 0, "medium": 1, "low": 2}

    def place(finding: Finding) -> tuple[int, float, int]:
        first = 1 if finding.lost is not None else 0 if finding.severity == "high" else 2
        return first, -(finding.lost or 0.0), grave[finding.severity]

    return tuple(sorted(found, key=place))


def as_rows(found: Sequence[Finding]) -> list[dict[str, Any]]:
    """Findings as the `findings` of `summary --json`."""
    return [
        {
            "id": finding.id,
            "severity": finding.severity,
            "what": finding.what,
            "evidence": finding.evidence,
            "why": finding.why,
            "try": finding.advice,
            "gain": finding.gain,
            **_lost(finding),
            **bounds_json(finding.bounds),
        }
        for finding in found
    ]


def _lost(finding: Finding) -> dict[str, Any]:
    if finding.lost is not None:
        return {"lost_share": finding.lost}
    return {"lost_share": None, "lost_share_reason": "how much time it costs is not known"}


def compute_by_rank(seen: dict[int, tuple[int, int, int]]) -> dict[int, float]:
    """How long each rank computes, over the mean time that ranks were looked at.

    A rank that was seen for less time than another, as a trace that begins late, does not compute longer for that.
    Where operators were recorded in windows, what they hold stands for the rest, and the shares alone compare: when a
    rank's first and last window happened to be says nothing.

    seen: of each rank its compute, its recorded time and the time from the first of it to the last, ns
    """
    seen = {rank: times for rank, times in seen.items() if times[1] > 0}
    if any(recorded < WHOLE * extent for _, recorded, extent in seen.values()):
        return {rank: compute / recorded for rank, (compute, recorded, _) in seen.items()}
    mean = sum(extent for _, _, extent in seen.values()) / len(seen) if seen else 0
    return {rank: compute / mean for rank, (compute, _, _) in seen.items() if mean}


def straggler(rank_compute: dict[int, float]) -> tuple[int, float] | None:
    """The rank that computes longest and by how much more than the median rank, as a share of the recorded time.

    None for one rank alone or when the ranks differ by less than 2 % of it.
    """
    if len(rank_compute) < 2:
        return None
    ordered = sorted(rank_compute.values())
    median = ordered[(len(ordered) - 1) // 2]
    rank = max(rank_compute, key=lambda number: rank_compute[number])
    excess = rank_compute[rank] - median
    return (rank, excess) if excess >= STRAGGLER_SHARE else None


def _exposed(seen: Aggregates) -> Iterator[Finding]:
    span, exposed = seen.shares.span_ns, seen.shares.exposed_ns
    if span <= 0 or exposed < EXPOSED_SHARE * span:
        return
    share = exposed / span
    worst = sorted((phase for phase in seen.phases if phase.exposed_ns > 0), key=lambda phase: -phase.exposed_ns)[:3]
    where = f", {worst[0].exposed_ns / exposed:.0%} of it in {worst[0].name}" if worst else ""
    detail = "".join(
        f"; {phase.name}: {_time(phase.exposed_ns)} exposed of {_time(phase.comm_ns)} in {phase.count} ranges"
        for phase in worst
    )
    waiting = late = ""
    if seen.waiting is not None:
        waiting = f"; {seen.waiting:.0%} of the time in collectives is waiting for the last rank"
        late = "first see which rank arrives late, most of it is waiting; " if seen.waiting >= MOSTLY else ""
    communication = seen.shares.overlapped_ns + exposed
    # No more can be hidden than there is compute that hides nothing yet.
    hidden = min(exposed, seen.shares.compute_only_ns)
    condition = "if all of it is hidden" if hidden == exposed else "if all compute that hides nothing ran beside it"
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, hidden / span, condition)
    yield Finding(
        id="exposed-communication",
        severity=severity_of(share, 0.05, 0.02),
        what=f"Communication is exposed for {share:.1%} of the recorded time{where}",
        evidence=f"{_time(exposed)} exposed of {_time(communication)} communication, "
        f"within {_time(span)} recorded over all devices [derived]{detail}{exposed_operators(seen)}{waiting}",
        advice=late + advice("exposed-communication", seen.stage),
        gain=text,
        start_ns=seen.worst_exposed_ns,
        why=why("exposed-communication"),
        lost=share,
        bounds=bounds,
    )


def _idle(seen: Aggregates) -> Iterator[Finding]:
    span, idle = seen.shares.span_ns, seen.shares.idle_ns
    if span <= 0 or idle < IDLE_SHARE * span:
        return
    share = idle / span
    short, gaps = short_gaps(seen)
    kernels = f"; {seen.short_kernels} kernels shorter than 5 µs" if seen.short_kernels else ""
    evidence = f"{_time(idle)} idle of {_time(span)} recorded over all devices [derived]{kernels}{gaps}"
    if short >= MOSTLY:
        text, bounds = gain(seen.shares, seen.step_ns, 0.0, share * short, "if every short gap closes")
        yield Finding(
            id="launch-gaps",
            severity=severity_of(share * short, 0.30, 0.20),
            what=f"The device waits between launches for {share * short:.1%} of the recorded time",
            evidence=evidence,
            advice=advice("launch-gaps", seen.stage),
            gain=text,
            why=why("launch-gaps"),
            lost=share * short,
            bounds=bounds,
        )
        share *= 1 - short
        if share < IDLE_SHARE:
            return
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, share, "if every gap closes")
    yield Finding(
        id="idle",
        severity=severity_of(share, 0.30, 0.20),
        what=f"No kernel runs for {share:.1%} of the recorded time",
        evidence=evidence,
        advice=advice("idle", seen.stage),
        gain=text,
        why=why("idle"),
        lost=share,
        bounds=bounds,
    )


def _straggler(seen: Aggregates) -> Iterator[Finding]:
    found = straggler(seen.rank_compute)
    if found is None:
        return
    rank, excess = found
    next_most = max(share for number, share in seen.rank_compute.items() if number != rank)
    least = min(seen.rank_compute[rank] - next_most, excess)
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, excess, "if it computes as long as the median rank")
    yield Finding(
        id="straggler",
        severity=severity_of(excess, 0.10, 0.05),
        what=f"Rank {rank} computes {excess:.1%} of the recorded time longer than the median rank",
        evidence="compute by rank: "
        + ", ".join(f"{number}: {share:.1%}" for number, share in sorted(seen.rank_compute.items())[:16])
        + f"; {least:.1%} longer than the next rank [derived]",
        advice=advice("straggler", seen.stage),
        gain=text,
        why=why("straggler"),
        lost=excess,
        bounds=bounds,
    )


def _experts(seen: Aggregates) -> Iterator[Finding]:
    uneven: list[tuple[float, ExpertRow]] = []
    for row in seen.experts:
        total = sum(row.tokens)
        if total and len(row.tokens) > 1:
            uneven.append((max(row.tokens) * len(row.tokens) / total, row))
    if not uneven:
        return
    ratio, row = max(uneven, key=lambda pair: pair[0])
    if ratio <= UNBALANCED:
        return
    hottest = row.tokens.index(max(row.tokens))
    above = sum(1 for other, _ in uneven if other > UNBALANCED)
    text, by_rank, bounds, lost = "", "", None, None
    severity = severity_of(ratio, 3.0, 2.0)
    placed = sum(seen.rank_tokens)
    if len(seen.rank_tokens) > 1 and placed:
        heaviest = max(seen.rank_tokens) * len(seen.rank_tokens) / placed
        # What it costs is the wait for the heaviest rank: where ranks are even, a hot expert costs little.
        severity = severity_of(heaviest, 1.5, 1.2)
        by_rank = f"; the heaviest rank gets {heaviest:.2f} times the mean, experts taken as spread in equal runs"
        grouped = sum(kernel.total_ns for kernel in seen.kernels if kernel.operator == "grouped_gemm")
        if grouped and seen.shares.span_ns:
            lost = grouped / seen.shares.span_ns * (1 - 1 / heaviest)
            text, bounds = gain(seen.shares, seen.step_ns, 0.0, lost, "if the ranks' load is even")
    yield Finding(
        id="experts-unbalanced",
        severity=severity,
        what=f"Expert {hottest} of layer {row.layer} gets {ratio:.1f} times the mean tokens",
        evidence=f"{max(row.tokens)} of {sum(row.tokens)} tokens over {len(row.tokens)} experts; "
        f"{above} of {len(uneven)} layers above {UNBALANCED} [derived]{by_rank}",
        advice=advice("experts-unbalanced", seen.stage),
        gain=text,
        why=why("experts-unbalanced"),
        lost=lost,
        bounds=bounds,
    )


def _unfinished(seen: Aggregates) -> Iterator[Finding]:
    rows = [row for row in seen.collectives if row.unfinished]
    if not rows or not seen.finished:
        return
    yield Finding(
        id="collectives-unfinished",
        severity="high",
        what=f"{sum(row.unfinished for row in rows)} collective calls never completed",
        evidence=", ".join(f"{row.op} on {row.group}: {row.unfinished} of {row.calls}" for row in rows[:4])
        + " [measured]",
        advice="look which rank did not reach the call: ranks that take another branch, or that died before it",
        gain="",
        why=why("collectives-unfinished"),
    )


def _quantisation(seen: Aggregates) -> Iterator[Finding]:
    for row in seen.quantisation:
        if row.nonfinite:
            yield Finding(
                id="quantisation-nonfinite",
                severity="high",
                what=f"{row.nonfinite} elements of {row.tensor} were not finite before quantisation",
                evidence=f"{row.format}, {row.calls} calls, {row.elements} elements [measured]",
                advice="find the first step in which it happens, and what feeds the tensor",
                gain="",
                why=why("quantisation-nonfinite"),
            )
            break
    clipped = [row for row in seen.quantisation if row.elements and row.saturated > 0.01 * row.elements]
    if clipped:
        row = max(clipped, key=lambda each: each.saturated / each.elements)
        yield Finding(
            id="quantisation-saturated",
            severity="medium",
            what=f"{row.saturated / row.elements:.1%} of {row.tensor} is clamped to the largest value",
            evidence=f"{row.saturated} of {row.elements} elements, {row.format}, {row.calls} calls [measured]",
            advice="scale by the block's own amax, or with smaller blocks",
            gain="",
            why=why("quantisation-saturated"),
        )


def _unknown(seen: Aggregates) -> Iterator[Finding]:
    total = sum(kernel.total_ns for kernel in seen.kernels)
    unknown = [kernel for kernel in seen.kernels if kernel.kind == "unknown"]
    lost = sum(kernel.total_ns for kernel in unknown)
    if not total or lost < UNKNOWN_SHARE * total:
        return
    longest = sorted(unknown, key=lambda kernel: -kernel.total_ns)[:3]
    yield Finding(
        id="unknown-kernels",
        severity=severity_of(lost / total, 0.20, 0.05),
        what=f"{lost / total:.1%} of the kernels' time is in kernels that no rule knows",
        evidence=", ".join(f"{kernel.name}: {_time(kernel.total_ns)}" for kernel in longest) + " [derived]",
        advice="add rules for them in a TOML file; until then they count neither as compute nor as communication",
        gain="",
        why=why("unknown-kernels"),
    )


def _dropped(seen: Aggregates) -> Iterator[Finding]:
    if not seen.dropped:
        return
    yield Finding(
        id="events-dropped",
        severity="medium",
        what=f"{seen.dropped} events were dropped because a queue was full",
        evidence="sum of `dropped` in the log [measured]",
        advice="record less (--collect, --ranks, a smaller --budget) or give the sidecar a free core",
        gain="",
        why=why("events-dropped"),
    )


def _coverage(seen: Aggregates) -> Iterator[Finding]:
    if seen.shares.span_ns <= 0 or seen.coverage >= LOW_COVERAGE:
        return
    yield Finding(
        id="coverage-low",
        severity="low",
        what=f"Only {seen.coverage:.1%} of the time was recorded",
        evidence="recorded windows over the time looked at; shares are those of the windows [derived]",
        advice="record more of it with --budget full, or a few steps in full with --steps A:B",
        gain="",
        why=why("coverage-low"),
    )


_RULES: Final = (
    _unfinished,
    _exposed,
    many_units,
    _straggler,
    _experts,
    _idle,
    casts,
    layout,
    decode_memory,
    clock_falls,
    clock_held,
    _quantisation,
    _unknown,
    _dropped,
    _coverage,
)


def _time(ns: float) -> str:
    return duration_text(ns)
