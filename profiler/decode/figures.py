"""Where decode steps spend their time: gaps between kernels, and what bounds the kernels in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.decode.steps import DecodeSteps
from moescope.profiler.labels import Labels, labels_of
from moescope.profiler.overlap.intervals import Intervals, Times, covered_within, intersect, length, subtract, union
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.roofline.answer import DeviceRoofline
from moescope.profiler.roofline.bounds import BOUNDS

GAP_EDGES_NS: Final = (1_000, 2_000, 5_000, 20_000, 100_000)
"""Gaps are counted by size: up to 5 µs is what one launch behind another takes, from 20 µs on the host is slow."""


@dataclass(frozen=True, slots=True)
class Gaps:
    """Stretches of steps in which no kernel runs.

    sizes: [gaps] ns, rising; step_ns: time looked at; graph_ns: time of that inside CUDA graphs; in_graph_ns: time of
    the gaps that lie in there, between kernels that no host launches
    """

    sizes: Times
    step_ns: int
    graph_ns: int
    in_graph_ns: int

    @property
    def total_ns(self) -> int:
        """All of them together."""
        return int(self.sizes.sum())

    def quantile(self, share: float) -> int | None:
        """The smallest that this share of the gaps does not exceed; None without gaps."""
        if not len(self.sizes):
            return None
        return int(self.sizes[min(int(np.ceil(share * len(self.sizes))) - 1, len(self.sizes) - 1)])

    def by_size(self) -> list[tuple[int, int | None, int, int]]:
        """From, up to (None for no limit), how many, and their time, ns."""
        edges = np.array([0, *GAP_EDGES_NS], np.int64)
        at = np.searchsorted(edges, self.sizes, side="right") - 1
        found = []
        for number, low in enumerate(edges.tolist()):
            own = self.sizes[at == number]
            high = GAP_EDGES_NS[number] if number < len(GAP_EDGES_NS) else None
            found.append((low, high, len(own), int(own.sum())))
        return found


@dataclass(frozen=True, slots=True)
class DecodeFigures:
    """Steps that were recorded whole.

    durations: [steps] ns, of all steps; recorded: how many were recorded whole; busy_ns: time with a kernel;
    kernels_per_step: mean; bound_ns: kernel time by bound, "" where not known; classes: kernel time by class, the
    longest first, with what bounds most of it
    """

    durations: Times
    recorded: int
    gaps: Gaps
    busy_ns: int
    kernels_per_step: float
    bound_ns: dict[str, int]
    classes: list[tuple[str, int, str]]


def decode_figures(
    steps: DecodeSteps, kernels: DeviceKernels, swept: Sweep, roofline: DeviceRoofline, graphs: Intervals
) -> DecodeFigures | None:
    """Figures of one device's decode steps; None where none was recorded whole. graphs: time inside CUDA graphs"""
    durations = np.sort(steps.ends - steps.starts)
    whole = covered_within(swept.recorded, steps.starts, steps.ends) == steps.ends - steps.starts
    counted = intersect(union(steps.starts[whole], steps.ends[whole]), swept.recorded)
    if not length(counted):
        return None
    gaps = subtract(counted, swept.busy)
    inside = covered_within(counted, kernels.starts, kernels.ends)
    own = inside > 0
    names = roofline.bounds.names
    by_bound = dict.fromkeys((*BOUNDS, ""), 0)
    by_bound |= {bound: round(ns) for bound, ns in Labels(names.codes[own], names.texts).weights(inside[own])}
    return DecodeFigures(
        durations=durations,
        recorded=int(whole.sum()),
        gaps=Gaps(
            sizes=np.sort(gaps[1] - gaps[0]),
            step_ns=length(counted),
            graph_ns=length(intersect(graphs, counted)),
            in_graph_ns=length(intersect(graphs, gaps)),
        ),
        busy_ns=length(intersect(swept.busy, counted)),
        kernels_per_step=float(own.sum()) / int(whole.sum()),
        bound_ns=by_bound,
        classes=_classes(kernels, inside, own, names),
    )


def _classes(
    kernels: DeviceKernels, inside: Times, own: NDArray[np.bool_], bounds: Labels
) -> list[tuple[str, int, str]]:
    operators = labels_of(kernels.operators[own])
    codes, lasting = bounds.codes[own], inside[own]
    found = []
    for at, operator in enumerate(operators.texts):
        pick = operators.codes == at
        by_bound = dict(Labels(codes[pick], bounds.texts).weights(lasting[pick]))
        most = max(by_bound, key=lambda bound: by_bound[bound], default="")
        total = int(lasting[pick].sum())
        found.append((operator, total, most if 2 * by_bound.get(most, 0) > total else ""))
    return sorted(found, key=lambda one: -one[1])
