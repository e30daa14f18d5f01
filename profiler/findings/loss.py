"""A finding whose loss is a share of the time, all of which its change can bring at most."""

from __future__ import annotations

from moescope.profiler.findings.advice import advice, why
from moescope.profiler.findings.aggregates import Aggregates
from moescope.profiler.findings.gains import gain
from moescope.profiler.snapshot import Finding, severity_of


def loss(seen: Aggregates, name: str, share: float, *, what: str, evidence: str, condition: str) -> Finding:
    """The finding `name`, with the advice and the reason that stand under it.

    share: of the time looked at, 0..1; condition: what must be so for all of it to be gained
    """
    text, bounds = gain(seen.shares, seen.step_ns, 0.0, share, condition)
    return Finding(
        id=name,
        severity=severity_of(share),
        what=what,
        evidence=evidence,
        advice=advice(name, seen.stage),
        gain=text,
        why=why(name),
        lost=share,
        bounds=bounds,
    )
