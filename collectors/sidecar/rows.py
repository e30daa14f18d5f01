"""From records to rows of the recording's tables, for all that needs no waiting: many at once where they are many."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.packed import FORMATS, NONE, PREFIX, Format
from moescope.collectors.ring_reader import BETWEEN, PHASE, STEP, WINDOW, Records, blob_bytes
from moescope.collectors.sidecar.batch import Batch, Origin, context_columns, split_context, with_nulls
from moescope.collectors.sidecar.names import ISSUES, Names
from moescope.collectors.sidecar.operators import leaves
from moescope.collectors.structured import pick, values


def operators(origin: Origin, tid: int, records: Records, names: Names, batch: Batch) -> None:
    """Kernels from whole operator trees of one thread.

    records: OPERATOR alone
    """
    if not len(records):
        return
    import pyarrow as pa

    # c10d's own ranges issue calls; the calls themselves are in `collectives`.
    kernels = where(records, leaves(records) & (names.kinds[records["name"]] != ISSUES))
    flops, shapes = kernels["b"].astype(np.int64), kernels["c"]
    columns: dict[str, Any] = {
        "rank": origin.rank,
        "device": origin.device,
        "stream": origin.label(tid),
        "name": names.take(kernels["name"]),
        "start_ns": kernels["start_ns"] + origin.clock.offset_ns,
        "dur_ns": kernels["dur_ns"],
        "phase_id": origin.ids(kernels["a"]),
        "flops": with_nulls(flops, flops == 0),
        "evidence": "measured",
    }
    loops = (kernels["flags"] & BETWEEN) != 0
    if loops.any():
        # What lies between two operators of a compiled graph: its loops, and a little Python.
        columns["evidence"] = pa.array(["measured", "derived"], pa.string()).take(pa.array(loops.astype(np.int64)))
    if shapes.any():
        columns["shapes"] = names.take(shapes)
    if len(kernels):
        batch.add_columns("kernels", len(kernels), columns)


def ranges(origin: Origin, tid: int, records: Records, names: Names, batch: Batch) -> None:
    """Phases, steps and windows of one thread."""
    types = records["type"]
    phases = where(records, types == PHASE)
    if len(phases):
        columns = {
            "rank": origin.rank,
            "id": origin.ids(phases["a"]),
            "parent": origin.ids(phases["b"]),
            "name": names.take(phases["name"]),
            "direction": names.directions(phases["name"]),
            "thread": origin.label(tid),
            "start_ns": phases["start_ns"] + origin.clock.offset_ns,
            "dur_ns": phases["dur_ns"],
        }
        batch.add_columns("phases", len(phases), columns | context_columns(phases["c"]))
    for record in pick(records, np.flatnonzero((types == STEP) | (types == WINDOW))):
        start, dur = origin.epoch(record["start_ns"]), int(record["dur_ns"])
        row: dict[str, Any] = {"rank": origin.rank, "start_ns": start, "dur_ns": dur, "source": names[record["name"]]}
        if int(record["type"]) == WINDOW:
            batch.add("windows", row)
        else:
            context = split_context(int(record["c"]))
            batch.add("steps", row | {"step": context["step"], "stage": context["stage"]})


_DTYPES = {
    kind: np.dtype(
        [(name, "<i8") for name in format.integers]
        + [(name, "<f8") for name in format.floats]
        + [(name, "<u4") for name in format.names]
    )
    for kind, format in FORMATS.items()
}


def packed(origin: Origin, tid: int, records: Records, heads: npt.NDArray[np.intp], names: Names, batch: Batch) -> bool:
    """Rows that a model emitted packed (collectors/agent/packed.py); whether kernels that communicate were among them.

    heads: places of these blobs in `records`
    """
    communicates = False
    numbers = records["name"][heads]
    for number in values(numbers):
        kind = names[number].removeprefix(PREFIX)
        format = FORMATS[kind]
        places = heads[numbers == number]
        if kind == "experts":
            _experts_packed(origin, records, places, batch)
            continue
        rows = blob_bytes(records, places, _DTYPES[kind].itemsize).view(_DTYPES[kind])[:, 0]
        columns = _stamps(origin, tid, pick(records, places)) | _columns(origin, format, rows, names)
        batch.add_columns(format.table, len(rows), columns)
        if kind == "kernel":
            communicates |= any(names[kind] == "comm" for kind in values(rows["kind"]))
    return communicates


def _experts_packed(origin: Origin, records: Records, heads: npt.NDArray[np.intp], batch: Batch) -> None:
    """A row for each expert; layers may have different numbers of them."""
    sizes = records["dur_ns"][heads]
    for size in values(sizes):
        places = heads[sizes == size]
        # layer, first expert, and the tokens of each expert from there on
        words = blob_bytes(records, places, size).view("<i8")
        count = words.shape[1] - 2
        if not count:
            continue
        told = np.repeat(places, count)
        columns = context_columns(records["b"][told]) | {
            "rank": origin.rank,
            "t_ns": records["start_ns"][told] + origin.clock.offset_ns,
            "layer": np.repeat(words[:, 0], count),
            "expert": (words[:, 1:2] + np.arange(count)).ravel(),
            "tokens": words[:, 2:].ravel(),
        }
        batch.add_columns("experts", len(told), columns)


def _columns(origin: Origin, format: Format, rows: npt.NDArray[np.void], names: Names) -> dict[str, Any]:
    columns: dict[str, Any] = {name: rows[name] for name in format.floats}
    for name in format.integers:
        numbers = rows[name]
        # Times are on the target's clock.
        shifted = numbers + origin.clock.offset_ns if name == "start_ns" else numbers
        columns[name] = with_nulls(shifted, numbers == NONE)
    return columns | {name: names.take(rows[name]) for name in format.names}


def _stamps(origin: Origin, tid: int, records: Records) -> dict[str, Any]:
    """What any emitted row may carry: when, and in which step, stage and phase it was told."""
    return {
        "rank": origin.rank,
        "device": origin.device,
        "stream": origin.label(tid),
        "t_ns": records["start_ns"] + origin.clock.offset_ns,
        "phase_id": origin.ids(records["a"]),
        "evidence": "measured",
    } | context_columns(records["b"])


def told(origin: Origin, tid: int, kind: str, record: Any, payload: Any, batch: Batch) -> None:
    """Rows that were emitted as JSON; nothing for a kind that is no table's."""
    write = _TOLD.get(kind)
    if write is not None:
        write(origin, tid, record, payload, batch)


def _stamped(origin: Origin, record: Any, *keys: str) -> dict[str, Any]:
    context = split_context(int(record["b"]))
    return {"rank": origin.rank, "t_ns": origin.epoch(record["start_ns"])} | {key: context[key] for key in keys}


def _log(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    batch.add("log", {"t_ns": origin.epoch(record["start_ns"]), "rank": origin.rank, "dropped": 0} | payload)


def _experts(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    head = _stamped(origin, record, "step", "stage") | {"layer": payload["layer"]}
    for i, tokens in enumerate(payload["tokens"]):
        batch.add("experts", head | {"expert": payload["first_expert"] + i, "tokens": int(tokens)})


def _quantisation(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    batch.add("quantisation", _stamped(origin, record, "step") | payload)


def _work(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    batch.add("work", _stamped(origin, record, "step", "stage") | {"phase_id": origin.id(record["a"])} | payload)


def _gauges(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    head = _stamped(origin, record, "step", "stage")
    for name, value, unit, evidence in payload["values"]:
        batch.add("gauges", head | {"name": name, "value": float(value), "unit": unit, "evidence": evidence})


def _transfers(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    row = payload | {"rank": origin.rank, "evidence": "measured", "start_ns": origin.epoch(payload["start_ns"])}
    batch.add("transfers", row)


def _unit_intervals(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    head = {"rank": origin.rank} | {key: payload[key] for key in ("device", "launch", "role", "evidence")}
    for unit, start, end in zip(payload["units"], payload["start_ns"], payload["end_ns"], strict=True):
        times = {"start_ns": origin.epoch(start), "end_ns": origin.epoch(end)}
        batch.add("unit_intervals", head | {"unit": unit} | times)


def _kernel(origin: Origin, tid: int, record: Any, payload: Any, batch: Batch) -> None:
    row = payload | {"rank": origin.rank, "device": origin.device, "stream": origin.label(tid)}
    row |= {"start_ns": origin.epoch(payload["start_ns"]), "phase_id": origin.id(record["a"])}
    batch.add("kernels", row)


_TOLD: dict[str, Callable[[Origin, int, Any, Any, Batch], None]] = {
    "log": _log,
    "experts": _experts,
    "quantisation": _quantisation,
    "work": _work,
    "gauges": _gauges,
    "transfers": _transfers,
    "unit_intervals": _unit_intervals,
    "kernel": _kernel,
}


def where(records: Records, mask: npt.NDArray[np.bool_]) -> Records:
    """The marked records; no copy where that is all of them, as it mostly is."""
    return records if mask.all() else pick(records, mask)
