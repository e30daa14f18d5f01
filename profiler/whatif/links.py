"""Faster links: all of them by a factor, or the slow hop at the fast one's rate (arXiv 2412.19437, section 3.5.1)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

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
    wires = 1 / factor if wired.any() else 1.0
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
    return Scenario(identity, name, Change(low, root, high, (assumed, known), {"link_factor": factor}, wires=wires))


def one_link_domain(now: Situation) -> Scenario:
    """The slow hop between nodes at the rate of the fast one inside them, where transfers tell hops."""
    identity, what = "one-link-domain", "one link domain: the slow hop at the fast one's rate"
    rates, inter = _hops(now)
    if isinstance(rates, str):
        return Scenario(identity, what, None, rates)
    slow, fast = rates
    if fast <= slow:
        reason = f"the hop between nodes ({slow / 1e6:.3g} MB/s) is no slower than that inside ({fast / 1e6:.3g} MB/s)"
        return Scenario(identity, what, None, reason)
    factors = np.where(inter, slow / fast, 1.0)
    assumed = (
        "transfers of the hop between nodes take as long as their bytes would at the mean rate of that inside nodes; "
        "between: the root of that; least: as long as they did",
    )
    parameters = {"internode_bytes_per_s": round(slow), "intranode_bytes_per_s": round(fast)}
    return Scenario(identity, what, Change(now.ones, np.sqrt(factors), factors, assumed, parameters))


def _hops(now: Situation) -> tuple[tuple[float, float] | str, NDArray[np.bool_]]:
    """Mean rates between and inside nodes, and [nodes] which kernels are of the hop between; or why not known."""
    nodes = now.nodes
    none = np.zeros(len(nodes), np.bool_)
    rows = (
        now.source.table("transfers").select(["rank", "src", "dst", "hop", "bytes", "start_ns", "dur_ns"]).to_pylist()
    )
    hops: dict[tuple[int, int, int], tuple[str, int]] = {}
    for row in rows:
        if row["hop"] in ("internode", "intranode") and row["dur_ns"] and row["src"] != row["dst"]:
            key = (row["rank"], row["start_ns"], row["dur_ns"])
            hops[key] = (row["hop"], hops.get(key, ("", 0))[1] + (row["bytes"] or 0))
    if {hop for hop, _ in hops.values()} != {"internode", "intranode"}:
        return "the source does not tell transfers between nodes from those inside them", none
    table = now.source.table("kernels")
    starts, durations = (table.column(name).to_numpy()[nodes.rows] for name in ("start_ns", "dur_ns"))
    own = np.flatnonzero(now.is_comm)
    found = {"internode": none.copy(), "intranode": none.copy()}
    sizes = {"internode": 0, "intranode": 0}
    for node, rank in zip(own.tolist(), nodes.ranks[own].tolist(), strict=True):
        told = hops.get((rank, int(starts[node]), int(durations[node])))
        if told is not None:
            found[told[0]][node] = True
            sizes[told[0]] += told[1]
    wired = np.flatnonzero(nodes.exchange != NOBODY)
    times = {}
    for hop, held in found.items():
        # Where a wire is emulated it is the link, from the beginning of its exchange.
        wires = wired[held[nodes.exchange[wired]]]
        work = float(now.work[wires].sum() or now.work[held].sum())
        if len(wires):
            sizes[hop] = sum(hops[nodes.ranks[n], int(starts[n]), int(durations[n])][1] for n in nodes.exchange[wires])
            held[:] = False
            held[wires] = True
        times[hop] = work
    if not all(times.values()) or not all(sizes.values()):
        return "no transfer of one of the hops was matched to a kernel that made it", none
    return (sizes["internode"] / times["internode"] * 1e9, sizes["intranode"] / times["intranode"] * 1e9), found[
        "internode"
    ]
