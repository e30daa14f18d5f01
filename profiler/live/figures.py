"""Figures of a window read off the swept unions: shares by rank, kernels and phases by name, the scrubber."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import KINDS
from moescope.profiler.growing.columns import NULL, Column
from moescope.profiler.growing.kernels import NOT_RECORDED, as_device
from moescope.profiler.live.engines import known_peaks, memory_peak, peak_flops
from moescope.profiler.live.state import LiveState, RankState
from moescope.profiler.overlap.intervals import union
from moescope.profiler.overlap.phases import Ranges, phase_names
from moescope.profiler.overlap.sweep import NO_PHASE
from moescope.profiler.snapshot import Figure, KernelRow, PhaseRow, Shares
from moescope.profiler.steps.scatter import FEWEST, Sums, share, sums_of, width

SHORT_KERNEL_NS: Final = 5_000
LATENCY_FACTOR: Final = 4
"""A kernel that takes this many times its roofline time is bound by latency, not by a peak."""

_KEY_BITS: Final = 20
_KEY_MASK: Final = (1 << 20) - 1
_FLOAT_ONE: Final = 127 << 23
_FLOAT_DROPPED: Final = 9


def rank_shares(held: RankState, window: tuple[int, int]) -> Shares:
    """Where a rank's recorded time goes, summed over its devices, ns."""
    span = held.recorded.length(*window) * max(len(held.devices), 1)
    compute, overlapped, exposed, busy = (
        held.covered(name, *window) for name in ("compute", "overlapped", "exposed", "busy")
    )
    return Shares(
        span_ns=span,
        compute_only_ns=compute - overlapped,
        overlapped_ns=overlapped,
        exposed_ns=exposed,
        other_ns=busy - compute - exposed,
        idle_ns=span - busy,
    )


def total_shares(parts: Sequence[Shares]) -> Shares:
    """Sum over ranks."""
    return Shares(
        *(
            sum(getattr(part, name) for part in parts)
            for name in ("span_ns", "compute_only_ns", "overlapped_ns", "exposed_ns", "other_ns", "idle_ns")
        )
    )


def per_step(shares: Shares, step_ns: float) -> Shares:
    """The same proportions over one step's time; the parts still fill the span."""
    span = round(step_ns)
    if shares.span_ns <= 0:
        return shares
    factor = span / shares.span_ns
    compute, overlapped, exposed, other = (
        round(value * factor)
        for value in (shares.compute_only_ns, shares.overlapped_ns, shares.exposed_ns, shares.other_ns)
    )
    return Shares(span, compute, overlapped, exposed, other, max(span - compute - overlapped - exposed - other, 0))


def share_errors(state: LiveState, ranks: Sequence[int], window: tuple[int, int], coverage: float) -> dict[str, float]:
    """How far shares of the recorded time may be from those of all steps in the window, as `summary` tells it.

    Of the exposed, the compute and the idle time; nothing where too few steps were recorded, or steps overlap.
    """
    steps = state.tables["steps"]
    starts, ends = steps["start_ns"], steps["start_ns"] + steps["dur_ns"]
    inside = (steps["dur_ns"] > 0) & (starts >= window[0]) & (ends <= window[1])
    sums: dict[str, list[Sums]] = {"exposed": [], "compute": [], "busy": []}
    for rank in ranks:
        held, own = state.ranks.get(rank), np.flatnonzero(inside & (steps["rank"] == rank))
        if held is None or not held.devices or not len(own):
            continue
        own = own[np.argsort(starts[own], kind="stable")]
        first, last = starts[own], ends[own]
        if (first[1:] < last[:-1]).any():
            return {}
        recorded = held.recorded.within(first, last) * len(held.devices)
        for name, found in sums.items():
            tracks = (sweep.tracks[name] for sweep in held.devices.values())
            found.append(sums_of(sum((track.within(first, last) for track in tracks), np.zeros_like(first)), recorded))
    count = max((one.seen for one in sums["busy"]), default=0)
    if count < FEWEST:
        return {}
    times = width(count, coverage)
    errors = {name: (share(found)[1] or 0.0) * times for name, found in sums.items()}
    return {"exposed": errors["exposed"], "compute": errors["compute"], "idle": errors["busy"]}


def overlap_fraction(shares: Shares) -> Figure:
    """Overlapped over all communication; unknown where there is none."""
    communication = shares.overlapped_ns + shares.exposed_ns
    if not communication:
        return Figure(None, "derived", "no communication in this window")
    return Figure(shares.overlapped_ns / communication, "derived")


def _recorded_rows(held: RankState, window: tuple[int, int]) -> tuple[slice, NDArray[np.bool_]]:
    """Kernels that start in the window, and which of them lie in recorded windows."""
    kernels = held.kernels
    if not kernels.size:
        return slice(0, 0), np.empty(0, np.bool_)
    low, high = np.searchsorted(kernels["start"], window, side="left")
    rows = slice(int(low), int(max(low, high)))
    return rows, kernels["inside"][rows] > NOT_RECORDED


def recorded_columns(held: RankState, window: tuple[int, int], columns: Sequence[str]) -> list[Column]:
    """Columns of a rank's kernels that start in the window and were recorded: [kernels] each."""
    rows, recorded = _recorded_rows(held, window)
    if rows.stop <= rows.start:
        return [np.empty(0, np.int64) for _ in columns]
    whole = bool(recorded.all())
    return [held.kernels[name][rows] if whole else held.kernels[name][rows][recorded] for name in columns]


def kernel_counts(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> dict[int, int]:
    """Recorded kernels of each rank that start in the window."""
    return {
        rank: int(_recorded_rows(state.ranks[rank], window)[1].sum()) if rank in state.ranks else 0 for rank in ranks
    }


class _Totals:
    """Sums over kernels by their code: [codes] each."""

    def __init__(self, size: int) -> None:
        self.calls, self.inside, self.exposed, self.flops, self.flop_ns, self.bytes, self.byte_ns = (
            np.zeros(size, np.int64) for _ in range(7)
        )
        self.dtypes = np.full(size, -1, np.int64)
        self.keys: list[NDArray[Any]] = []
        self.short = 0
        self._size = size

    def add(self, held: RankState, window: tuple[int, int]) -> None:
        rows, recorded = _recorded_rows(held, window)
        if rows.stop <= rows.start:
            return
        kernels = held.kernels
        durations = kernels["end"][rows] - kernels["start"][rows]
        # What was not recorded gets a number past all codes: cheaper than leaving its rows out of every column.
        codes = np.where(recorded, kernels["code"][rows], self._size).astype(np.int32)
        self.calls += np.bincount(codes, minlength=self._size + 1)[: self._size]
        self.inside += self._sums(codes, kernels["inside"][rows])
        alone = np.flatnonzero(kernels["exposed"][rows])
        self.exposed += self._sums(codes[alone], kernels["exposed"][rows][alone])
        self.short += int(((durations < SHORT_KERNEL_NS) & recorded).sum())
        self.keys.append(_duration_keys(codes, durations, self._size + 1))
        dtypes = kernels["dtype"][rows]
        for name, total, elapsed in (("flops", self.flops, self.flop_ns), ("bytes", self.bytes, self.byte_ns)):
            values = kernels[name][rows]
            known = np.flatnonzero((values != NULL) & recorded)
            if len(known):
                total += self._sums(codes[known], values[known])
                elapsed += self._sums(codes[known], durations[known])
                self.dtypes[codes[known]] = dtypes[known]

    def _sums(self, codes: Column, values: Column) -> NDArray[np.int64]:
        return np.rint(np.bincount(codes, weights=values, minlength=self._size + 1)).astype(np.int64)[: self._size]


def kernel_rows(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> tuple[tuple[KernelRow, ...], int]:
    """Kernels by name, longest first, and how many kernels were shorter than 5 µs.

    `share` is of the sum over all kernels; times count inside recorded windows, quantiles are of whole kernels.
    """
    totals = _Totals(len(state.classes))
    for rank in ranks:
        if rank in state.ranks:
            totals.add(state.ranks[rank], window)
    medians, tails = quantiles(totals.keys, totals.calls)
    busy = max(int(totals.inside.sum()), 1)
    device_peaks = known_peaks(state)
    memory = memory_peak(device_peaks)
    called = np.flatnonzero(totals.calls)
    found: list[KernelRow] = []
    for code in called[np.argsort(-totals.inside[called], kind="stable")].tolist():
        known = state.classes[code]
        flops_per_s = _rate(int(totals.flops[code]), int(totals.flop_ns[code]), "its FLOPs are not recorded")
        bytes_per_s = _rate(int(totals.bytes[code]), int(totals.byte_ns[code]), "its bytes are not recorded")
        bound: Figure | None = None
        name = ""
        if known.kind == "compute" and flops_per_s.value is not None and memory is not None:
            dtype = state.names.text(int(totals.dtypes[code]))
            peak = peak_flops(device_peaks, dtype, emulated=state.unit_kind == "core")
            if peak is not None:
                bound, name = roofline_bound(flops_per_s.value, bytes_per_s.value, peak.value, memory.value)
        found.append(
            KernelRow(
                name=known.name,
                operator=known.operator,
                kind=known.kind,
                rule=known.rule,
                calls=int(totals.calls[code]),
                total_ns=int(totals.inside[code]),
                share=int(totals.inside[code]) / busy,
                median_ns=int(medians[code]),
                p99_ns=int(tails[code]),
                exposed_ns=int(totals.exposed[code]),
                flops_per_s=flops_per_s,
                bytes_per_s=bytes_per_s,
                bound=bound,
                bound_name=name,
            )
        )
    return tuple(found), totals.short


def roofline_bound(
    flops_per_s: float | None, bytes_per_s: float | None, peak_flops_per_s: float, peak_bytes_per_s: float
) -> tuple[Figure | None, str]:
    """Which roof a kernel is under and the share of it that it reaches; unknown without both of its rates."""
    if flops_per_s is None or bytes_per_s is None:
        return None, ""
    of_flops, of_bytes = flops_per_s / peak_flops_per_s, bytes_per_s / peak_bytes_per_s
    reached, name = (of_flops, "tensor") if of_flops >= of_bytes else (of_bytes, "memory")
    return Figure(reached, "derived"), name if reached * LATENCY_FACTOR >= 1 else "latency"


def _duration_keys(codes: Column, durations: Column, size: int) -> NDArray[Any]:
    """One number a kernel that sorts by code, then duration, in 32 bits where `size` codes fit: these sort faster.

    Durations keep 14 binary digits after the first: exact below 16 µs, within 0.006 % above.
    """
    bits = np.maximum(durations, 0).astype(np.float32).view(np.uint32)
    short = np.where(bits > 0, (bits - _FLOAT_ONE) >> _FLOAT_DROPPED, 0) + (bits > 0)
    dtype: Any = np.uint32 if size < 1 << (32 - _KEY_BITS) else np.uint64
    keys: NDArray[Any] = (codes.astype(dtype) << dtype(_KEY_BITS)) | np.minimum(short, _KEY_MASK).astype(dtype)
    return keys


def _key_duration(keys: NDArray[Any]) -> NDArray[np.int64]:
    short = (keys & keys.dtype.type(_KEY_MASK)).astype(np.uint32)
    bits = np.where(short > 0, ((short - np.uint32(1)) << np.uint32(_FLOAT_DROPPED)) + np.uint32(_FLOAT_ONE), 0)
    durations: NDArray[np.int64] = bits.astype(np.uint32).view(np.float32).astype(np.int64)
    return durations


def quantiles(keys: Sequence[NDArray[Any]], calls: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Median (the lower of two) and 99th percentile (nearest rank) of each code's durations, ns; 0 without calls.

    keys: [kernels] in pieces, of `_duration_keys`; calls: [codes] how often each occurs
    """
    medians, tails = np.zeros(len(calls), np.int64), np.zeros(len(calls), np.int64)
    there = calls > 0
    if there.any():
        packed = np.sort(np.concatenate(keys))
        first = np.cumsum(calls) - calls
        medians[there] = _key_duration(packed[(first + (calls - 1) // 2)[there]])
        tails[there] = _key_duration(packed[(first + (99 * calls + 99) // 100 - 1)[there]])
    return medians, tails


def _rate(amount: int, elapsed_ns: int, reason: str) -> Figure:
    if elapsed_ns <= 0:
        return Figure(None, "derived", reason)
    return Figure(amount / elapsed_ns * 1e9, "derived")


def phase_rows(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> tuple[PhaseRow, ...]:
    """Phases by name inside the recorded part of the window, most exposed first.

    Communication belongs to the innermost phase around its launch, as `overlap.phases` has it.
    """
    named: dict[str, list[int]] = {}
    for rank in ranks:
        held = state.ranks.get(rank)
        if held is None:
            continue
        ranges = _ranges(state, rank, window)
        texts = ranges.names.tolist()
        starts, ends = np.maximum(ranges.starts, window[0]), np.minimum(ranges.ends, window[1])
        inside = held.recorded.within(starts, np.maximum(starts, ends))
        for name, time in zip(texts, inside.tolist(), strict=True):
            if time > 0:
                row = named.setdefault(name, [0, 0, 0, 0])
                row[0] += 1
                row[1] += time
        for name, comm, exposed in _communication(state, rank, window, ranges):
            row = named.setdefault(name, [0, 0, 0, 0])
            row[2] += comm
            row[3] += exposed
    rows = [PhaseRow(name, *values) for name, values in named.items()]
    return tuple(sorted(rows, key=lambda row: (-row.exposed_ns, -row.total_ns, row.name)))


def _ranges(state: LiveState, rank: int, window: tuple[int, int]) -> Ranges:
    """A rank's phases that touch the window."""
    phases = state.tables["phases"]
    ends = phases["start_ns"] + np.maximum(phases["dur_ns"], 0)
    own = np.flatnonzero((phases["rank"] == rank) & (phases["start_ns"] < window[1]) & (ends > window[0]))
    own = own[np.argsort(phases["start_ns"][own], kind="stable")]
    names = np.array([state.names.text(code, "–") for code in phases["name"][own].tolist()], object)
    return Ranges(phases["id"][own], phases["start_ns"][own], ends[own], names)


def _communication(state: LiveState, rank: int, window: tuple[int, int], ranges: Ranges) -> list[tuple[str, int, int]]:
    """Name, communication and exposed time of a rank's phases in the window, the union over each name's kernels, ns."""
    held = state.ranks[rank]
    moving = np.isin(np.arange(len(KINDS)), [KINDS.index("comm"), KINDS.index("fused")])[state.kind_of()]
    rows, recorded = _recorded_rows(held, window)
    if rows.stop <= rows.start:
        return []
    picked = rows.start + np.flatnonzero(moving[held.kernels["code"][rows]] & recorded)
    starts, ends, phase, code, device = (
        held.kernels[name][picked] for name in ("start", "end", "phase", "code", "device")
    )
    found: list[tuple[str, int, int]] = []
    for number, swept in held.devices.items():
        at = np.flatnonzero(device == number)
        if not len(at):
            continue
        ids = np.where(phase[at] == NULL, NO_PHASE, phase[at])
        kinds = state.kind_of()[code[at]]
        kernels = as_device(starts[at], ends[at], kinds, rank, state.names.text(number, "cpu"), ids)
        names = phase_names(kernels, ranges).tolist()
        distinct = list(dict.fromkeys(names))
        position = {name: index for index, name in enumerate(distinct)}
        numbers = np.array([position[name] for name in names], np.int64)
        # One union for all names: each is moved to a stretch of time of its own.
        low, wide = int(starts[at].min()), int(ends[at].max() - starts[at].min()) + 1
        shift = numbers * wide - low
        from_ns, to_ns = union(starts[at] + shift, ends[at] + shift)
        owner = from_ns // wide
        from_ns, to_ns = from_ns - owner * wide + low, np.minimum(to_ns - owner * wide + low, window[1])
        comm, exposed = np.zeros(len(distinct), np.int64), np.zeros(len(distinct), np.int64)
        np.add.at(comm, owner, held.recorded.within(from_ns, np.maximum(from_ns, to_ns)))
        np.add.at(exposed, owner, swept.tracks["exposed"].within(from_ns, np.maximum(from_ns, to_ns)))
        found += list(zip(distinct, comm.tolist(), exposed.tolist(), strict=True))
    return found


def scrubber(state: LiveState, ranks: Sequence[int], cells: int) -> tuple[float | None, ...]:
    """Exposed share of the recorded time in each of `cells` equal parts of the run; None where nothing was recorded."""
    start, end = state.span()
    if cells < 1 or end <= start:
        return (None,) * max(cells, 0)
    edges = start + (end - start) * np.arange(cells + 1, dtype=np.int64) // cells
    recorded, exposed = np.zeros(cells, np.int64), np.zeros(cells, np.int64)
    for rank in ranks:
        held = state.ranks.get(rank)
        if held is None:
            continue
        recorded += np.diff(held.recorded.covered(edges)) * max(len(held.devices), 1)
        for sweep in held.devices.values():
            exposed += np.diff(sweep.tracks["exposed"].covered(edges))
    return tuple(
        alone / whole if whole else None for alone, whole in zip(exposed.tolist(), recorded.tolist(), strict=True)
    )
