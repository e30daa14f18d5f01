"""Findings that only a comparison of ranks gives: who is late at collectives, and which group is slow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from moescope.profiler.findings import Aggregates, Severity, duration_text, findings, ranked, straggler
from moescope.profiler.ranks.across import Across
from moescope.profiler.ranks.lateness import CAUSES, Cause
from moescope.profiler.snapshot import Finding

LOSS_SHARE: Final = 0.01
"""Of the ranks' mean time: what a late rank must cost to be told."""

COMPUTE: Final = ("compute", "tokens", "clock")
"""Causes that show as a longer time with compute."""

_ADVICE: Final[dict[Cause | None, str]] = {
    "compute": "compare its kernels with another rank's: its share of the work, what else runs on its device and host",
    "tokens": "even out the ranks' tokens: replicate or move hot experts (EPLB), or strengthen the router's balancing",
    "clock": "look for a power or thermal limit of its device (nvidia-smi -q -d PERFORMANCE), and lock clocks",
    "launch": "look what its host does before these collectives: data loading, synchronisation, a busy core; capture a "
    "graph where it launches many kernels",
    "communication": "look in the timeline which other communication or copy holds it up, and issue that earlier",
    None: "look in the timeline what it does before these collectives and the others do not",
}


def findings_across(found: Across, seen: Aggregates) -> tuple[Finding, ...]:
    """All findings, those of a comparison among them, the gravest first.

    seen: of the same ranks. A rank that arrives last because it computes longer is told once.
    """
    late = list(_late(found, seen))
    slowest = straggler(seen.rank_compute)
    told = bool(late) and slowest is not None and slowest[0] == found.late[0].rank and found.late[0].cause in COMPUTE
    alone = [finding for finding in findings(seen) if not (told and finding.id == "straggler")]
    return ranked([*alone, *late, *_slow(found)])


def _late(found: Across, seen: Aggregates) -> Iterator[Finding]:
    each = seen.extent_ns / len(found.world) if found.world else 0
    if not found.late or not each:
        return
    late = found.late[0]
    share = late.lead_ns / each
    if share < LOSS_SHARE:
        return
    why = CAUSES[late.cause] if late.cause else f"why is not known ({late.reason})"
    detail = f"; {late.detail}" if late.detail else ""
    others = [f"rank {one.rank}: last in {one.last}, {duration_text(one.lead_ns)}" for one in found.late[1:4]]
    yield Finding(
        id="late-rank",
        severity=_severity(share, 0.05, 0.02),
        what=f"Rank {late.rank} arrives last in {late.last} of {late.of} collectives: {why}",
        evidence=f"{duration_text(late.lead_ns)} after the next to last rank; the others wait "
        f"{duration_text(late.caused_ns)} in all{detail}; "
        + "".join(f"{text}; " for text in others)
        + f"ends agree within {duration_text(found.clocks.residual_ns or 0)} [derived]",
        advice=_ADVICE[late.cause],
        gain=f"at most {duration_text(late.lead_ns)} of {duration_text(each)} a rank, {share:.1%}, "
        "if it arrives with the next to last rank",
    )


def _slow(found: Across) -> Iterator[Finding]:
    if not found.slow:
        return
    slow = found.slow[0]
    lost = (slow.transfer_ns - slow.usual_ns) * slow.count
    ranks = ", ".join(map(str, slow.ranks[:8])) + (" …" if len(slow.ranks) > 8 else "")
    times = slow.transfer_ns / slow.usual_ns
    took, usual = duration_text(slow.transfer_ns), duration_text(slow.usual_ns)
    yield Finding(
        id="slow-group",
        severity="medium",
        what=f"{slow.op} among ranks {ranks} takes {times:.1f} times as long as in other groups",
        evidence=f"median transfer {took} against {usual}, the median of {slow.groups} groups that move {slow.moved} "
        f"bytes a rank; {slow.count} collectives; {len(found.slow)} such cases [derived]",
        advice="check the links between these ranks: errors, speed (ibstat, nvidia-smi nvlink -s), the switch path",
        gain=f"at most {duration_text(lost)}, if it transfers as fast as the median group",
    )


def _severity(value: float, high: float, medium: float) -> Severity:
    return "high" if value >= high else "medium" if value >= medium else "low"
