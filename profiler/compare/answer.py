"""A comparison as JSON: times in µs, shares 0..1, every null with its reason beside it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from moescope.profiler.compare.differences import Comparison, Difference
from moescope.profiler.compare.sides import Measure, Side
from moescope.profiler.compare.thresholds import Judged

NO_SCATTER: Final = "too few steps tell how far it scatters"
NOT_TOLD: Final = "this side does not tell it"


def comparison_json(found: Comparison, judged: Sequence[Judged]) -> dict[str, Any]:
    """The value that `compare --json` prints."""
    why = "; ".join(found.forbidden)
    answer: dict[str, Any] = {
        "schema": 1,
        "a": _side(found.a),
        "b": _side(found.b),
        "comparable": not found.forbidden,
        **({"comparable_reason": why} if why else {}),
        "per": "step" if found.per_step else "source",
        "notes": list(found.notes),
        "figures": [{"name": name} | _row(row, found) for name, row in found.figures.items()],
        **_or("overlap_a", found.a.overlap, found.a.overlap_reason),
        **_or("overlap_b", found.b.overlap, found.b.overlap_reason),
        **_or("overlap_points", found.overlap_points, why or found.a.overlap_reason or found.b.overlap_reason),
        "phases": [{"name": name, "figure": figure} | _row(row, found) for (name, figure), row in found.phases.items()],
        "operators": [
            {"class": operator, "kind": kind} | _row(row, found) for (operator, kind), row in found.operators.items()
        ],
        "thresholds": [_judged(one) for one in judged],
        "evidence": "derived",
    }
    return answer


def _or(key: str, value: Any, reason: str) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def _side(side: Side) -> dict[str, Any]:
    return {
        "source": side.name,
        "ranks": side.ranks,
        "devices": side.devices,
        "hardware": list(side.hardware),
        **_or("stage", side.stage, "neither the run nor an optimizer names it"),
        "steps": side.steps,
        "how": "median over steps" if side.medians else "share of the recorded time",
        "evidence": side.evidence,
        "state": side.state,
        "coverage": side.coverage,
        "dropped_events": side.dropped,
    }


def _row(row: Difference, found: Comparison) -> dict[str, Any]:
    told = row.a.us is not None and row.b.us is not None
    why = "; ".join(found.forbidden) or (found.untimed if told else "one side does not tell it")
    zero = "it takes no time in A"
    shared = "; ".join(found.forbidden) or "one side does not tell it"
    return {
        **_measure("a", row.a),
        **_measure("b", row.b),
        **_or("change_us", row.change_us, why),
        **_or("change_of_a", row.relative, why or zero),
        **_or("points", row.points, shared),
        **_or("noise_us", row.noise_us, why or NO_SCATTER),
        "verdict": row.verdict,
    }


def _measure(letter: str, one: Measure) -> dict[str, Any]:
    told = _or(f"{letter}_us", one.us, NOT_TOLD) | _or(f"{letter}_share", one.share, NOT_TOLD)
    if one.q1_us is not None:
        told |= {f"{letter}_q1_us": one.q1_us, f"{letter}_q3_us": one.q3_us}
    return told


def _judged(one: Judged) -> dict[str, Any]:
    wanted = one.threshold
    value = one.value if one.value not in (float("inf"),) else None
    return {
        "threshold": wanted.text,
        "limit": wanted.amount,
        "unit": {"%": "share", "pp": "points", "us": "us"}[wanted.unit],
        "of": "change" if wanted.change else "b",
        **_or("a", one.a, one.reason or NOT_TOLD),
        **_or("b", one.b, one.reason or NOT_TOLD),
        **_or("value", value, one.reason or "it takes no time in A"),
        **_or("failed", one.failed, one.reason),
        "within_noise": one.within_noise,
    }
