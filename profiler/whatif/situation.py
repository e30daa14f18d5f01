"""What scenarios need to know of a run besides its graph: units that launches hold, and what runs beside what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.hardware.table import hardware_of
from moescope.profiler.overlap.intervals import Times, covered_within, union
from moescope.profiler.units.held import units_by_launch
from moescope.profiler.whatif.change import Factors
from moescope.profiler.whatif.nodes import Nodes

if TYPE_CHECKING:
    from moescope.profiler.source import Source


@dataclass(frozen=True)
class Situation:
    """A source and its nodes; work: [nodes] ns that each takes by itself."""

    source: Source
    nodes: Nodes
    work: Times

    @cached_property
    def is_comm(self) -> NDArray[np.bool_]:
        """[nodes] communication that is no fused kernel."""
        return self.nodes.is_comm

    @cached_property
    def computes(self) -> NDArray[np.bool_]:
        """[nodes] compute, fused kernels among it."""
        found: NDArray[np.bool_] = np.isin(self.nodes.kinds, ("compute", "fused"))
        return found

    @cached_property
    def ones(self) -> Factors:
        """[nodes] no change."""
        return np.ones(len(self.nodes))

    def by_device(self) -> Iterator[tuple[int, str, NDArray[np.int64]]]:
        """Rank, device and its nodes."""
        devices = sorted({(lane.rank, lane.device) for lane in self.nodes.lanes})
        number = {device: place for place, device in enumerate(devices)}
        of = self.nodes.of_lanes(lambda lane: number[lane.rank, lane.device])
        for place, (rank, device) in enumerate(devices):
            yield rank, device, np.flatnonzero(of == place)

    @cached_property
    def beside_comm(self) -> Factors:
        """[nodes] share of each computing kernel's time in which its device communicates; 0 for others."""
        found = np.zeros(len(self.nodes))
        starts, ends = self.nodes.starts, self.nodes.ends
        for _, _, own in self.by_device():
            comm = own[self.is_comm[own]]
            compute = own[self.computes[own] & (ends[own] > starts[own])]
            both = covered_within(union(starts[comm], ends[comm]), starts[compute], ends[compute])
            found[compute] = both / (ends[compute] - starts[compute])
        return found

    @cached_property
    def units(self) -> tuple[Times, Times, Times]:
        """[nodes] fewest and most SMs that each launch holds, and SMs there are; 0 where not known, as on a CPU."""
        fewest, most, total = (np.zeros(len(self.nodes), np.int64) for _ in range(3))
        table = self.source.table("kernels")
        for rank, device, own in self.by_device():
            if device.startswith("cpu"):
                continue
            hardware = hardware_of(self.source.meta, rank, device)
            if hardware.units:
                total[own] = hardware.units
                fewest[own], most[own] = units_by_launch(
                    table, self.nodes.rows[own], hardware.units, hardware.unit_limits
                )
        return fewest, most, total
