"""Findings that rest on the totals of a run: exposed communication, idle time, ranks, experts, and what was lost."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moescope.profiler.findings.advice import advice, why
from moescope.profiler.findings.aggregates import Aggregates, straggler
from moescope.profiler.findings.devices import exposed_operators, short_gaps
from moescope.profiler.findings.gains import duration_text, gain
from moescope.profiler.findings.loss import loss
from moescope.profiler.snapshot import ExpertRow, Finding, severity_of

EXPOSED_SHARE: Final = 0.01
IDLE_SHARE: Final = 0.10
UNKNOWN_SHARE: Final = 0.01
UNBALANCED: Final = 1.5
LOW_COVERAGE: Final = 0.10
MOSTLY: Final = 0.5


def exposed(seen: Aggregates) -> Iterator[Finding]:
    """Communication that no compute hides."""
    span, exposed = seen.shares.span_ns, seen.shares.exposed_ns
    if span <= 0 or exposed < EXPOSED_SHARE * span:
        return
    share = exposed / span
    worst = sorted((phase for phase in seen.phases if phase.exposed_ns > 0), key=lambda phase: -phase.exposed_ns)[:3]
    where = f", {worst[0].exposed_ns / exposed:.0%} of it in {worst[0].name}" if worst else ""
    detail = "".join(
        f"; {phase.name}: {duration_text(phase.exposed_ns)} exposed of {duration_text(phase.comm_ns)}"
        + (f" in {phase.count} ranges" if phase.count else "")
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
        severity=severity_of(share),
        what=f"Communication is exposed for {share:.1%} of the recorded time{where}",
        evidence=f"{duration_text(exposed)} exposed of {duration_text(communication)} communication, "
        f"within {duration_text(span)} recorded over all devices [derived]{detail}{exposed_operators(seen)}{waiting}",
        advice=late + advice("exposed-communication", seen.stage),
        gain=text,
        start_ns=seen.worst_exposed_ns,
        why=why("exposed-communication"),
        lost=share,
        bounds=bounds,
    )


def idle(seen: Aggregates) -> Iterator[Finding]:
    """Time without any kernel, gaps between launches told apart."""
    span, idle = seen.shares.span_ns, seen.shares.idle_ns
    if span <= 0 or idle < IDLE_SHARE * span:
        return
    share = idle / span
    short, gaps = short_gaps(seen)
    kernels = f"; {seen.short_kernels} kernels shorter than 5 µs" if seen.short_kernels else ""
    evidence = f"{duration_text(idle)} idle of {duration_text(span)} recorded over all devices [derived]{kernels}{gaps}"
    if short >= MOSTLY:
        yield loss(
            seen,
            "launch-gaps",
            share * short,
            what=f"The device waits between launches for {share * short:.1%} of the recorded time",
            evidence=evidence,
            condition="if every short gap closes",
        )
        share *= 1 - short
        if share < IDLE_SHARE:
            return
    yield loss(
        seen,
        "idle",
        share,
        what=f"No kernel runs for {share:.1%} of the recorded time",
        evidence=evidence,
        condition="if every gap closes",
    )


def slowest_rank(seen: Aggregates) -> Iterator[Finding]:
    """A rank that computes longer than the median rank."""
    found = straggler(seen.rank_compute)
    if found is None or not seen.shares.overlapped_ns + seen.shares.exposed_ns:
        return  # ranks that exchange nothing do not wait for one another
    rank, excess = found
    next_most = max(share for number, share in seen.rank_compute.items() if number != rank)
    least = min(seen.rank_compute[rank] - next_most, excess)
    yield loss(
        seen,
        "straggler",
        excess,
        what=f"Rank {rank} computes {excess:.1%} of the recorded time longer than the median rank",
        evidence="compute by rank: "
        + ", ".join(f"{number}: {share:.1%}" for number, share in sorted(seen.rank_compute.items())[:16])
        + f"; {least:.1%} longer than the next rank [derived]",
        condition="if it computes as long as the median rank",
    )


def uneven_experts(seen: Aggregates) -> Iterator[Finding]:
    """Experts that get far more tokens than the mean."""
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
            severity = severity_of(lost)
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


def unfinished(seen: Aggregates) -> Iterator[Finding]:
    """Collective calls that never completed."""
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


def quantisation(seen: Aggregates) -> Iterator[Finding]:
    """Values that were not finite, or clamped."""
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


def unknown_kernels(seen: Aggregates) -> Iterator[Finding]:
    """Kernels that no rule knows."""
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
        evidence=", ".join(f"{kernel.name}: {duration_text(kernel.total_ns)}" for kernel in longest) + " [derived]",
        advice="add rules for them in a TOML file; until then they count neither as compute nor as communication",
        gain="",
        why=why("unknown-kernels"),
    )


def dropped_events(seen: Aggregates) -> Iterator[Finding]:
    """Events that were lost."""
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


def low_coverage(seen: Aggregates) -> Iterator[Finding]:
    """Little of the time was recorded."""
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
