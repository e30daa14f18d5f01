"""What a sampler is: something beside the target that is asked for rows a few times a second."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa

Row = tuple[str, int | None, dict[str, Any]]
"""Table, rank (None for what serves the host), and the row's columns (collectors/schema.py)."""

Rows = tuple[str, int | None, "pa.RecordBatch"]
"""The same for many rows at once."""

RankOf = Callable[[int], int | None]
"""pid → rank, None for processes that are none."""

RoleOf = Callable[[int, int], str]
"""(pid, tid) → `compute`, `comm` or `other`."""

PidSource = Callable[[], list[int]]
"""The processes that are ranks now."""


GPU_PERIOD_S = 0.5
"""Between two samples of a GPU, seconds, where nothing else is asked for; NVML's counters need at least 0.1."""


class SamplerUnavailable(Exception):
    """This machine does not offer the source; the message says why, and what to do."""


class NothingThere(SamplerUnavailable):
    """This machine has nothing of the kind, so that nothing is missing: no line of the log is worth it."""


class Sampler(Protocol):
    """One source of samples. `name` is its collector, `source` what is in use.

    A sampler may have `period_s`, the seconds between two polls where these are not the recorder's own; `unwatched_s`,
    the same while nobody looks at the recording; and `wakes`, files that are readable where it must not wait so long.
    """

    name: str
    source: str

    def open(self) -> None:
        """Gets hold of the source. Raises SamplerUnavailable."""

    def attach(self, pid: int) -> None:
        """Called once with the target's process, before it runs anything."""

    def poll(self) -> Sequence[Row | Rows]:
        """What is new."""

    def close(self) -> Sequence[Row | Rows]:
        """The last of it; the source is let go of."""
