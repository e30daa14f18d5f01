"""`moescope whatif --json`: the projections as JSON-ready values, times in µs, every null with its reason beside it."""

from __future__ import annotations

from typing import Any, Final

from moescope.profiler.whatif.project import Figure, Projected, Projection

METHOD: Final = (
    "the recorded dependencies of every rank are re-run with changed durations: the order on streams and threads, "
    "waits between them as the trace shows them, and collectives that ranks leave together"
)
BOUNDS: Final = (
    "low and high: the fewest and the most dependencies that a trace leaves possible, a host that waits for its device "
    "and one that does not, and the least and the most that a change may bring"
)
NO_STEP: Final = "no step of the CPU backend lies wholly in a recorded stretch"


def told(found: Projected, name: str) -> dict[str, Any]:
    """The answer. name: of the source"""
    nodes = found.nodes
    ranks = sorted({lane.rank for lane in nodes.lanes})
    on_cpu = all(lane.on_cpu for lane in nodes.lanes)
    peers = nodes.reason and f"{nodes.reason}: waiting for other ranks is taken for transfer"
    return {
        "schema": 1,
        "source": name,
        "evidence": "modelled",
        "model": {
            "method": METHOD,
            "bounds": BOUNDS,
            "replay_error_us": _us(found.replay_error_ns),
            "waits": found.waits,
            "late_kernels": found.late,
            # Time in which nothing ran and that no recorded dependency explains: the host was late.
            **_or_reason("late_us", None if on_cpu else _us(found.late_ns), "threads have gaps of their own"),
            **_or_reason("collectives", len(nodes.meetings) or None, peers or "none was matched"),
            "clock_error_us": _us(round(nodes.clock_error_ns)),
        },
        "recorded": {
            "ranks": ranks,
            "span_us": _us(found.span_ns),
            "stretches": len({lane.segment for lane in nodes.lanes}),
            "kernels": len(nodes),
            "kernels_left_out": nodes.left_out,
            # Where windows hold whole steps, those alone are re-run.
            "whole_steps": nodes.whole_steps,
            **_or_reason("step_us", None if found.step_ns is None else _us(found.step_ns), NO_STEP),
            **_or_reason("step_spread", _spread(found), NO_STEP if found.step_ns is None else "fewer than four steps"),
            "evidence": "measured",
        },
        "scenarios": [_scenario(one, found) for one in found.projections]
        + [{"id": one.id, "what": one.what, "projected": None, "projected_reason": one.reason} for one in found.untold],
        **_together(found),
    }


def _together(found: Projected) -> dict[str, Any]:
    if found.together is None:
        return {"together": None, "together_reason": "fewer than two scenarios that could be had at once are projected"}
    return {"together": {"of": list(found.joined), **_scenario(found.together, found)}}


def _scenario(one: Projection, found: Projected) -> dict[str, Any]:
    change = one.scenario.change
    return {
        "id": one.scenario.id,
        "what": one.scenario.what,
        "parameters": dict(change.parameters) if change is not None else {},
        "assumed": list(change.assumed) if change is not None else [],
        "kernels": one.kernels,
        "kernels_us": _us(one.kernels_ns),
        "projected": {
            "span_us": _figure(one.span),
            "gain_us": _figure(one.gain),
            "gain_share": {
                key: round(getattr(one.gain, key) / found.span_ns, 6) if found.span_ns else 0.0
                for key in ("estimate", "low", "high")
            },
            **_or_reason("step_us", None if one.step_ns is None else _us(one.step_ns), _no_step(found)),
        },
        "evidence": "modelled",
    }


def _spread(found: Projected) -> dict[str, float] | None:
    if found.step_spread is None:
        return None
    low, high = found.step_spread
    return {"lower_quartile": round(low, 6), "upper_quartile": round(high, 6)}


def _no_step(found: Projected) -> str:
    return NO_STEP if found.step_ns is None else "steps run into one another where nothing waits for communication"


def _figure(figure: Figure) -> dict[str, float | int]:
    return {key: _us(getattr(figure, key)) for key in ("estimate", "low", "high")}


def _or_reason(key: str, value: Any, reason: str) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def _us(ns: float) -> float | int:
    whole = round(ns)
    return whole // 1000 if whole % 1000 == 0 else whole / 1000
