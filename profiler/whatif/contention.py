"""What communication costs the compute beside it, as recorded: kernels of one kind beside it and alone."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.labels import distinct_rows, labels_in
from moescope.profiler.overlap.intervals import Times, covered_within, length, subtract, union
from moescope.profiler.whatif.change import Factors
from moescope.profiler.whatif.situation import Situation

BESIDE: Final = 0.9
ALONE: Final = 0.1
"""Shares of a kernel's time beside communication, from which on and up to which it counts as one or the other."""
ENOUGH: Final = 8
"""Kernels of a kind that are wanted of each."""


def slowdown(now: Situation) -> float | None:
    """How many times as long compute takes beside communication, at least 1; None where too little tells.

    Kinds are kernels of one name, launch and phase. Of each the medians count, by the time that all of it takes.
    """
    lasts = now.nodes.ends - now.nodes.starts
    counts = now.computes & (lasts > 0)
    beside, alone = counts & (now.beside_comm >= BESIDE), counts & (now.beside_comm <= ALONE)
    if beside.sum() < ENOUGH or alone.sum() < ENOUGH:
        return None
    kinds = _kinds(now)
    number = int(kinds.max()) + 1
    enough = (np.bincount(kinds[beside], minlength=number) >= ENOUGH) & (
        np.bincount(kinds[alone], minlength=number) >= ENOUGH
    )
    if not enough.any():
        return None
    ratios = (
        _medians(kinds[beside], lasts[beside], number)[enough] / _medians(kinds[alone], lasts[alone], number)[enough]
    )
    weights = np.bincount(kinds[counts], lasts[counts], minlength=number)[enough]
    return max(1.0, float(np.average(ratios, weights=weights)))


def beside_more(now: Situation, times: float) -> Factors:
    """[nodes] what compute's time is multiplied by where all that is exposed now comes to lie beside it.

    times: how many times as long compute takes beside communication
    """
    factors = np.ones(len(now.nodes))
    starts, ends = now.nodes.starts, now.nodes.ends
    for _, _, own in now.by_device():
        comm, compute = own[now.is_comm[own]], own[now.computes[own]]
        moves, works = union(starts[comm], ends[comm]), union(starts[compute], ends[compute])
        exposed = length(subtract(moves, works))
        free = length(works) - int(covered_within(moves, *works).sum())
        if free:
            newly = (1 - now.beside_comm[compute]) * min(1.0, exposed / free)
            factors[compute] = 1 + (times - 1) * newly
    return factors


def _kinds(now: Situation) -> NDArray[np.int64]:
    """[nodes] a number for each name, launch and phase."""
    kernels, rows = now.source.table("kernels"), now.nodes.rows
    launch, _ = distinct_rows(kernels.select(["name", "grid", "shapes"]))
    phases = now.source.table("phases")
    names = labels_in(phases.column("name")).codes if phases.num_rows else np.zeros(0, np.int64)
    ids = phases.column("id").fill_null(-1).to_numpy()
    ranks = phases.column("rank").fill_null(0).to_numpy().astype(np.int64)
    span = int(ids.max(initial=0)) + 2
    keys = ranks * span + ids
    order = np.argsort(keys, kind="stable")
    held = kernels.column("phase_id").fill_null(-1).to_numpy()[rows]
    wanted = now.nodes.ranks * span + np.minimum(held, span - 1)
    at = np.minimum(np.searchsorted(keys[order], wanted), max(len(order) - 1, 0))
    phase = np.full(len(rows), -1, np.int64)
    if len(order):
        found = (held >= 0) & (keys[order][at] == wanted)
        phase[found] = names[order][at][found]
    joined = launch[rows] * (int(names.max(initial=0)) + 2) + phase + 1
    kinds: NDArray[np.int64] = np.unique(joined, return_inverse=True)[1].reshape(-1)
    return kinds


def _medians(kinds: NDArray[np.int64], lasts: Times, number: int) -> NDArray[np.float64]:
    """[number] the (lower) median of each kind, 1 where there is none."""
    found = np.ones(number)
    order = np.lexsort((lasts, kinds))
    first = np.searchsorted(kinds[order], np.arange(number))
    count = np.bincount(kinds, minlength=number)
    there = count > 0
    found[there] = lasts[order][(first + (count - 1) // 2)[there]]
    return found
