"""What costs time, with its evidence, what to try, and at most how much that can bring."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from moescope.profiler.advice import advice
from moescope.profiler.snapshot import (
    CollectiveRow,
    ExpertRow,
    Finding,
    KernelRow,
    PhaseRow,
    QuantisationRow,
    Shares,
    View,
)
from moescope.profiler.steps import Steps

if TYPE_CHECKING:
    from moescope.profiler.source import Source

Severity: TypeAlias = Literal["high", "medium", "low"]

EXPOSED_SHARE: Final = 0.01
IDLE_SHARE: Final = 0.10
UNKNOWN_SHARE: Final = 0.01
UNBALANCED: Final = 1.5
STRAGGLER_SHARE: Final = 0.02
LOW_COVERAGE: Final = 0.10
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
    recorded_ns, extent_ns: what `coverage` is the quotient of
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
    """The gravest first, else in the order given."""
    grave = {"high": 0, "medium": 1, "low": 2}
    return tuple(sorted(found, key=lambda finding: grave[finding.severity]))


def as_rows(found: Sequence[Finding]) -> list[dict[str, str]]:
    """Findings as the `findings` of `summary --json`."""
    return [
        {
            "id": finding.id,
            "severity": finding.severity,
            "what": finding.what,
            "evidence": finding.evidence,
            "try": finding.advice,
            "gain": finding.gain,
        }
        for finding in found
    ]


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
    worst = max(seen.phases, key=lambda phase: phase.exposed_ns, default=None)
    where = ""
    detail = ""
    if worst is not None and worst.exposed_ns > 0:
        where = f", {worst.exposed_ns / exposed:.0%} of it in {worst.name}"
        detail = f"; {worst.name}: {_time(worst.exposed_ns)} exposed of {_time(worst.comm_ns)} in {worst.count} ranges"
    communication = seen.shares.overlapped_ns + exposed
    yield Finding(
        id="exposed-communication",
        severity=_severity(share, 0.05, 0.02),
        what=f"Communication is exposed for {share:.1%} of the recorded time{where}",
        evidence=f"{_time(exposed)} exposed of {_time(communication)} communication, "
        f"within {_time(span)} recorded over all devices [derived]{detail}",
        advice=advice("exposed-communication", seen.stage),
        gain=_bound(share, seen, "if all of it is hidden"),
        start_ns=seen.worst_exposed_ns,
    )


def _idle(seen: Aggregates) -> Iterator[Finding]:
    span, idle = seen.shares.span_ns, seen.shares.idle_ns
    if span <= 0 or idle < IDLE_SHARE * span:
        return
    share = idle / span
    short = f"; {seen.short_kernels} kernels shorter than 5 µs" if seen.short_kernels else ""
    yield Finding(
        id="idle",
        severity=_severity(share, 0.30, 0.20),
        what=f"No kernel runs for {share:.1%} of the recorded time",
        evidence=f"{_time(idle)} idle of {_time(span)} recorded over all devices [derived]{short}",
        advice=advice("idle", seen.stage),
        gain=_bound(share, seen, "if every gap closes"),
    )


def _straggler(seen: Aggregates) -> Iterator[Finding]:
    found = straggler(seen.rank_compute)
    if found is None:
        return
    rank, excess = found
    yield Finding(
        id="straggler",
        severity=_severity(excess, 0.10, 0.05),
        what=f"Rank {rank} computes {excess:.1%} of the recorded time longer than the median rank",
        evidence="compute by rank: "
        + ", ".join(f"{number}: {share:.1%}" for number, share in sorted(seen.rank_compute.items())[:16])
        + " [derived]",
        advice=advice("straggler", seen.stage),
        gain=_bound(excess, seen, "if it computes as long as the median rank"),
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
    gain, by_rank = "", ""
    severity = _severity(ratio, 3.0, 2.0)
    placed = sum(seen.rank_tokens)
    if len(seen.rank_tokens) > 1 and placed:
        heaviest = max(seen.rank_tokens) * len(seen.rank_tokens) / placed
        # What it costs is the wait for the heaviest rank: where ranks are even, a hot expert costs little.
        severity = _severity(heaviest, 1.5, 1.2)
        by_rank = f"; the heaviest rank gets {heaviest:.2f} times the mean, experts taken as spread in equal runs"
        grouped = sum(kernel.total_ns for kernel in seen.kernels if kernel.operator == "grouped_gemm")
        if grouped and seen.shares.span_ns:
            gain = _bound(grouped / seen.shares.span_ns * (1 - 1 / heaviest), seen, "if the ranks' load is even")
    yield Finding(
        id="experts-unbalanced",
        severity=severity,
        what=f"Expert {hottest} of layer {row.layer} gets {ratio:.1f} times the mean tokens",
        evidence=f"{max(row.tokens)} of {sum(row.tokens)} tokens over {len(row.tokens)} experts; "
        f"{above} of {len(uneven)} layers above {UNBALANCED} [derived]{by_rank}",
        advice=advice("experts-unbalanced", seen.stage),
        gain=gain,
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
        severity=_severity(lost / total, 0.20, 0.05),
        what=f"{lost / total:.1%} of the kernels' time is in kernels that no rule knows",
        evidence=", ".join(f"{kernel.name}: {_time(kernel.total_ns)}" for kernel in longest) + " [derived]",
        advice="add rules for them in a TOML file; until then they count neither as compute nor as communication",
        gain="",
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
    )


_RULES: Final = (_unfinished, _exposed, _straggler, _experts, _idle, _quantisation, _unknown, _dropped, _coverage)


def _severity(value: float, high: float, medium: float) -> Severity:
    return "high" if value >= high else "medium" if value >= medium else "low"


def _bound(share: float, seen: Aggregates, condition: str) -> str:
    per_step = f", {_time(share * seen.step_ns)} a step" if seen.step_ns else ""
    return f"at most {share:.1%} of the time{per_step}, {condition}"


def duration_text(ns: float) -> str:
    """A duration for people: three digits and its unit."""
    return _time(ns)


def _time(ns: float) -> str:
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"
