"""What costs time, with its evidence, what to try, and at most how much that can bring."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from moescope.profiler.findings.aggregates import Aggregates
from moescope.profiler.findings.devices import casts, clock_falls, clock_held, decode_memory, layout, many_units
from moescope.profiler.findings.gains import bounds_json
from moescope.profiler.findings.totals import (
    dropped_events,
    exposed,
    idle,
    low_coverage,
    quantisation,
    slowest_rank,
    uneven_experts,
    unfinished,
    unknown_kernels,
)
from moescope.profiler.snapshot import Finding

_RULES: Final = (
    unfinished,
    exposed,
    many_units,
    slowest_rank,
    uneven_experts,
    idle,
    casts,
    layout,
    decode_memory,
    clock_falls,
    clock_held,
    quantisation,
    unknown_kernels,
    dropped_events,
    low_coverage,
)


def findings(seen: Aggregates) -> tuple[Finding, ...]:
    """All that the rules find, the gravest first."""
    return ranked(finding for rule in _RULES for finding in rule(seen))


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
