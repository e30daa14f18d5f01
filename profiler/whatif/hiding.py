"""Perfect overlap: nothing but communication waits for communication."""

from __future__ import annotations

from moescope.profiler.whatif.change import Change, Scenario
from moescope.profiler.whatif.situation import Situation

NO_COMM = "the source holds no communication kernels, so there is nothing to hide"


def perfect_overlap(now: Situation) -> Scenario:
    """The bound on what any schedule can hide: communication keeps order and length, and no compute waits for it."""
    if not now.is_comm.any():
        return Scenario("perfect-overlap", "perfect overlap", None, NO_COMM)
    change = Change(
        now.ones,
        now.ones,
        now.ones,
        (
            "no computing kernel waits for communication, which still waits for what it sends and for its peers",
            "compute is not slowed by communication that now runs beside it",
        ),
        hidden=True,
    )
    return Scenario("perfect-overlap", "perfect overlap", change)
