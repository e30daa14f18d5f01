"""How much communication is hidden: the sweep over one device's kernels, on interval unions.

A fused kernel computes and communicates at once, so it counts as both: its time is overlapped. Memory copies and
unknown kernels are busy and neither. Where operators were recorded in windows only, figures count time inside them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import DEVICE_SOURCE
from moescope.profiler.classify.classifier import Class, classify_codes
from moescope.profiler.overlap.intervals import (
    Intervals,
    Times,
    binned,
    covered_within,
    empty,
    in_order,
    intersect,
    length,
    subtract,
    union,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

NO_PHASE = -1


@dataclass(frozen=True, slots=True)
class DeviceKernels:
    """Kernels of one device in order of start.

    starts, ends: [kernels] ns; kinds, operators: [kernels] str; phases: [kernels] `phases.id` or NO_PHASE;
    rows: [kernels] row in the table; codes: [kernels] index into classes, both empty where only words are known
    """

    rank: int
    device: str
    starts: Times
    ends: Times
    kinds: NDArray[Any]
    operators: NDArray[Any]
    phases: Times
    rows: Times
    codes: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    classes: tuple[Class, ...] = ()

    def are(self, *kinds: str) -> NDArray[np.bool_]:
        """[kernels] whether each is of one of these kinds."""
        if self.classes:
            return np.array([one.kind in kinds for one in self.classes], np.bool_)[self.codes]
        return np.isin(self.kinds, kinds)

    def of_kinds(self, *kinds: str) -> Intervals:
        """The union of all kernels of these kinds."""
        pick = self.are(*kinds)
        if not pick.any():
            return empty()
        return union(self.starts[pick], self.ends[pick])


@dataclass(frozen=True, slots=True)
class Sweep:
    """What one device does inside a window, as interval unions.

    window: ns since the epoch; recorded: the part of it that figures count, all of it unless recording ran in windows;
    clipped: whether that leaves anything of the source out
    """

    window: tuple[int, int]
    recorded: Intervals
    clipped: bool
    busy: Intervals
    compute: Intervals
    comm: Intervals
    memory: Intervals
    unknown: Intervals
    overlapped: Intervals
    exposed: Intervals

    @property
    def span_ns(self) -> int:
        """Time that the figures count."""
        return length(self.recorded)

    @property
    def idle_ns(self) -> int:
        """Counted time without any kernel."""
        return self.span_ns - length(self.busy)

    @property
    def overlap_fraction(self) -> float | None:
        """Overlapped over communication time, None where there is no communication."""
        comm = length(self.comm)
        return length(self.overlapped) / comm if comm else None


def kernels_by_device(kernels: pa.Table) -> list[DeviceKernels]:
    """Split the table by rank and device, each in order of start, and classify every kernel."""
    if not kernels.num_rows:
        return []
    import pyarrow.compute as pc

    classes, known = classify_codes(kernels)
    kinds, operators = (np.array([getattr(one, part) for one in known], object) for part in ("kind", "operator"))
    ranks = kernels.column("rank").fill_null(0).to_numpy()
    starts = kernels.column("start_ns").fill_null(0).to_numpy()
    ends = starts + kernels.column("dur_ns").fill_null(0).to_numpy()
    phases = kernels.column("phase_id").fill_null(NO_PHASE).to_numpy()
    encoded = pc.fill_null(kernels.column("device").combine_chunks(), "cpu").dictionary_encode()
    codes, names = encoded.indices.to_numpy(), encoded.dictionary.to_pylist()
    keys = ranks.astype(np.int64) * len(names) + codes
    found = []
    for key in np.unique(keys).tolist():
        rows = np.flatnonzero(keys == key)
        rows = rows[in_order(starts[rows])]
        found.append(
            DeviceKernels(
                rank=key // len(names),
                device=names[key % len(names)],
                starts=starts[rows],
                ends=ends[rows],
                kinds=kinds[classes[rows]],
                operators=operators[classes[rows]],
                phases=phases[rows],
                rows=rows,
                codes=classes[rows],
                classes=known,
            )
        )
    return sorted(found, key=lambda one: (one.rank, one.device))


def recorded_windows(source: Source, device: str | None = None) -> dict[int, Intervals]:
    """By rank, the union of the windows in which kernels were recorded; a missing rank was recorded throughout.

    device: whose kernels, None for any: where windows tell of the GPU alone, the host's operators were not recorded
    """
    import pyarrow.compute as pc

    windows = source.table("windows")
    if not windows.num_rows:
        return {}
    ranks = windows.column("rank").fill_null(0).to_numpy()
    starts = windows.column("start_ns").to_numpy()
    ends = starts + windows.column("dur_ns").fill_null(0).to_numpy()
    of_gpu = pc.fill_null(pc.equal(windows.column("source"), DEVICE_SOURCE), False).to_numpy()
    found = {}
    for rank in np.unique(ranks).tolist():
        own = ranks == rank
        if device is not None and (own & of_gpu).any():
            own &= of_gpu != device.startswith("cpu")
        found[int(rank)] = union(starts[own], ends[own])
    return found


def sweep(kernels: DeviceKernels, recorded: Intervals | None = None, window: tuple[int, int] | None = None) -> Sweep:
    """Sweep one device.

    recorded: windows of the recording, None for all; window: ns, from the first kernel's start to the last one's end
    unless given, or to the recorded windows' bounds where there are such
    """
    chosen = window is not None
    if window is None:
        window = _whole(kernels, recorded)
    span = (np.array([window[0]], np.int64), np.array([window[1]], np.int64)) if window[1] > window[0] else empty()
    counted = span if recorded is None else intersect(recorded, span)
    compute = intersect(kernels.of_kinds("compute", "fused"), counted)
    comm = intersect(kernels.of_kinds("comm", "fused"), counted)
    return Sweep(
        window=window,
        recorded=counted,
        clipped=chosen or recorded is not None,
        busy=intersect(union(kernels.starts, kernels.ends), counted),
        compute=compute,
        comm=comm,
        memory=intersect(kernels.of_kinds("memory"), counted),
        unknown=intersect(kernels.of_kinds("unknown"), counted),
        overlapped=intersect(compute, comm),
        exposed=subtract(comm, compute),
    )


def _whole(kernels: DeviceKernels, recorded: Intervals | None) -> tuple[int, int]:
    if recorded is not None:
        return (int(recorded[0][0]), int(recorded[1][-1])) if len(recorded[0]) else (0, 0)
    return (int(kernels.starts[0]), int(kernels.ends.max())) if len(kernels.starts) else (0, 0)


def coverage(recorded: Intervals | None) -> float:
    """Share of the time between the first window's start and the last one's end that the windows cover."""
    if recorded is None or not len(recorded[0]):
        return 1.0
    return length(recorded) / int(recorded[1][-1] - recorded[0][0])


def counted_ns(starts: Times, ends: Times, recorded: Intervals) -> Times:
    """Time of each range inside the recorded windows, ns."""
    return covered_within(recorded, starts, np.maximum(starts, ends))


@dataclass(frozen=True, slots=True)
class Bins:
    """A device's time by bin, ns.

    edges: [bins + 1]; all others: [bins]; recorded: how much of it the others count
    """

    edges: Times
    recorded: Times
    compute: Times
    comm: Times
    overlapped: Times
    exposed: Times
    idle: Times


def binned_overlap(swept: Sweep, bin_ns: int) -> Bins:
    """The sweep in bins of equal width from the window's start; the last bin ends with the window."""
    low, high = swept.window
    edges = np.append(np.arange(low, high, bin_ns, dtype=np.int64), np.int64(high)) if high > low else np.array([low])
    recorded = binned(swept.recorded, edges)
    return Bins(
        edges=edges,
        recorded=recorded,
        compute=binned(swept.compute, edges),
        comm=binned(swept.comm, edges),
        overlapped=binned(swept.overlapped, edges),
        exposed=binned(swept.exposed, edges),
        idle=recorded - binned(swept.busy, edges),
    )
