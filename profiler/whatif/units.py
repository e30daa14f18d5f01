"""Communication on fewer or more SMs, and on none (arXiv 2412.19437, section 3.5.1).

What an SM is worth is not in a trace, so two assumptions bound it: communication that its SMs bound takes `n / N` times
as long on N of n SMs, and one that the link bounds takes as long as it did. A computing kernel that fills what is left
of the device takes, while communication runs beside it, `(S - n) / (S - N)` times as long, or as long as it did.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from moescope.profiler.whatif.change import Change, Factors, Scenario
from moescope.profiler.whatif.hiding import NO_COMM
from moescope.profiler.whatif.situation import Situation

NO_UNITS: Final = (
    "the SMs that communication holds are not known: that takes launch shapes and the device's number of SMs, "
    "which the source does not tell"
)
ON_CPU: Final = "communication runs on threads of the host, which hold no SMs"


def off_the_units(now: Situation) -> Scenario:
    """Communication moves to engines of its own and leaves its SMs to compute."""
    name = "communication off the SMs"
    held = _held(now)
    if isinstance(held, str):
        return Scenario("comm-off-sms", name, None, held)
    factors = _compute(now, held, np.zeros(len(now.nodes)))
    if not (factors != 1).any():
        reason = "no computing kernel that fills the device runs beside communication, so none would gain SMs"
        return Scenario("comm-off-sms", name, None, reason)
    change = Change(
        now.ones,
        (1 + factors) / 2,
        factors,
        (
            "communication takes as long as it did",
            "kernels that fill the device get the freed SMs while they run beside communication: they gain in "
            "proportion (most), half of that (between), nothing (least); a grid that leaves SMs free by itself gains "
            "nothing here",
        ),
        {"comm_sms": _typical(held)},
    )
    return Scenario("comm-off-sms", name, change)


def on_units(now: Situation, wanted: int) -> Scenario:
    """Communication on so many SMs, on each device the same."""
    identity, name = f"comm-sms-{wanted}", f"communication on {wanted} SMs"
    held = _held(now)
    if isinstance(held, str):
        return Scenario(identity, name, None, held)
    total = now.units[2]
    if wanted >= int(total[now.is_comm].min()):
        reason = f"the device has {int(total[now.is_comm].min())} SMs, which leaves none to compute on"
        return Scenario(identity, name, None, reason)
    known = held > 0
    ratio = np.where(known, held / wanted, 1.0)
    compute = _compute(now, held, np.where(known | now.computes, wanted, 0))
    # Fewer SMs at worst slow communication and give compute nothing; more at worst slow compute and bring nothing.
    slower, faster = np.maximum(ratio, 1), np.minimum(ratio, 1)
    change = Change(
        np.where(known, slower, np.maximum(compute, 1)),
        np.where(known, np.sqrt(ratio), (1 + compute) / 2),
        np.where(known, faster, np.minimum(compute, 1)),
        (
            "communication takes (SMs held / N) times as long where SMs bound it, as long as it did where the link "
            "does; between: the root of that",
            "kernels that fill the device while they run beside communication gain or lose SMs: in proportion, half "
            "of that, or not at all",
        ),
        {"comm_sms": wanted, "comm_sms_now": _typical(held)},
    )
    return Scenario(identity, name, change)


def _held(now: Situation) -> Factors | str:
    """[nodes] SMs that each communication kernel holds, 0 where not known and for others; or why none is known."""
    if not now.is_comm.any():
        return NO_COMM
    fewest, _, _ = now.units
    held = np.where(now.is_comm, fewest, 0).astype(np.float64)
    if not held.any():
        on_cpu = all(lane.on_cpu for lane in now.nodes.lanes)
        return ON_CPU if on_cpu else NO_UNITS
    return held


def _typical(held: Factors) -> int:
    return int(np.median(held[held > 0]))


def _compute(now: Situation, held: Factors, wanted: Factors) -> Factors:
    """[nodes] what computing kernels' time is multiplied by where they have all SMs that communication leaves.

    held: [nodes] SMs of each communication kernel now; wanted: [nodes] SMs that communication takes then
    """
    _, spread, total = now.units
    found = np.ones(len(now.nodes))
    for _, _, own in now.by_device():
        comm = own[held[own] > 0]
        if not len(comm):
            continue
        lasting = (now.nodes.ends - now.nodes.starts)[comm]
        taken = float(np.average(held[comm], weights=np.maximum(lasting, 1)))
        compute = own[now.computes[own] & (total[own] > 0) & (spread[own] > 0)]
        left = np.maximum(total[compute] - taken, 1)
        then = np.minimum(total[compute] - wanted[compute], spread[compute])
        before = np.minimum(left, spread[compute])
        found[compute] = 1 + now.beside_comm[compute] * (before / np.maximum(then, 1) - 1)
    return found
