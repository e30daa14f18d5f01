"""How long steps of the CPU backend take in a replay: their borders move with what ran last before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.steps.durations import quantile_step
from moescope.profiler.whatif.nodes import Nodes
from moescope.profiler.whatif.whole import SLACK, steps_of

if TYPE_CHECKING:
    from moescope.profiler.source import Source


@dataclass(frozen=True, slots=True)
class Borders:
    """Where steps of the stage that takes most time begin and end.

    number: [borders] of the step, the same for all ranks; node: [borders] what ended last before it on its rank, or
    begins the stretch; offset: [borders] ns from that one's end, or its start where `opening`; sign: -1 where the step
    begins, 1 where it ends; owner: [borders] the step of one rank that it belongs to
    """

    number: Times
    node: Times
    offset: Times
    opening: Times
    sign: Times
    owner: Times

    def durations(self, starts: Times, ends: Times) -> list[int]:
        """What each step takes, of its median rank, ns. starts, ends: [nodes], recorded or replayed"""
        times = np.where(self.opening, starts[self.node], ends[self.node]) + self.offset
        owners = int(self.owner.max(initial=-1)) + 1
        each = np.zeros(owners, np.int64)
        np.add.at(each, self.owner, self.sign * times)
        numbers = np.zeros(owners, np.int64)
        numbers[self.owner] = self.number
        found = []
        for number in np.unique(numbers).tolist():
            middle = quantile_step(each[numbers == number].tolist())
            if middle is not None:
                found.append(middle)
        return found

    def median(self, starts: Times, ends: Times) -> int | None:
        """The median step, None where no step lies wholly in a stretch."""
        return quantile_step(self.durations(starts, ends))

    def spread(self, starts: Times, ends: Times) -> tuple[float, float] | None:
        """The lower and upper quartile over the median step, less 1; None for fewer than four steps."""
        found = self.durations(starts, ends)
        median, low, high = (quantile_step(found, share) for share in (0.5, 0.25, 0.75))
        if len(found) < 4 or not median or low is None or high is None:
            return None
        return low / median - 1, high / median - 1


def borders_of(source: Source, nodes: Nodes) -> Borders:
    """Steps that lie wholly in one recorded stretch of a rank whose threads were recorded."""
    ranks, segments = nodes.ranks, nodes.segments
    on_cpu = nodes.of_lanes(lambda lane: lane.on_cpu).astype(bool)
    held: dict[int, list[Times]] = {}
    keys = ranks * (int(segments.max(initial=0)) + 1) + segments
    order = np.lexsort((nodes.ends, keys))
    for own in np.split(order, np.flatnonzero(np.diff(keys[order])) + 1):
        if on_cpu[own].any():
            held.setdefault(int(ranks[own[0]]), []).append(own)
    found: list[tuple[int, int, int, int, int, int]] = []
    for owner, row in enumerate(steps_of(source)):
        start, end = nodes.clocks.aligned(
            row["rank"], np.array([row["start_ns"], row["start_ns"] + row["dur_ns"]])
        ).tolist()
        for own in held.get(row["rank"], ()):
            first = own[np.argmin(nodes.starts[own])]
            slack = row["dur_ns"] // SLACK
            if nodes.starts[first] - slack <= start and end <= nodes.ends[own[-1]] + slack:
                for time, sign in ((start, -1), (end, 1)):
                    at = int(np.searchsorted(nodes.ends[own], time, side="right")) - 1
                    node = int(own[at]) if at >= 0 else int(first)
                    offset = time - int(nodes.ends[node] if at >= 0 else nodes.starts[node])
                    found.append((row["step"] or 0, node, offset, at < 0, sign, owner))
                break
    columns = np.array(found, np.int64).reshape(-1, 6).T
    owners = np.unique(columns[5], return_inverse=True)[1].reshape(-1)
    return Borders(columns[0], columns[1], columns[2], columns[3].astype(bool), columns[4], owners.astype(np.int64))
