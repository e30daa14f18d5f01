"""Where communication hurts: each phase's communication, and how much of it nothing hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.intervals import Times, covered_within, intersect, length, subtract, union
from moescope.profiler.overlap import NO_PHASE, DeviceKernels, Sweep

if TYPE_CHECKING:
    import pyarrow as pa

OUTSIDE = "(no phase)"


@dataclass(frozen=True, slots=True)
class PhaseTime:
    """All ranges of one name on one device's rank; times ns, inside the counted time.

    count: ranges, or for OUTSIDE kernels; total_ns: sum of the ranges; comm_ns, exposed_ns: of the kernels whose
    innermost phase it is
    """

    name: str
    count: int
    total_ns: int
    comm_ns: int
    exposed_ns: int


@dataclass(frozen=True, slots=True)
class Ranges:
    """Phases of one rank in order of start: ids, starts, ends: [phases]; names: [phases] str."""

    ids: Times
    starts: Times
    ends: Times
    names: NDArray[np.object_]


def ranges_of(phases: pa.Table, rank: int) -> Ranges:
    """The phases of one rank."""
    import pyarrow.compute as pc

    own = phases.filter(pc.equal(phases.column("rank"), rank)).sort_by("start_ns") if phases.num_rows else phases
    starts = own.column("start_ns").to_numpy()
    return Ranges(
        own.column("id").fill_null(NO_PHASE).to_numpy(),
        starts,
        starts + own.column("dur_ns").fill_null(0).to_numpy(),
        np.array(own.column("name").fill_null("").to_pylist(), object),
    )


def phase_times(kernels: DeviceKernels, phases: Ranges, swept: Sweep) -> list[PhaseTime]:
    """Phases of one device by total time, the longest first, and what lies outside all of them at the end."""
    names = phase_names(kernels, phases)
    # A range of the host may lie outside the device's first and last kernel; only windows cut it.
    inside = (
        covered_within(swept.recorded, phases.starts, phases.ends) if swept.clipped else phases.ends - phases.starts
    )
    communicates = np.isin(kernels.kinds, ("comm", "fused"))
    found = []
    for name in dict.fromkeys(phases.names.tolist()):
        ranges = (phases.names == name) & ((inside > 0) | (not swept.clipped))
        comm, exposed = _communication(kernels, communicates & (names == name), swept)
        count = int(ranges.sum())
        if count or comm:
            found.append(PhaseTime(name, count, int(inside[ranges].sum()), comm, exposed))
    found.sort(key=lambda phase: -phase.total_ns)
    outside = names == OUTSIDE
    if outside.any():
        comm, exposed = _communication(kernels, communicates & outside, swept)
        busy = intersect(union(kernels.starts[outside], kernels.ends[outside]), swept.recorded)
        count = int((covered_within(swept.recorded, kernels.starts[outside], kernels.ends[outside]) > 0).sum())
        if count:
            found.append(PhaseTime(OUTSIDE, count, length(busy), comm, exposed))
    return found


def phase_names(kernels: DeviceKernels, phases: Ranges) -> NDArray[np.object_]:
    """Name of each kernel's innermost phase: [kernels]; OUTSIDE where there is none.

    By `phase_id`; on the CPU backend, where a kernel runs while its phase is open, else by the time of its start.
    """
    names = np.full(len(kernels.starts), OUTSIDE, object)
    if not len(phases.ids):
        return names
    order = np.argsort(phases.ids, kind="stable")
    at = np.minimum(np.searchsorted(phases.ids[order], kernels.phases), len(order) - 1)
    known = (kernels.phases != NO_PHASE) & (phases.ids[order][at] == kernels.phases)
    names[known] = phases.names[order][at][known]
    if kernels.device.startswith("cpu"):
        lost = np.flatnonzero(~known)
        reach = np.maximum.accumulate(phases.ends)
        for row, time in zip(lost.tolist(), kernels.starts[lost].tolist(), strict=True):
            candidate = int(np.searchsorted(phases.starts, time, side="right")) - 1
            while candidate >= 0 and reach[candidate] > time:
                if phases.ends[candidate] > time:
                    names[row] = phases.names[candidate]
                    break
                candidate -= 1
    return names


def _communication(kernels: DeviceKernels, pick: NDArray[np.bool_], swept: Sweep) -> tuple[int, int]:
    comm = intersect(union(kernels.starts[pick], kernels.ends[pick]), swept.recorded)
    return length(comm), length(subtract(comm, swept.compute))
