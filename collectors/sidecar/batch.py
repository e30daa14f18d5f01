"""What one drain of a process's ring finds, and what every row of it shares: rank, device, clock, names of threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import ThreadRecords
from moescope.collectors.schema import arrow_schema
from moescope.collectors.structured import values

if TYPE_CHECKING:
    import pyarrow as pa

MANY: Final = 2048
"""Rows of a value that are kept; where there are more they are made for the batch."""
SHORT: Final = 64
"""Characters of a value that is kept, at most: ranks of a large group are thousands."""

STAGES: Final = (None, "train", "prefill", "decode", "generate")
Rows = list[dict[str, Any]]


@dataclass
class Batch:
    """What one drain has found: Arrow batches where rows are many, plain rows where they are few."""

    tables: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    rows: dict[str, Rows] = field(default_factory=dict)
    commits: list[tuple[ThreadRecords, int]] = field(default_factory=list)

    def add(self, table: str, row: dict[str, Any]) -> None:
        """One row; columns that it lacks are null."""
        self.rows.setdefault(table, []).append(row)

    def add_columns(self, table: str, count: int, columns: dict[str, Any]) -> None:
        """`count` rows as columns (arrays of numpy or Arrow, or one value for all rows); the others are null."""
        import pyarrow as pa

        schema = arrow_schema(table)
        arrays = []
        for column in schema:
            value = columns.get(column.name)
            if value is None or isinstance(value, str | int):
                arrays.append(_repeated(value, column.type, count))
            else:
                arrays.append(value if isinstance(value, pa.Array) else pa.array(value, column.type))
        self.tables.setdefault(table, []).append(pa.RecordBatch.from_arrays(arrays, schema=schema))


@dataclass
class Origin:
    """Whose records these are.

    rank: -1 before it is known; id_base: added to the ids that the process counts itself, as a rank may be several
    processes, one after another; devices: GPUs that have run something;
    kernels_told: whether the process's kernels are those of its GPU
    """

    pid: int
    clock: Clock
    device: str = "cpu"
    rank: int = -1
    id_base: int = 0
    devices: set[str] = field(default_factory=set)
    kernels_told: bool = False
    _labels: dict[int, str] = field(default_factory=dict)

    def named(self, tid: int, name: str) -> None:
        """Takes what the thread has told of itself: the process may be gone when somebody asks."""
        if name and tid != self.pid and tid not in self._labels:
            self._labels[tid] = f"{name} {tid}"

    def label(self, tid: int) -> str:
        """The thread as people read it: `main` for the first, else its name as the system has it, and its id."""
        label = self._labels.get(tid)
        if label is None:
            label = "main" if tid == self.pid else f"{_thread_name(self.pid, tid)} {tid}"
            self._labels[tid] = label
        return label

    def id(self, number: int) -> int | None:
        """A phase's id in the rank; None for 0, no phase."""
        return int(number) + self.id_base if number else None

    def epoch(self, mono_ns: int) -> int:
        """ns since the epoch of a time on CLOCK_MONOTONIC."""
        return self.clock.epoch_ns(int(mono_ns))

    def ids(self, numbers: npt.NDArray[np.uint64]) -> pa.Array | None:
        """The same as `id`, for many."""
        return with_nulls(numbers.astype(np.int64) + self.id_base, numbers == 0)


def _repeated(value: str | int | None, type_: pa.DataType, count: int) -> pa.Array:
    """`count` rows of one value."""
    kept = count <= MANY and (not isinstance(value, str) or len(value) <= SHORT)
    return _many(value, type_).slice(0, count) if kept else _new_repeated(value, type_, count)


def _new_repeated(value: str | int | None, type_: pa.DataType, count: int) -> pa.Array:
    import pyarrow as pa

    return pa.nulls(count, type_) if value is None else pa.repeat(pa.scalar(value, type_), count)


@lru_cache(maxsize=512)
def _many(value: str | int | None, type_: pa.DataType) -> pa.Array:
    """Rows to take slices of: of 2,000 rows a slice takes 1 µs, a text made anew for each 14."""
    return _new_repeated(value, type_, MANY)


def split_context(word: int) -> dict[str, Any]:
    """stage, micro_batch, layer and step of a packed context (collectors/agent/recorder.py); None where not told."""
    micro_batch, layer, step = (word >> 8 & 0xFF) - 1, (word >> 16 & 0xFFFF) - 1, (word >> 32) - 1
    return {
        "stage": STAGES[word & 0xFF] if word & 0xFF < len(STAGES) else None,
        "micro_batch": None if micro_batch < 0 else micro_batch,
        "layer": None if layer < 0 else layer,
        "step": None if step < 0 else step,
    }


def context_columns(words: npt.NDArray[np.uint64]) -> dict[str, Any]:
    """The same as `split_context`, for many."""
    import pyarrow as pa

    numbers = words.astype(np.int64)
    stages = numbers & 0xFF
    told = values(stages)
    columns: dict[str, Any] = {}
    if len(told) == 1:
        columns["stage"] = STAGES[told[0]] if told[0] < len(STAGES) else None
    else:
        columns["stage"] = pa.array(STAGES, pa.string()).take(pa.array(np.where(stages < len(STAGES), stages, 0)))
    for name, value in (
        ("micro_batch", ((numbers >> 8 & 0xFF) - 1).astype(np.int32)),
        ("layer", ((numbers >> 16 & 0xFFFF) - 1).astype(np.int32)),
        ("step", (numbers >> 32) - 1),
    ):
        columns[name] = with_nulls(value, value < 0)
    return columns


def with_nulls(numbers: npt.NDArray[Any], missing: npt.NDArray[np.bool_]) -> pa.Array | None:
    """`numbers` with nulls where they are missing; None where all of them are."""
    import pyarrow as pa

    if not missing.any():
        return pa.array(numbers)
    return None if missing.all() else pa.array(numbers, mask=missing)


def _thread_name(pid: int, tid: int) -> str:
    """The thread's name as the kernel has it; `thread` where the process is gone."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip() or "thread"
    except OSError:
        return "thread"
