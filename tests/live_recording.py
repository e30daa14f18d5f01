"""A recording made of real Arrow tables in memory, and slow references that count every nanosecond of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from moescope.collectors.schema import TABLES, arrow_schema

Row = dict[str, Any]


class MemorySource:
    """A `Source` whose rows a test adds piece by piece, as record batches do arrive."""

    def __init__(self, state: str = "finished", meta: Row | None = None) -> None:
        self.name = "memory"
        self.meta: Row = meta or {}
        self.state: Any = state
        self.torn: list[str] = []
        self._batches: dict[str, list[pa.RecordBatch]] = {name: [] for name in TABLES}
        self._new = True

    def add(self, table: str, rows: list[Row]) -> MemorySource:
        """One more batch of a table; columns that a row does not name are null."""
        schema = arrow_schema(table)
        columns = {name: [row.get(name) for row in rows] for name in schema.names}
        self._batches[table].append(pa.RecordBatch.from_pydict(columns, schema=schema))
        self._new = True
        return self

    def forget(self, table: str, batch: int) -> None:
        """Lose one batch, as a rotated segment."""
        del self._batches[table][batch]
        self._new = True

    def poll(self) -> bool:
        new, self._new = self._new, False
        return new

    def table(self, name: str) -> pa.Table:
        return pa.Table.from_batches(self._batches[name], schema=arrow_schema(name))

    def ranks(self) -> list[int]:
        found: set[int] = set()
        for name in ("kernels", "windows", "steps", "phases"):
            found.update(value for value in self.table(name).column("rank").to_pylist() if value is not None)
        return sorted(found)


def kernel(
    start: int, dur: int | None, kind: str = "compute", *, rank: int = 0, stream: str = "main", **more: Any
) -> Row:
    """A kernel row whose name leaves no doubt about its kind."""
    names = {"compute": "aten::mm", "comm": "gloo:all_to_all", "memory": "Memcpy HtoD", "unknown": "zzz_mystery"}
    row: Row = {
        "rank": rank,
        "device": "cpu",
        "stream": stream,
        "name": names[kind],
        "kind": kind if kind in ("comm", "memory") else None,
        "start_ns": start,
        "dur_ns": dur,
        "evidence": "measured",
    }
    return row | more


def window(start: int, dur: int, rank: int = 0) -> Row:
    return {"rank": rank, "source": "itt", "start_ns": start, "dur_ns": dur}


def step(number: int, start: int, dur: int, rank: int = 0, stage: str | None = "train") -> Row:
    return {"rank": rank, "step": number, "stage": stage, "source": "emit", "start_ns": start, "dur_ns": dur}


def phase(identity: int, name: str, start: int, dur: int, parent: int | None = None, rank: int = 0) -> Row:
    return {
        "rank": rank,
        "id": identity,
        "parent": parent,
        "name": name,
        "thread": "main",
        "start_ns": start,
        "dur_ns": dur,
    }


def bitmap(intervals: list[tuple[int, int]], size: int) -> NDArray[np.bool_]:
    """Which of the nanoseconds 0 … size - 1 lie in any of the intervals (start, duration)."""
    covered = np.zeros(size, np.bool_)
    for start, dur in intervals:
        covered[max(start, 0) : max(start + max(dur, 0), 0)] = True
    return covered


def device_bitmaps(kernels: list[Row], windows: list[Row], size: int) -> dict[str, NDArray[np.bool_]]:
    """What one device does in each nanosecond inside recorded windows."""
    recorded = bitmap([(row["start_ns"], row["dur_ns"]) for row in windows], size)

    def of(kind: str | None) -> NDArray[np.bool_]:
        named = {"aten::mm": "compute", "gloo:all_to_all": "comm", "Memcpy HtoD": "memory", "zzz_mystery": "unknown"}
        rows = [row for row in kernels if kind is None or named[row["name"]] == kind]
        return bitmap([(row["start_ns"], row["dur_ns"] or 0) for row in rows], size) & recorded

    compute, comm = of("compute"), of("comm")
    return {
        "recorded": recorded,
        "compute": compute,
        "comm": comm,
        "overlapped": compute & comm,
        "exposed": comm & ~compute,
        "memory": of("memory"),
        "unknown": of("unknown"),
        "busy": of(None),
    }
