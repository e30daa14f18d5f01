"""Findings that only a comparison of ranks gives: who is late at collectives, and which group is slow."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from moescope.profiler.findings.advice import advice, why
from moescope.profiler.findings.aggregates import Aggregates, straggler
from moescope.profiler.findings.gains import duration_text, gain
from moescope.profiler.findings.rules import findings, ranked
from moescope.profiler.hardware.table import hardware_named
from moescope.profiler.ranks.across import Across
from moescope.profiler.ranks.lateness import CAUSES, Cause
from moescope.profiler.snapshot import Bounds, Finding, severity_of

LOSS_SHARE: Final = 0.01
"""Of the ranks' mean time: what a late rank must cost to be told."""

IN_TURN: Final = 1.5
"""A rank whose lateness is less than this many times the next one's is not to blame alone."""

EXPOSED: Final = 0.05
FEW_UNITS: Final = 0.1
SLOW_RATE: Final = 0.5
LARGE_BYTES: Final = 4_000_000
"""Bytes of a collective from which on its rate is that of its link, and not of its start."""

SURE: Final = ("tokens", "clock")
"""Causes that more is known of than times, which differ by chance as well."""

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
    wait, moving = sum(op.wait_ns for op in found.ops), sum(op.moving_ns for op in found.ops)
    if wait + moving:
        seen = replace(seen, waiting=wait / (wait + moving))
    late = list(_late(found, seen))
    slowest = straggler(seen.rank_compute)
    told = (
        any(one.id == "late-rank" for one in late)
        and slowest is not None
        and slowest[0] == found.late[0].rank
        and found.late[0].cause in COMPUTE
    )
    alone = [finding for finding in findings(seen) if not (told and finding.id == "straggler")]
    return ranked([*alone, *late, *_slow(found, seen), *_few_units(found, seen)])


def _late(found: Across, seen: Aggregates) -> Iterator[Finding]:
    each = _extent(found)
    if not found.late or not each:
        return
    late = found.late[0]
    share = min(late.lead_ns / each, 1.0)
    if share < LOSS_SHARE:
        return
    others = [f"rank {one.rank}: last in {one.last}, {duration_text(one.lead_ns)}" for one in found.late[1:4]]
    evidence = (
        f"{duration_text(late.lead_ns)} after the next to last rank; the others wait "
        f"{duration_text(late.caused_ns)} in all{f'; {late.detail}' if late.detail else ''}; "
        + "".join(f"{text}; " for text in others)
        + f"ends agree within {duration_text(found.clocks.residual_ns or 0)} [derived]"
    )
    alone = late.cause in SURE or len(found.late) < 2 or late.lead_ns >= IN_TURN * found.late[1].lead_ns
    if not alone:
        yield _in_turn(found, seen, evidence, each)
        return
    reason = CAUSES[late.cause] if late.cause else f"why is not known ({late.reason})"
    text = f"at most {duration_text(late.lead_ns)} of {duration_text(each)} a rank, {share:.1%}, "
    yield Finding(
        id="late-rank",
        severity=severity_of(share),
        what=f"Rank {late.rank} arrives last in {late.last} of {late.of} collectives: {reason}",
        evidence=evidence,
        advice=_ADVICE[late.cause],
        gain=text + "if it arrives with the next to last rank",
        why=why("late-rank"),
        lost=share,
        bounds=Bounds(0.0, share, 0.0, late.lead_ns, "rank"),
    )


def _in_turn(found: Across, seen: Aggregates, evidence: str, each: float) -> Finding:
    """Ranks that are last by turns, and about as long: no one of them is to blame."""
    share = min(sum(late.lead_ns for late in found.late) / each, 1.0)
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, share, "if all ranks arrive together")
    late = found.late[0]
    return Finding(
        id="ranks-in-turn",
        severity=severity_of(share),
        what=f"Ranks take turns at arriving last: rank {late.rank} in {late.last} of {late.of} collectives, "
        f"rank {found.late[1].rank} in {found.late[1].last}",
        evidence=evidence,
        advice="look for what comes and goes on their hosts: ranks that share cores, other processes, data "
        "loading; pin "
        "processes to cores, and where load differs by batch even it out",
        gain=text,
        why=why("ranks-in-turn"),
        lost=share,
        bounds=bounds,
    )


def _extent(found: Across) -> float:
    """Mean time between a rank's first call and the end of its last, ns: what its lateness is a share of."""
    extents = [int(calls.ends.max() - calls.starts.min()) for calls in found.world.values() if calls.ends.max() >= 0]
    return sum(extents) / len(extents) if extents else 0.0


def _few_units(found: Across, seen: Aggregates) -> Iterator[Finding]:
    """Exposed communication that holds few units and moves far less than any link of the device can."""
    span = seen.shares.span_ns
    if span <= 0 or seen.shares.exposed_ns < EXPOSED * span:
        return
    own = [one for one in seen.devices if one["units"]["kind"] == "sm" and one["units"]["comm_typical"]]
    known = [one for one in own if one["units"]["total"] and one["hardware"]]
    op = max((op for op in found.ops if op.moved_ns), key=lambda op: op.moving_ns, default=None)
    if not known or op is None or op.moved < LARGE_BYTES * op.collectives or op.wait_ns > op.moving_ns:
        return
    most = max(known, key=lambda one: one["units"]["comm_typical"] / one["units"]["total"])
    units, device = most["units"], hardware_named(most["hardware"])
    links = device.links if device is not None else {}
    if units["comm_typical"] > FEW_UNITS * units["total"] or not links:
        return
    name, slowest = min(((name, peak.value) for name, peak in links.items()), key=lambda pair: pair[1])
    rate = op.moved / op.moved_ns * 1e9
    if rate >= SLOW_RATE * slowest:
        return
    high = (
        min(seen.shares.exposed_ns * (1 - rate / slowest), seen.shares.compute_only_ns + seen.shares.exposed_ns) / span
    )
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, high, f"if it moves as much as its {name} can")
    yield Finding(
        id="comm-units-few",
        severity=severity_of(high),
        what=f"{op.op} holds {units['comm_typical']} of {units['total']} SMs and moves {rate / 1e9:.3g} GB/s",
        evidence=f"under half of the {slowest / 1e9:.3g} GB/s of its {name}, the slowest link of {most['hardware']} "
        f"[modelled]; {op.moved / op.collectives / 1e6:.3g} MB a collective over {op.collectives} collectives "
        f"[derived], "
        f"SMs [{units['evidence']}]",
        advice=advice("comm-units-few", seen.stage),
        gain=text,
        why=why("comm-units-few"),
        lost=high,
        bounds=bounds,
    )


def _slow(found: Across, seen: Aggregates) -> Iterator[Finding]:
    if not found.slow:
        return
    slow = found.slow[0]
    lost = (slow.transfer_ns - slow.usual_ns) * slow.count
    ranks = ", ".join(map(str, slow.ranks[:8])) + (" …" if len(slow.ranks) > 8 else "")
    times = slow.transfer_ns / slow.usual_ns
    each = _extent(found)
    share = min(lost / each, 1.0) if each else None
    took, usual = duration_text(slow.transfer_ns), duration_text(slow.usual_ns)
    yield Finding(
        id="slow-group",
        severity="medium" if share is None else severity_of(share),
        what=f"{slow.op} among ranks {ranks} takes {times:.1f} times as long as in other groups",
        evidence=f"median transfer {took} against {usual}, the median of {slow.groups} groups that move {slow.moved} "
        f"bytes a rank; {slow.count} collectives; {len(found.slow)} such cases [derived]",
        advice="check the links between these ranks: errors, speed (ibstat, nvidia-smi nvlink -s), the switch path",
        gain=f"at most {duration_text(lost)}, if it transfers as fast as the median group",
        why=why("slow-group"),
        lost=share,
        bounds=Bounds(0.0, share, 0.0, lost, "rank") if share is not None else None,
    )
