"""Where kernels belong: the phase around their launch, and by it the layer, micro-batch, step, stage and direction.

A kernel of a GPU runs long after its launch, so time on the device tells nothing: its phase is the one around its
launch, which the source has joined (`kernels.phase_id`). Kernels of a CUDA graph share one launch and so one phase.
How much of the time has a phase at all is stated.
"""

from __future__ import annotations

import heapq
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times
from moescope.profiler.overlap.sweep import NO_PHASE, DeviceKernels, Sweep, counted_ns

if TYPE_CHECKING:
    import pyarrow as pa

NOWHERE: Final = -1
_LAYER: Final = re.compile(r"(?<![a-z])(?:layers?|blocks?|decoder_?layers?)[ ._:#-]?(\d{1,6})(?!\d)", re.IGNORECASE)
_MICRO_BATCH: Final = re.compile(r"(?<![a-z])(?:micro_?batch|ubatch|mb)[ ._:#-]?(\d{1,6})(?!\d)", re.IGNORECASE)
_DEEPEST: Final = 128
IN_ORDER: Final = [("start_ns", "ascending"), ("dur_ns", "descending")]
"""Of ranges that begin at once, the inner one last."""


@dataclass(frozen=True, slots=True)
class Coverage:
    """How many of a device's kernels have a phase, and how much of their time; times ns, sums inside the counted time.

    graph_launches, graph_kernels, graph_ns: launches that several kernels share, these kernels, and their time
    """

    kernels: int
    with_phase: int
    time_ns: int
    with_phase_ns: int
    graph_launches: int
    graph_kernels: int
    graph_ns: int

    @property
    def share(self) -> float | None:
        """Share of the kernels' time that has a phase, None where no kernel takes time."""
        return self.with_phase_ns / self.time_ns if self.time_ns else None


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each kernel of a device belongs.

    phase: [kernels] index into phase_names; step: [kernels] index into step_names; layer, micro_batch: [kernels]
    numbers; NOWHERE where it is not told; stage, direction: [kernels] str, empty where not told; inferred: which of
    `layer`, `micro_batch` and `step` were read from names, or from times on a device, somewhere
    """

    phase_names: tuple[str, ...]
    phase: Times
    step_names: tuple[str, ...]
    step: Times
    layer: Times
    micro_batch: Times
    stage: NDArray[np.object_]
    direction: NDArray[np.object_]
    inferred: frozenset[str]
    coverage: Coverage


def place(kernels: DeviceKernels, swept: Sweep, table: pa.Table, phases: pa.Table, steps: pa.Table) -> Placement:
    """Place every kernel of one device.

    table: `kernels`, which `kernels.rows` count in; phases, steps: of all ranks
    """
    own = _of_rank(phases, kernels.rank)
    read = _phases(own)
    told = _steps(_of_rank(steps, kernels.rank), own, read)
    rows = phase_rows(kernels, read.ids, read.starts, read.ends)
    names, numbers = _distinct(read.names)
    step = _at(told.of_phase, rows, NOWHERE)
    inferred = set(read.inferred)
    lost = np.flatnonzero(step < 0)
    step[lost] = _number_at(latest_open(told.starts, told.ends, kernels.starts[lost]), told.number)
    if not kernels.device.startswith("cpu") and (step[lost] >= 0).any():
        inferred.add("step")
    return Placement(
        phase_names=names,
        phase=_at(numbers, rows, NOWHERE),
        step_names=told.names,
        step=step,
        layer=_at(read.layer, rows, NOWHERE),
        micro_batch=_at(read.micro_batch, rows, NOWHERE),
        stage=_at(read.stage, rows, ""),
        direction=_at(read.direction, rows, ""),
        inferred=frozenset(inferred),
        coverage=_coverage(kernels, swept, table, rows >= 0),
    )


def _at(values: NDArray[Any], rows: Times, missing: Any) -> NDArray[Any]:
    """The value at each row: [kernels]; `missing` at NOWHERE."""
    found = np.full(len(rows), missing, values.dtype)
    found[rows >= 0] = values[rows[rows >= 0]]
    return found


def phase_rows(kernels: DeviceKernels, ids: Times, starts: Times, ends: Times) -> Times:
    """Row of each kernel's innermost phase: [kernels]; NOWHERE where there is none.

    By `phase_id`; on the CPU backend, where a kernel runs while its phase is open, else by the time of its start.

    ids, starts, ends: [phases] in order of start
    """
    rows = np.full(len(kernels.starts), NOWHERE, np.int64)
    if not len(ids):
        return rows
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], kernels.phases), len(order) - 1)
    known = (kernels.phases != NO_PHASE) & (ids[order][at] == kernels.phases)
    rows[known] = order[at][known]
    if kernels.device.startswith("cpu"):
        lost = np.flatnonzero(~known)
        rows[lost] = latest_open(starts, ends, kernels.starts[lost])
    return rows


def latest_open(starts: Times, ends: Times, times: Times) -> Times:
    """Which of the ranges that are open at each time began last: [times]; NOWHERE where none is.

    starts, ends: [ranges] in order of start; of two that begin at once, the one that stands later
    """
    if not len(starts) or not len(times):
        return np.full(len(times), NOWHERE, np.int64)
    edges: list[int] = []
    owners: list[int] = []
    held: list[tuple[int, int]] = []
    listed = ends.tolist()
    bounds = np.unique(np.concatenate((starts, ends)))
    begins = np.searchsorted(starts, bounds, side="right").tolist()
    taken = 0
    for bound, until in zip(bounds.tolist(), begins, strict=True):
        for number in range(taken, until):
            heapq.heappush(held, (-number, listed[number]))
        taken = until
        while held and held[0][1] <= bound:
            heapq.heappop(held)
        edges.append(bound)
        owners.append(-held[0][0] if held else NOWHERE)
    at = np.searchsorted(np.array(edges, np.int64), times, side="right") - 1
    return np.where(at >= 0, np.array(owners, np.int64)[np.maximum(at, 0)], NOWHERE)


@dataclass(frozen=True, slots=True)
class _Phases:
    """A rank's phases in order of start, and what each tells itself, by its name, or by what is around it: [phases]."""

    ids: Times
    starts: Times
    ends: Times
    names: NDArray[np.object_]
    layer: Times
    micro_batch: Times
    stage: NDArray[np.object_]
    direction: NDArray[np.object_]
    inferred: frozenset[str]


@dataclass(frozen=True, slots=True)
class _Steps:
    """A rank's steps.

    names: of the distinct ones; starts, ends: [rows] in order of start; number: [rows] index into the names;
    of_phase: [phases] the same, NOWHERE for a phase of no step
    """

    names: tuple[str, ...]
    starts: Times
    ends: Times
    number: Times
    of_phase: Times


def _phases(table: pa.Table) -> _Phases:
    ids = table.column("id").fill_null(NO_PHASE).to_numpy()
    starts, ends = _times(table)
    names = _words(table, "name")
    parents = _rows_of(table.column("parent").fill_null(NO_PHASE).to_numpy(), ids)
    inferred = set()
    numbers: dict[str, Times] = {}
    for column, pattern in (("layer", _LAYER), ("micro_batch", _MICRO_BATCH)):
        told = _numbers(table, column)
        read = _from_names(names, pattern)
        if ((told < 0) & (read >= 0)).any():
            inferred.add(column)
        numbers[column] = _inherited(np.where(told < 0, read, told), parents, NOWHERE)
    return _Phases(
        ids=ids,
        starts=starts,
        ends=ends,
        names=names,
        layer=numbers["layer"],
        micro_batch=numbers["micro_batch"],
        stage=_inherited(_words(table, "stage"), parents, ""),
        direction=_inherited(_words(table, "direction"), parents, ""),
        inferred=frozenset(inferred),
    )


def _steps(table: pa.Table, phases: pa.Table, read: _Phases) -> _Steps:
    """Steps, and that of each phase: as it tells, else the one that was open when it began, on the host as it did."""
    starts, ends = _times(table)
    keys: dict[tuple[str, int], int] = {}
    pairs = zip(_words(table, "stage").tolist(), _numbers(table, "step").tolist(), strict=True)
    number = np.array([keys.setdefault(pair, len(keys)) for pair in pairs], np.int64)
    of_phase = _number_at(latest_open(starts, ends, read.starts), number)
    parents = _rows_of(phases.column("parent").fill_null(NO_PHASE).to_numpy(), read.ids)
    told = _inherited(_numbers(phases, "step"), parents, NOWHERE)
    for at in np.flatnonzero(told >= 0).tolist():
        of_phase[at] = keys.setdefault((read.stage[at], int(told[at])), len(keys))
    names = tuple(f"{stage} {step}".strip() if step >= 0 else stage or "step" for stage, step in keys)
    return _Steps(names, starts, ends, number, of_phase)


def _number_at(rows: Times, number: Times) -> Times:
    return np.where(rows >= 0, number[np.maximum(rows, 0)], NOWHERE) if len(number) else np.full(len(rows), NOWHERE)


def _of_rank(table: pa.Table, rank: int) -> pa.Table:
    import pyarrow.compute as pc

    if not table.num_rows:
        return table
    return table.filter(pc.equal(table.column("rank"), rank)).sort_by(IN_ORDER)


def _times(table: pa.Table) -> tuple[Times, Times]:
    starts = table.column("start_ns").fill_null(0).to_numpy()
    return starts, starts + np.maximum(table.column("dur_ns").fill_null(0).to_numpy(), 0)


def _words(table: pa.Table, column: str) -> NDArray[np.object_]:
    return np.array([*table.column(column).fill_null("").to_pylist(), ""], object)[:-1]


def _numbers(table: pa.Table, column: str) -> Times:
    numbers: Times = table.column(column).cast("int64").fill_null(NOWHERE).to_numpy().copy()
    return numbers


def _rows_of(wanted: Times, ids: Times) -> Times:
    """Row of each id; NOWHERE for one that is not there."""
    if not len(ids):
        return np.empty(0, np.int64)
    order = np.argsort(ids, kind="stable")
    at = np.minimum(np.searchsorted(ids[order], wanted), len(ids) - 1)
    return np.where((ids[order][at] == wanted) & (wanted != NO_PHASE), order[at], NOWHERE)


def _inherited(values: NDArray[Any], parents: Times, missing: Any) -> NDArray[Any]:
    """Each phase's own value, else that of the nearest phase around it that has one."""
    values = values.copy()
    for _ in range(_DEEPEST):
        lost = np.flatnonzero((values == missing) & (parents >= 0))
        found = values[parents[lost]]
        lost, found = lost[found != missing], found[found != missing]
        if not len(lost):
            break
        values[lost] = found
    return values


def _from_names(names: NDArray[np.object_], pattern: re.Pattern[str]) -> Times:
    read: dict[str, int] = {}
    for name in set(names.tolist()):
        match = pattern.search(name)
        read[name] = int(match[1]) if match is not None else NOWHERE
    return np.fromiter((read[name] for name in names.tolist()), np.int64, len(names))


def _distinct(names: NDArray[np.object_]) -> tuple[tuple[str, ...], Times]:
    number: dict[str, int] = {}
    numbers = np.fromiter((number.setdefault(name, len(number)) for name in names.tolist()), np.int64, len(names))
    return tuple(number), numbers


def _coverage(kernels: DeviceKernels, swept: Sweep, table: pa.Table, has: NDArray[np.bool_]) -> Coverage:
    inside = counted_ns(kernels.starts, kernels.ends, swept.recorded)
    counts = (inside > 0) | (kernels.starts == kernels.ends)
    launches = _launches(kernels, table)
    shared = _sharing(launches) & counts
    return Coverage(
        kernels=int(counts.sum()),
        with_phase=int((has & counts).sum()),
        time_ns=int(inside.sum()),
        with_phase_ns=int(inside[has].sum()),
        graph_launches=len(np.unique(launches[shared])),
        graph_kernels=int(shared.sum()),
        graph_ns=int(inside[shared].sum()),
    )


def _launches(kernels: DeviceKernels, table: pa.Table) -> Times:
    """The launch of each kernel: [kernels]; NOWHERE where none is told. The CPU backend launches none."""
    import pyarrow as pa

    if kernels.device.startswith("cpu"):
        return np.full(len(kernels.starts), NOWHERE, np.int64)
    launches: Times = table.column("correlation").take(pa.array(kernels.rows)).fill_null(NOWHERE).to_numpy()
    return launches


def _sharing(launches: Times) -> NDArray[np.bool_]:
    """Which kernels share their launch with another: [kernels]."""
    order = np.argsort(launches, kind="stable")
    ordered = launches[order]
    alike = ordered[1:] == ordered[:-1]
    shared = np.zeros(len(launches), np.bool_)
    shared[order[1:][alike]] = True
    shared[order[:-1][alike]] = True
    return shared & (launches > 0)
