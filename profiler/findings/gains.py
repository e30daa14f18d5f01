"""What a change can bring, between two bounds: both hold for the change alone, and gains of several are never added."""

from __future__ import annotations

from typing import Any, Final, Literal

from moescope.profiler.snapshot import Bounds, Shares

PER_STEP: Final[Literal["step"]] = "step"
UNBOUNDED: Final = "nothing recorded bounds it"


def gain(shares: Shares, step_ns: float | None, low: float, high: float, condition: str) -> tuple[str, Bounds]:
    """In words and as bounds.

    low, high: shares of the time looked at, 0..1; step_ns: mean step, None where figures are of all devices' time
    """
    high = min(max(high, 0.0), 1.0)
    low = min(max(low, 0.0), high)
    whole = step_ns if step_ns else float(shares.span_ns)
    bounds = Bounds(low, high, low * whole, high * whole, PER_STEP if step_ns else "source")
    share = f"{high:.1%}" if not low else f"{low:.1%} to {high:.1%}"
    time = (
        duration_text(bounds.high_ns)
        if not low
        else f"{duration_text(bounds.low_ns)} to {duration_text(bounds.high_ns)}"
    )
    per_step = f", {time} a step" if step_ns else ""
    return f"{'' if low else 'at most '}{share} of the time{per_step}, {condition}", bounds


def bounds_json(bounds: Bounds | None) -> dict[str, Any]:
    """`bounds` of a finding, or null with the reason; times µs."""
    if bounds is None:
        return {"bounds": None, "bounds_reason": UNBOUNDED}
    return {
        "bounds": {
            "low_share": bounds.low_share,
            "high_share": bounds.high_share,
            "low_us": bounds.low_ns / 1000,
            "high_us": bounds.high_ns / 1000,
            "per": bounds.per,
        }
    }


def duration_text(ns: float) -> str:
    """A duration for people: three digits and its unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if ns >= size:
            return f"{ns / size:.3g} {unit}" if ns < 1000 * size else f"{ns / size:.0f} {unit}"
    return f"{ns:.0f} ns"
