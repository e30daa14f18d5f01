"""The one sentence over every screen: the largest loss first, then two figures that frame it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from moescope.profiler.report.amounts import share_text
from moescope.profiler.snapshot import Engine, Figure, HeadlinePart, Shares, Units

HBM_BOUND: Final = 0.6
"""From this share of the memory's bandwidth on, decoding is called memory-bound."""

NAMED_LOSS: Final = 0.01
"""A loss under one percent does not lead the sentence; then the share of compute does."""

NO_ERRORS: Final[Mapping[str, float]] = {}


def headline(
    shares: Shares,
    stage: str,
    units: Units | None,
    matrix_use: Figure,
    memory_use: Figure,
    straggler: tuple[int, float] | None,
    per_step: bool,
    errors: Mapping[str, float] = NO_ERRORS,
) -> tuple[HeadlinePart, ...]:
    """The sentence as parts, separators among them.

    matrix_use, memory_use: shares of peak, 0..1; straggler: rank and how much longer it computes than the median, as a
    share of the span; per_step: whether shares are those of steps; errors: how far those of the exposed, the idle and
    the compute time may be from what they are over all steps, 0 where that is not known
    """
    span = shares.span_ns
    if span <= 0:
        return (HeadlinePart("Nothing recorded in this window yet"),)
    of = "of step" if per_step else "of recorded time"

    def said(share: float, name: str) -> str:
        return share_text(share, errors.get(name, 0.0))

    exposed, idle = shares.exposed_ns / span, shares.idle_ns / span
    losses = [
        (exposed, f"Exposed communication {said(exposed, 'exposed')} {of}", "exposed"),
        (idle, f"Idle {said(idle, 'idle')} {of}", "idle"),
    ]
    if straggler is not None:
        losses.append((straggler[1], f"Rank {straggler[0]} computes {straggler[1]:.1%} {of} longer", "straggler"))
    memory = memory_use.value
    if stage == "decode" and memory is not None and memory >= HBM_BOUND:
        losses.append((memory, f"Decode is memory-bound at {memory:.0%} of peak", "memory"))
    lost, text, loss = max(losses, key=lambda candidate: candidate[0])
    if lost < NAMED_LOSS:
        compute = (shares.compute_only_ns + shares.overlapped_ns) / span
        text, loss = f"Compute {said(compute, 'compute')} {of}", "none"
    frames = []
    if loss != "exposed":
        frames.append(f"exposed comm {said(exposed, 'exposed')}")
    frames.append(_units(units))
    frames.append(_matrix(matrix_use))
    parts = [HeadlinePart(text, "text" if loss == "none" else "loss")]
    for frame in frames[:2]:
        parts += [HeadlinePart(" · "), HeadlinePart(frame, "figure")]
    return tuple(parts)


def _units(units: Units | None) -> str:
    name = "SMs" if units is None or units.kind == "sm" else "cores"
    if units is None or units.comm_typical.value is None:
        reason = units.comm_typical.reason if units is not None else "no device"
        return f"comm {name} – ({reason or 'not recorded'})"
    typical = units.comm_typical.value
    shown = f"{typical:.0f}" if typical == round(typical) else f"{typical:.1f}"
    return f"comm {name} {shown}/{units.total}" if units.total else f"comm {name} {shown}"


def _matrix(use: Figure) -> str:
    if use.value is None:
        return f"matrix units – ({use.reason or 'not recorded'})"
    return f"matrix units {use.value:.0%} of peak"


def memory_figure(engines: tuple[Engine, ...]) -> Figure:
    """The share of the memory bandwidth in use, from the engines."""
    return next((e.share for e in engines if e.name in ("HBM", "DRAM")), Figure(None, reason="no counter of it"))
