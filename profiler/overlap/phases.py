"""Where communication hurts: each phase's communication, and how much of it nothing hides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.breakdown import overlap_of_labels
from moescope.profiler.overlap.intervals import Times, covered_within
from moescope.profiler.overlap.placement import IN_ORDER, phase_rows
from moescope.profiler.overlap.sweep import NO_PHASE, DeviceKernels, Sweep

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
    """The phases of one rank; of those that begin at once, the inner one last."""
    import pyarrow.compute as pc

    own = phases
    if phases.num_rows:
        own = phases.filter(pc.equal(phases.column("rank"), rank)).sort_by(IN_ORDER)
    starts = own.column("start_ns").to_numpy()
    return Ranges(
        own.column("id").fill_null(NO_PHASE).to_numpy(),
        starts,
        starts + own.column("dur_ns").fill_null(0).to_numpy(),
        np.array(own.column("name").fill_null("").to_pylist(), object),
    )


def phase_times(kernels: DeviceKernels, phases: Ranges, swept: Sweep) -> list[PhaseTime]:
    """Phases of one device by total time, the longest first, and what lies outside all of them at the end."""
    rows = phase_rows(kernels, phases.ids, phases.starts, phases.ends)
    number = {name: at for at, name in enumerate(dict.fromkeys(phases.names.tolist()))}
    of_phase = np.fromiter((number[name] for name in phases.names.tolist()), np.int64, len(phases.names))
    names = [*number, OUTSIDE]
    labels = np.full(len(rows), len(number), np.int64)
    labels[rows >= 0] = of_phase[rows[rows >= 0]]
    parts = {part.key: part for part in overlap_of_labels(kernels, swept, list(range(len(names))), labels)}
    # A range of the host may lie outside the device's first and last kernel; only windows cut it.
    inside = (
        covered_within(swept.recorded, phases.starts, phases.ends) if swept.clipped else phases.ends - phases.starts
    )
    counts = (inside > 0) | (not swept.clipped)
    count = np.bincount(of_phase[counts], minlength=len(number))
    total = np.zeros(len(number), np.int64)
    np.add.at(total, of_phase[counts], inside[counts])
    found = []
    for at, name in enumerate(number):
        comm, exposed = (parts[at].comm_ns, parts[at].exposed_ns) if at in parts else (0, 0)
        if count[at] or comm:
            found.append(PhaseTime(name, int(count[at]), int(total[at]), comm, exposed))
    found.sort(key=lambda phase: -phase.total_ns)
    outside = parts.get(len(number))
    if outside is not None and outside.total_ns:
        found.append(PhaseTime(OUTSIDE, outside.kernels, outside.busy_ns, outside.comm_ns, outside.exposed_ns))
    return found


def phase_names(kernels: DeviceKernels, phases: Ranges) -> NDArray[np.object_]:
    """Name of each kernel's innermost phase: [kernels]; OUTSIDE where there is none."""
    rows = phase_rows(kernels, phases.ids, phases.starts, phases.ends)
    names = np.full(len(rows), OUTSIDE, object)
    names[rows >= 0] = phases.names[rows[rows >= 0]]
    return names
