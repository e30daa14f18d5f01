"""Kernels of each rank in order of time, and the unions of its devices and streams, brought up to date in pieces."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import KINDS
from moescope.profiler.growing.columns import Column, Grown
from moescope.profiler.growing.track import Intervals, Times, Track
from moescope.profiler.overlap.intervals import intersect, subtract
from moescope.profiler.overlap.sweep import NO_PHASE, DeviceKernels, sweep

FIELDS: Final = (
    "start", "end", "code", "stream", "device", "phase", "launch", "flops", "bytes", "dtype", "evidence", "piece",
)  # fmt: skip
DEVICE_SETS: Final = ("compute", "comm", "overlapped", "exposed", "busy")
LANE_SETS: Final = ("compute", "overlapped", "exposed", "memory", "unknown", "busy")
FAR: Final = int(np.iinfo(np.int64).max // 4)
"""After any time of a recording."""

NOT_RECORDED: Final = -1
_KIND_NAMES: Final = np.array(KINDS)


class RankKernels(Grown):
    """Kernels of one rank, sorted by start.

    start, end: [kernels] int64 ns; code: [kernels] number of its name and class; reach: [kernels] latest end so far;
    inside: [kernels] its time in recorded windows, NOT_RECORDED for a kernel outside all of them; exposed: [kernels]
    its exposed time (both are filled by `refresh`)
    """

    def insert(self, rows: dict[str, Column]) -> int:
        """Add kernels in any order; the earliest start among them.

        rows: every one of FIELDS, [new]
        """
        order = np.argsort(rows["start"], kind="stable")
        rows = {name: rows[name][order] for name in FIELDS}
        first = int(rows["start"][0])
        at = int(np.searchsorted(self["start"], first, side="right")) if self.size else 0
        if at < self.size:
            rows = {name: np.concatenate((self[name][at:], rows[name])) for name in FIELDS}
            order = np.argsort(rows["start"], kind="stable")
            rows = {name: values[order] for name, values in rows.items()}
        self._write(at, rows)
        return first

    def drop(self, pieces: NDArray[np.int32]) -> bool:
        """Forget the kernels that came in these pieces; whether there were any."""
        if not self.size:
            return False
        gone = np.isin(self["piece"], pieces)
        if not gone.any():
            return False
        self._write(0, {name: self[name][~gone].copy() for name in FIELDS})
        return True

    def _write(self, at: int, rows: dict[str, Column]) -> None:
        reach = np.maximum.accumulate(rows["end"]) if len(rows["end"]) else rows["end"]
        if at:
            reach = np.maximum(reach, self["reach"][at - 1])
        unknown = np.full(len(reach), NOT_RECORDED, np.int64)
        self.write_from(at, {**rows, "reach": reach, "inside": unknown, "exposed": np.zeros(len(reach), np.int64)})

    def span(self, start_ns: int, end_ns: int) -> slice:
        """Rows among which are all kernels that touch the range."""
        if not self.size:
            return slice(0, 0)
        low = int(np.searchsorted(self["reach"], start_ns, side="left"))
        high = int(np.searchsorted(self["start"], end_ns, side="left"))
        return slice(low, max(low, high))


class Lane:
    """One stream: what it does at which time, inside recorded windows."""

    __slots__ = ("tracks",)

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {name: Track() for name in LANE_SETS}


class DeviceSweep:
    """One device: the unions that every share is read from, and its streams."""

    __slots__ = ("lanes", "tracks")

    def __init__(self) -> None:
        self.tracks: dict[str, Track] = {name: Track() for name in DEVICE_SETS}
        self.lanes: dict[int, Lane] = {}


def as_device(
    starts: Times, ends: Times, kinds: NDArray[np.int8], rank: int = 0, device: str = "", phases: Times | None = None
) -> DeviceKernels:
    """Kernels as the sweep takes them. starts, ends, kinds: [kernels] ns and index into KINDS"""
    none = np.full(len(starts), NO_PHASE, np.int64)
    rows = np.arange(len(starts), dtype=np.int64)
    names = _KIND_NAMES[kinds]
    return DeviceKernels(rank, device, starts, ends, names, names, none if phases is None else phases, rows)


def lane_sets(
    starts: Times, ends: Times, kinds: NDArray[np.int8], compute: Intervals, recorded: Intervals, since_ns: int
) -> dict[str, Intervals]:
    """What a stream's kernels cover from `since_ns` on, inside recorded windows, as LANE_SETS.

    starts, ends, kinds: [kernels] ns and index into KINDS; compute: compute of the whole device, which hides the
    stream's communication
    """
    own = sweep(as_device(starts, ends, kinds), recorded, (since_ns, FAR))
    return {
        "compute": own.compute if not (kinds == KINDS.index("fused")).any() else subtract(own.compute, own.comm),
        "overlapped": intersect(own.comm, compute),
        "exposed": subtract(own.comm, compute),
        "memory": own.memory,
        "unknown": own.unknown,
        "busy": own.busy,
    }


def refresh(
    devices: dict[int, DeviceSweep],
    kernels: RankKernels,
    kind_of: NDArray[np.int8],
    recorded: Track,
    since_ns: int,
) -> None:
    """Sweep again what lies at or after `since_ns`.

    kind_of: [codes] index into KINDS
    """
    rows = kernels.span(since_ns, FAR)
    window = recorded.between(since_ns, FAR)
    starts = np.maximum(kernels["start"][rows], since_ns) if kernels.size else np.empty(0, np.int64)
    ends = np.maximum(kernels["end"][rows], starts) if kernels.size else np.empty(0, np.int64)
    device, stream = (kernels[name][rows] if kernels.size else np.empty(0, np.int32) for name in ("device", "stream"))
    kinds = kind_of[kernels["code"][rows]] if kernels.size else np.empty(0, np.int8)
    for number in {*devices, *np.unique(device).tolist()}:
        held = devices.setdefault(number, DeviceSweep())
        own = device == number
        swept = sweep(as_device(starts[own], ends[own], kinds[own]), window, (since_ns, FAR))
        for name in DEVICE_SETS:
            held.tracks[name].replace_from(since_ns, *getattr(swept, name))
        for lane in {*held.lanes, *np.unique(stream[own]).tolist()}:
            pick = own & (stream == lane)
            tracks = held.lanes.setdefault(lane, Lane()).tracks
            for name, (from_ns, to_ns) in lane_sets(
                starts[pick], ends[pick], kinds[pick], swept.compute, window, since_ns
            ).items():
                tracks[name].replace_from(since_ns, from_ns, to_ns)
    _measure(devices, kernels, kinds, recorded, rows)


def _measure(
    devices: dict[int, DeviceSweep], kernels: RankKernels, kinds: NDArray[np.int8], recorded: Track, rows: slice
) -> None:
    """Fill in how long each of these kernels was recorded and exposed."""
    if rows.stop <= rows.start:
        return
    starts, ends = kernels["start"][rows], kernels["end"][rows]
    inside = recorded.within(starts, ends)
    kernels["inside"][rows] = np.where((inside > 0) | recorded.holds(starts), inside, NOT_RECORDED)
    exposed = np.zeros(len(starts), np.int64)
    communicates = np.flatnonzero(np.isin(kinds, [KINDS.index("comm"), KINDS.index("fused")]))
    device = kernels["device"][rows][communicates]
    for number, held in devices.items():
        own = communicates[device == number]
        exposed[own] = held.tracks["exposed"].within(starts[own], ends[own])
    kernels["exposed"][rows] = exposed
