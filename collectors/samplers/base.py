"""What a sampler is: something beside the target that is asked for rows a few times a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

Row = tuple[str, int | None, dict[str, Any]]
"""Table, rank (None for what serves the host), and the row's columns (collectors/schema.py)."""

RankOf = Callable[[int], int | None]
"""pid → rank, None for processes that are none."""

RoleOf = Callable[[int, int], str]
"""(pid, tid) → `compute`, `comm` or `other`."""

PidSource = Callable[[], list[int]]
"""The processes that are ranks now."""


class SamplerUnavailable(Exception):
    """This machine does not offer the source; the message says why, and what to do."""


class Sampler(Protocol):
    """One source of samples. `name` is its collector, `source` what is in use."""

    name: str
    source: str

    def open(self) -> None:
        """Gets hold of the source. Raises SamplerUnavailable."""

    def attach(self, pid: int) -> None:
        """Called once with the target's process, before it runs anything."""

    def poll(self) -> list[Row]:
        """What is new."""

    def close(self) -> list[Row]:
        """The last of it; the source is let go of."""
