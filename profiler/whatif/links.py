"""Faster links: all of them by a factor, or the slow hop at the fast one's rate (arXiv 2412.19437, section 3.5.1)."""

from __future__ import annotations

import numpy as np

from moescope.profiler.whatif.change import Change, Scenario
from moescope.profiler.whatif.hiding import NO_COMM
from moescope.profiler.whatif.nodes import NOBODY
from moescope.profiler.whatif.situation import Situation


def faster_link(now: Situation, factor: float) -> Scenario:
    """Links with `factor` times the rate and as much less latency."""
    identity, name = f"link-x{factor:g}", f"links {factor:g} times as fast"
    if not now.is_comm.any():
        return Scenario(identity, name, None, NO_COMM)
    wired = now.nodes.exchange != NOBODY
    moving = wired if wired.any() else now.is_comm
    factors = np.where(moving, 1 / factor, 1.0)
    assumed = (
        "the emulated wire's time changes by the factor, and that of the exchange beneath it not at all"
        if wired.any()
        else "communication changes by the factor where the link bounds it, not at all where something else does; "
        "between: the root of it"
    )
    root = factors if wired.any() else np.sqrt(factors)
    least = factors if wired.any() else now.ones
    known = "waiting for other ranks is told from transfer where collectives are matched, else it counts as transfer"
    low, high = (least, factors) if factor >= 1 else (factors, least)
    return Scenario(identity, name, Change(low, root, high, (assumed, known), {"link_factor": factor}))
