"""What a section of `make gpu-check` tells."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """value None: unknown, `unit` then says why; short: whether it stands in the table"""

    name: str
    value: float | None
    unit: str
    short: bool = True
