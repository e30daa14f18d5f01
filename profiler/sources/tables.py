"""The recording's tables of one rank from a trace's columns; kernels find their phase through their launch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.classify.classifier import is_host_call
from moescope.profiler.overlap.intervals import in_order
from moescope.profiler.sources.arrow import nullable, strings, table_of
from moescope.profiler.sources.collectives import collective_tables
from moescope.profiler.sources.columns import NO_INT, NO_TEXT, Codes, Columns, Ints, TraceColumns, count, picked
from moescope.profiler.sources.graphs import GRAPH_RANGE, loops_name, loops_of
from moescope.profiler.sources.nesting import NOBODY, Innermost, leaves, parents

if TYPE_CHECKING:
    import pyarrow as pa

STEP: Final = "ProfilerStep#"
COLLECTIVE_RANGES: Final = ("nccl:", "gloo:", "mpi:", "ucc:", "xccl:", "hccl:")
"""Names of the ranges that PyTorch itself puts around a collective: no phase of the model."""
EXECUTED_RANGES: Final = ("gloo:",)
"""Those of them that last as long as the collective runs: what communicates on the CPU backend."""


@dataclass(frozen=True, slots=True)
class _Phases:
    """Phases of a rank: rows of the ranges they come from, by thread and outer first; ids count from 1."""

    columns: Columns
    parent: Ints
    on_host: bool


def tables_of(columns: TraceColumns, me: int | None = None) -> tuple[dict[str, pa.Table], list[tuple[str, int]]]:
    """`kernels` in order of start, `phases`, `steps`, `collectives` and `transfers` of one trace, as those of rank 0,
    and what was left out of them, as `TraceColumns.notes`.

    Kernels are the device's; in a trace without any, the operators that the CPU backend executed. me: the rank whose
    trace it is, as the trace itself says: it alone is told to whom it sends
    """
    phases = _phases(columns)
    work = _device_work(columns)
    launched = _launch_rows(columns.launches, work["correlation"])
    phase_ids = _phase_ids(columns, phases, work, launched)
    collectives, transfers, left_out = collective_tables(columns, work, phase_ids, me)
    on_device = count(columns.work) > 0
    return {
        "kernels": _kernel_table(columns, work, launched, phase_ids) if on_device else _operator_table(columns, phases),
        "phases": _phase_table(columns, phases),
        "steps": _step_table(columns),
        "collectives": collectives,
        "transfers": transfers,
    }, [(f"to whom {left_out} all-to-alls and sends went is left out: too many rows", 0)] if left_out else []


def _named(columns: TraceColumns, rows: Columns, holds: Callable[[str], bool]) -> NDArray[np.bool_]:
    """[rows] whether `holds` is true of their names, asked once for each."""
    used, inverse = np.unique(rows["name"], return_inverse=True)
    return np.array([holds(columns.texts[code]) for code in used.tolist()], np.bool_)[inverse.reshape(-1)]


def _is_phase(name: str) -> bool:
    return not name.startswith((STEP, *COLLECTIVE_RANGES))


def _step_number(name: str) -> int | None:
    number = name.removeprefix(STEP)
    return int(number) if name.startswith(STEP) and number.isdecimal() and len(number) < 19 else None


def _phases(columns: TraceColumns) -> _Phases:
    """The annotations of the host, and those of the device only where the host has none."""
    for ranges, on_host in ((columns.ranges, True), (columns.device_ranges, False)):
        chosen = picked(ranges, _named(columns, ranges, _is_phase))
        if count(chosen):
            order = np.lexsort((-chosen["dur"], chosen["start"], chosen["thread"]))
            chosen = picked(chosen, order)
            parent = np.full(len(order), NOBODY, np.int64)
            for first, last in _runs(chosen["thread"]):
                if last - first == 1:
                    continue
                ends = chosen["start"][first:last] + chosen["dur"][first:last]
                above = parents(chosen["start"][first:last], ends)
                parent[first:last] = np.where(above == NOBODY, NOBODY, above + first)
            return _Phases(chosen, parent, on_host)
    return _Phases(picked(columns.ranges, np.empty(0, np.int64)), np.empty(0, np.int64), True)


def _runs(sorted_keys: NDArray[Any]) -> list[tuple[int, int]]:
    """First and last + 1 row of every run of equal keys."""
    if not len(sorted_keys):
        return []
    edges = np.flatnonzero(np.diff(sorted_keys)) + 1
    bounds = [0, *edges.tolist(), len(sorted_keys)]
    return list(pairwise(bounds))


def _device_work(columns: TraceColumns) -> Columns:
    """Device work in order of start, without calls that only issue work."""
    work = picked(columns.work, ~_named(columns, columns.work, is_host_call))
    return picked(work, in_order(work["start"]))


def _phase_ids(columns: TraceColumns, phases: _Phases, work: Columns, launched: Ints) -> Ints:
    """[work] id of the innermost annotation around each launch, 0 outside all: on its thread, else on another one of
    its process. launched: [work] row of each launch

    The backward pass launches from a thread of its own while the thread that called it waits inside its annotation.
    Without annotations on the host, those of the kernel's own stream.
    """
    found = np.zeros(count(work), np.int64)
    if not count(phases.columns) or not len(found):
        return found
    threads, times = work["thread"].astype(np.int64), work["start"]
    waiting = np.ones(len(found), np.bool_)
    if phases.on_host:
        waiting = launched != NOBODY
        if not waiting.any():
            return found
        launch = np.where(waiting, launched, 0)
        threads, times = columns.launches["thread"][launch].astype(np.int64), columns.launches["start"][launch]
    _fill(found, waiting, threads, times, phases, phases.columns["thread"].astype(np.int64))
    if phases.on_host:
        process_of = _numbered([(thread.process, thread.group) for thread in columns.threads])
        waiting &= found == 0
        _fill(found, waiting, process_of[threads], times, phases, process_of[phases.columns["thread"]])
    return found


def _numbered(keys: list[tuple[str, str]]) -> Ints:
    known: dict[tuple[str, str], int] = {}
    return np.array([known.setdefault(key, len(known)) for key in keys], np.int64)


def _launch_rows(launches: Columns, correlations: Ints) -> Ints:
    """[correlations] row of the last launch with each, NOBODY where there is none."""
    if not count(launches):
        return np.full(len(correlations), NOBODY, np.int64)
    order = np.argsort(launches["correlation"], kind="stable")
    known = launches["correlation"][order]
    at = np.searchsorted(known, correlations, side="right") - 1
    rows: Ints = np.where((at >= 0) & (known[at] == correlations), order[at], NOBODY)
    return rows


def _fill(found: Ints, waiting: NDArray[np.bool_], keys: Ints, times: Ints, phases: _Phases, owners: Ints) -> None:
    """Give each waiting row the innermost phase, at its time, of those whose owner is the row's key.

    found: [rows] ids, written; waiting, keys, times: [rows]; owners: [phases]
    """
    rows = np.flatnonzero(waiting)
    rows = rows[np.argsort(keys[rows], kind="stable")]
    by_owner = np.argsort(owners, kind="stable")
    sorted_owners = owners[by_owner]
    starts, ends = phases.columns["start"], phases.columns["start"] + phases.columns["dur"]
    for first, last in _runs(keys[rows]):
        key = keys[rows[first]]
        low, high = np.searchsorted(sorted_owners, [key, key + 1])
        if low == high:
            continue
        own = by_owner[low:high]
        inner = Innermost(starts[own], ends[own]).at(times[rows[first:last]])
        hit = inner != NOBODY
        found[rows[first:last][hit]] = own[inner[hit]] + 1


def _kernel_table(columns: TraceColumns, work: Columns, launched: Ints, phase_ids: Ints) -> pa.Table:
    call = _calls(columns, work, launched)
    told = work["dtype"] != NO_TEXT
    devices = work["device"]
    numbers, device_codes = np.unique(devices, return_inverse=True)
    return table_of(
        "kernels",
        count(work),
        rank=np.zeros(len(devices)),
        device=strings(device_codes.astype(np.int32), [f"cuda:{number}" for number in numbers.tolist()]),
        stream=strings(work["stream"], columns.texts),
        name=strings(work["name"], columns.texts),
        start_ns=work["start"] + columns.base_ns,
        dur_ns=work["dur"],
        correlation=nullable(work["correlation"]),
        phase_id=nullable(np.where(phase_ids == 0, NO_INT, phase_ids)),
        grid=strings(work["grid"], columns.texts),
        block=strings(work["block"], columns.texts),
        registers=nullable(work["registers"]),
        shared_bytes=nullable(work["shared"]),
        shapes=strings(call.shapes, columns.texts),
        bytes=nullable(work["bytes"]),
        dtype=strings(np.where(told, work["dtype"], call.dtype).astype(np.int32), columns.texts),
        evidence=strings(np.zeros(len(devices), np.int32), ["measured"]),
        op=strings(call.op, columns.texts),
        op_call=nullable(call.number),
    )


@dataclass(frozen=True, slots=True)
class _Calls:
    """[work] of the operator's call that launched each: codes of its name, operands and their type; its number."""

    op: Codes
    number: Ints
    shapes: Codes
    dtype: Codes


def _calls(columns: TraceColumns, work: Columns, launched: Ints) -> _Calls:
    """The innermost operator around each kernel's launch, on the thread of the launch.

    A launch that several kernels share is that of a whole graph: what was around it tells nothing about one of them.
    """
    operators = columns.operators
    call = np.full(count(work), NOBODY, np.int64)
    _, inverse, shared = np.unique(work["correlation"], return_inverse=True, return_counts=True)
    alone = np.flatnonzero((launched != NOBODY) & (shared[inverse] == 1)) if len(call) else call
    launch = launched[alone]
    by_thread = np.argsort(operators["thread"], kind="stable")
    threads = operators["thread"][by_thread]
    order = np.argsort(columns.launches["thread"][launch], kind="stable")
    alone, launch = alone[order], launch[order]
    for first, last in _runs(columns.launches["thread"][launch]):
        thread = columns.launches["thread"][launch[first]]
        own = by_thread[slice(*np.searchsorted(threads, [thread, thread + 1]))]
        if len(own):
            starts = operators["start"][own]
            found = Innermost(starts, starts + operators["dur"][own]).at(columns.launches["start"][launch[first:last]])
            call[alone[first:last]] = np.where(found == NOBODY, NOBODY, own[found])
    known = call != NOBODY
    row = np.where(known, call, 0)

    def of(column: str) -> Codes:
        values = operators[column][row] if count(operators) else np.zeros(len(row), np.int32)
        return np.where(known, values, NO_TEXT).astype(np.int32)

    return _Calls(of("name"), np.where(known, call + 1, NO_INT), of("shapes"), of("dtype"))


def _phase_table(columns: TraceColumns, phases: _Phases) -> pa.Table:
    rows = count(phases.columns)
    prefix = "" if phases.on_host else "stream "
    parent = np.where(phases.parent == NOBODY, NO_INT, phases.parent + 1)
    return table_of(
        "phases",
        rows,
        rank=np.zeros(rows),
        id=np.arange(1, rows + 1),
        parent=nullable(parent),
        name=strings(phases.columns["name"], columns.texts),
        thread=strings(phases.columns["thread"], [prefix + thread.label for thread in columns.threads]),
        start_ns=phases.columns["start"] + columns.base_ns,
        dur_ns=phases.columns["dur"],
    )


def _step_table(columns: TraceColumns) -> pa.Table:
    is_step = _named(columns, columns.ranges, lambda name: _step_number(name) is not None)
    steps = picked(columns.ranges, is_step)
    rows = count(steps)
    return table_of(
        "steps",
        rows,
        rank=np.zeros(rows),
        step=np.array([_step_number(columns.texts[code]) for code in steps["name"].tolist()], np.int64),
        source=strings(np.zeros(rows, np.int32), ["profiler_step"]),
        start_ns=steps["start"] + columns.base_ns,
        dur_ns=steps["dur"],
    )


def _operator_table(columns: TraceColumns, phases: _Phases) -> pa.Table:
    """Kernels of the CPU backend: leaf operators, and the ranges in which a backend executes collectives."""
    executed = _named(columns, columns.ranges, lambda name: name.startswith(EXECUTED_RANGES))
    extra = picked(columns.ranges, executed)
    nothing = np.full(count(extra), NO_TEXT, np.int32)
    both = {name: np.concatenate((values, extra.get(name, nothing))) for name, values in columns.operators.items()}
    both["key"] = both["thread"].astype(np.int64)
    both = picked(both, np.lexsort((-both["dur"], both["start"], both["key"])))
    told = len(columns.texts)
    columns, both = _with_loops(columns, both)
    ends = both["start"] + both["dur"]
    kept = [first + leaves(both["start"][first:last], ends[first:last]) for first, last in _runs(both["key"])]
    own = picked(both, np.concatenate(kept) if kept else np.empty(0, np.int64))
    own = picked(own, ~_named(columns, own, is_host_call))
    own = picked(own, np.argsort(own["start"], kind="stable"))
    rows = count(own)
    phase_ids = np.zeros(rows, np.int64)
    _fill(
        phase_ids, np.ones(rows, np.bool_), own["key"], own["start"], phases, phases.columns["thread"].astype(np.int64)
    )
    return table_of(
        "kernels",
        rows,
        rank=np.zeros(rows),
        device=strings(np.zeros(rows, np.int32), ["cpu"]),
        stream=strings(own["thread"], [thread.label for thread in columns.threads]),
        name=strings(own["name"], columns.texts),
        start_ns=own["start"] + columns.base_ns,
        dur_ns=own["dur"],
        phase_id=nullable(np.where(phase_ids == 0, NO_INT, phase_ids)),
        shapes=strings(own["shapes"], columns.texts),
        dtype=strings(own["dtype"], columns.texts),
        evidence=strings((own["name"] >= told).astype(np.int32), ["measured", "derived"]),
    )


def _with_loops(columns: TraceColumns, ranges: dict[str, NDArray[Any]]) -> tuple[TraceColumns, dict[str, NDArray[Any]]]:
    """The ranges of all threads, and what compiled graphs do between them, under names of their own."""
    is_graph = _named(columns, ranges, lambda name: name.startswith(GRAPH_RANGE))
    if not is_graph.any():
        return columns, ranges
    ends = ranges["start"] + ranges["dur"]
    texts, number = list(columns.texts), dict[int, int]()
    for code in np.unique(ranges["name"][is_graph]).tolist():
        number[code] = len(texts)
        texts.append(loops_name(columns.texts[code]))
    added: list[Columns] = []
    for first, last in _runs(ranges["key"]):
        begin, end, graph = loops_of(ranges["start"][first:last], ends[first:last], is_graph[first:last])
        loops = picked(ranges, first + graph)
        loops |= {"start": begin, "dur": end - begin, "shapes": np.full(len(begin), NO_TEXT, np.int32)}
        loops["name"] = np.array([number[code] for code in loops["name"].tolist()], np.int32)
        added.append(loops)
    all_ranges = {name: np.concatenate((values, *(one[name] for one in added))) for name, values in ranges.items()}
    order = np.lexsort((-all_ranges["dur"], all_ranges["start"], all_ranges["key"]))
    return replace(columns, texts=texts), picked(all_ranges, order)
