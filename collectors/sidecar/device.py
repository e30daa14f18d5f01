"""From what a GPU did, as the C library's records or PyTorch's profiler tell it, to kernels and synchronisations."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.ring_reader import EXECUTION, Records
from moescope.collectors.ring_reader import RECORD as RING_RECORD
from moescope.collectors.sidecar.batch import Batch, Origin, with_nulls
from moescope.collectors.sidecar.names import NCCL, Names
from moescope.collectors.structured import pick

if TYPE_CHECKING:
    import pyarrow as pa

_FIELDS: Final = (
    *(
        ("start_ns", "<i8"),
        ("dur_ns", "<i8"),
        ("phase", "<u8"),
        ("graph_node", "<u8"),
        ("bytes", "<u8"),
        ("call", "<u8"),
    ),
    *(("name", "<u4"), ("correlation", "<u4"), ("device", "<u4"), ("context", "<u4"), ("stream", "<u4")),
    *(("grid", "<u4", (3,)), ("block", "<u4", (3,)), ("registers", "<u4"), ("shared_bytes", "<u4")),
    *(("work", "u1"), ("copy_kind", "u1"), ("joined", "u1"), ("reserved", "u1")),
)
RECORD: Final = np.dtype(list(_FIELDS))
"""`struct device_record` of collectors/native/device.h."""

KERNEL, COPY, SET, SYNC = range(1, 5)
_BETWEEN_DEVICES: Final = 10
"""CUPTI's kind of copies from one device to another: they communicate, which the classifier knows by their name."""
_UNKNOWN: Final = 2**32 - 1


def _none(dtype: str = "<i8") -> npt.NDArray[Any]:
    return np.empty(0, dtype)


@dataclass(frozen=True)
class Launched:
    """Calls that kernels of NCCL's execute, a row for each call of a kernel.

    calls: numbers of the calls; at: where the kernel was told; start_ns, end_ns, name: of the kernel; [rows] each
    """

    calls: npt.NDArray[np.int64] = field(default_factory=_none)
    at: npt.NDArray[np.intp] = field(default_factory=_none)
    start_ns: npt.NDArray[np.int64] = field(default_factory=_none)
    end_ns: npt.NDArray[np.int64] = field(default_factory=_none)
    name: npt.NDArray[np.uint32] = field(default_factory=_none)

    def before(self, count: int) -> Launched:
        """What was told before a place."""
        if not len(self.at) or self.at[-1] < count:
            return self
        return self.where(self.at < count)

    def where(self, rows: npt.NDArray[Any]) -> Launched:
        return Launched(self.calls[rows], self.at[rows], self.start_ns[rows], self.end_ns[rows], self.name[rows])

    def executions(self) -> Records:
        """An execution range for each call, over all of its kernels."""
        numbers, first, which = np.unique(self.calls, return_index=True, return_inverse=True)
        ranges = np.zeros(len(numbers), RING_RECORD)
        start_ns, end_ns = self.start_ns[first], self.end_ns[first]
        np.minimum.at(start_ns, which, self.start_ns)
        np.maximum.at(end_ns, which, self.end_ns)
        ranges["type"], ranges["b"], ranges["name"] = EXECUTION, numbers, self.name[first]
        ranges["start_ns"], ranges["dur_ns"] = start_ns, end_ns - start_ns
        return ranges


def launched(
    records: npt.NDArray[np.void], at: npt.NDArray[np.intp], names: Names, together: dict[int, list[int]]
) -> Launched:
    """The calls whose kernels are among the records.

    records: RECORD; at: [records], rising, where each was told; together: calls that one kernel executes, by its number
    """
    of_calls = (records["call"] > 0) & (records["work"] == KERNEL)
    of_calls[of_calls] = names.kinds[records["name"][of_calls]] == NCCL
    some = pick(records, of_calls)
    rows = Launched(
        some["call"].astype(np.int64), at[of_calls], some["start_ns"], some["start_ns"] + some["dur_ns"], some["name"]
    )
    if not together:
        return rows
    members = [together.get(number, [number]) for number in rows.calls.tolist()]
    repeated = rows.where(np.repeat(np.arange(len(members)), [len(one) for one in members]))
    return Launched(
        np.array([number for one in members for number in one], np.int64),
        *(repeated.at, repeated.start_ns, repeated.end_ns, repeated.name),
    )


def device_records(origin: Origin, records: npt.NDArray[np.void], names: Names, batch: Batch) -> None:
    """Rows of `kernels` and `synchronisations`.

    records: RECORD, times on CLOCK_MONOTONIC
    """
    origin.devices.update(f"cuda:{number}" for number in np.unique(records["device"]).tolist() if number != _UNKNOWN)
    waits = records["work"] == SYNC
    for table, part in (("kernels", pick(records, ~waits)), ("synchronisations", pick(records, waits))):
        if len(part):
            batch.add_columns(table, len(part), _columns(origin, part, names, kernels=table == "kernels"))


def _columns(origin: Origin, records: npt.NDArray[np.void], names: Names, *, kernels: bool) -> dict[str, Any]:
    import pyarrow as pa

    columns: dict[str, Any] = {
        "rank": origin.rank,
        "device": _labels(records["device"], "cuda:{}"),
        "stream": _labels(records["stream"], "{}"),
        "name": names.take(records["name"]),
        "start_ns": records["start_ns"] + origin.clock.offset_ns,
        "dur_ns": records["dur_ns"],
        "correlation": records["correlation"].astype(np.int64) + origin.id_base,
        "phase_id": origin.ids(records["phase"]),
        "evidence": "measured",
    }
    if not kernels:
        return columns
    launched, copied = records["work"] == KERNEL, records["work"] != KERNEL
    plain = copied & (records["copy_kind"] != _BETWEEN_DEVICES)
    return columns | {
        "kind": pa.array(["memory"], pa.string()).take(pa.array(np.zeros(len(records), np.int64), mask=~plain)),
        "grid": _dimensions(records["grid"], launched),
        "block": _dimensions(records["block"], launched),
        "registers": with_nulls(records["registers"].astype(np.int32), ~launched),
        "shared_bytes": with_nulls(records["shared_bytes"].astype(np.int64), ~launched),
        "bytes": with_nulls(records["bytes"].astype(np.int64), ~copied),
        "graph_node": with_nulls(records["graph_node"].astype(np.int64), records["graph_node"] == 0),
    }


def _labels(numbers: npt.NDArray[np.uint32], text: str) -> pa.Array:
    """Texts of numbers, null for CUPTI's "none"."""
    import pyarrow as pa

    known, which = np.unique(numbers, return_inverse=True)
    texts = [None if number == _UNKNOWN else text.format(number) for number in known.tolist()]
    return pa.array(texts, pa.string()).take(pa.array(which))


def _dimensions(sizes: npt.NDArray[np.uint32], known: npt.NDArray[np.bool_]) -> pa.Array:
    """`x,y,z` of sizes [rows, 3]; null where not known."""
    import pyarrow as pa

    # CUDA has at most 2^31 of the first and 2^16 of the others.
    x, y, z = (sizes[:, i].astype(np.uint64) for i in range(3))
    _, first, which = np.unique(x << 32 | y << 16 | z, return_index=True, return_inverse=True)
    texts = pa.array([",".join(map(str, one)) for one in sizes[first].tolist()], pa.string())
    return texts.take(pa.array(which, mask=~known))


def told_kernels(origin: Origin, rows: list[list[Any]], batch: Batch) -> None:
    """Rows of `kernels` from PyTorch's profiler (collectors/agent/kineto.py)."""
    for device, stream, name, start, dur, correlation in rows:
        origin.devices.add(f"cuda:{device}")
        row = {"rank": origin.rank, "device": f"cuda:{device}", "stream": str(stream), "name": name}
        row |= {"start_ns": origin.epoch(start), "dur_ns": dur, "correlation": correlation + origin.id_base}
        batch.add("kernels", row | {"evidence": "measured"})
