"""What one drain of a process's ring finds, and what every row of it shares: rank, device, clock, names of threads."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.clock import Clock
from moescope.collectors.ring_reader import ThreadRecords
from moescope.collectors.schema import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

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
            if value is None:
                arrays.append(pa.nulls(count, column.type))
            elif isinstance(value, str | int):
                arrays.append(pa.repeat(pa.scalar(value, column.type), count))
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

    def ids(self, numbers: npt.NDArray[np.uint64]) -> pa.Array:
        """The same as `id`, for many."""
        import pyarrow as pa

        return pa.array(numbers.astype(np.int64) + self.id_base, mask=numbers == 0)


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
    columns: dict[str, Any] = {
        "stage": pa.array(STAGES, pa.string()).take(pa.array(np.where(stages < len(STAGES), stages, 0)))
    }
    for name, value, type_ in (
        ("micro_batch", (numbers >> 8 & 0xFF) - 1, pa.int32()),
        ("layer", (numbers >> 16 & 0xFFFF) - 1, pa.int32()),
        ("step", (numbers >> 32) - 1, pa.int64()),
    ):
        columns[name] = pa.array(value, type_, mask=value < 0)
    return columns


def _thread_name(pid: int, tid: int) -> str:
    """The thread's name as the kernel has it; `thread` where the process is gone."""
    try:
        return Path(f"/proc/{pid}/task/{tid}/comm").read_text().strip() or "thread"
    except OSError:
        return "thread"
