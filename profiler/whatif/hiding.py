"""Perfect overlap: nothing but communication waits for communication."""

from __future__ import annotations

from moescope.profiler.whatif.change import Change, Scenario
from moescope.profiler.whatif.contention import beside_more, slowdown
from moescope.profiler.whatif.situation import Situation

AS_LONG = 1.005
"""Times as long, up to which nobody would call it longer."""
NO_COMM = "the source holds no communication kernels, so there is nothing to hide"


def perfect_overlap(now: Situation) -> Scenario:
    """The bound on what any schedule can hide: communication keeps order and length, and no compute waits for it."""
    if not now.is_comm.any():
        return Scenario("perfect-overlap", "perfect overlap", None, NO_COMM)
    times = slowdown(now)
    least = now.ones if times is None else beside_more(now, times)
    if times is None:
        told = "too few kernels of a kind run both beside communication and alone to tell how much it slows compute: "
        told += "here not at all"
    elif times < AS_LONG:
        told = "compute beside communication takes as long as alone, as recorded"
    else:
        told = (
            f"compute that comes to lie beside communication takes {times:.2f} times as long, as what lies beside it "
        )
        told += "now does (least), half as much more (between), or no longer (most)"
    change = Change(
        least,
        (1 + least) / 2,
        now.ones,
        ("no computing kernel waits for communication, which still waits for what it sends and for its peers", told),
        {} if times is None else {"beside_comm": times},
        hidden=True,
    )
    return Scenario("perfect-overlap", "perfect overlap", change)
