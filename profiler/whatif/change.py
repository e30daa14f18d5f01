"""What a scenario changes: how long kernels take, as three assumptions, or why the data does not carry it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.errors import MoescopeError
from moescope.profiler.overlap.intervals import Times

Factors = NDArray[np.float64]

LONGEST_NS: Final = float(1 << 60)
"""36 years: what a graph's sums hold with room to spare."""


@dataclass(frozen=True, slots=True)
class Change:
    """factors: what every kernel's own time is multiplied by, [nodes] each: by the assumption that brings least, by the
    one between, and by the one that brings most; hidden: whether nothing waits for communication any more; wires:
    what the time of an emulated wire beneath exchanges is multiplied by; assumed: in words, what that rests on;
    parameters: its numbers"""

    least: Factors
    between: Factors
    most: Factors
    assumed: tuple[str, ...]
    parameters: dict[str, Any] = field(default_factory=dict)
    hidden: bool = False
    wires: float = 1.0

    @property
    def touched(self) -> NDArray[np.bool_]:
        """[nodes] kernels whose time changes."""
        found: NDArray[np.bool_] = (self.least != 1) | (self.between != 1) | (self.most != 1)
        return found


@dataclass(frozen=True, slots=True)
class Scenario:
    """id: as in JSON; what: in words; change: None where the data does not carry it, with the reason"""

    id: str
    what: str
    change: Change | None
    reason: str = ""


def together(changes: list[Change]) -> Change:
    """All at once. A kernel that several of them change takes the product of what they leave of it."""
    least, between, most = (
        np.prod([getattr(one, name) for one in changes], axis=0) for name in ("least", "between", "most")
    )
    return Change(
        least,
        between,
        most,
        ("a kernel that several of them change keeps what each of them leaves of it",),
        hidden=any(one.hidden for one in changes),
    )


def changed(work: Times, factors: Factors) -> Times:
    """[nodes] ns. Raises MoescopeError where that is more time than numbers hold."""
    times = work * factors
    if float(times.sum()) > LONGEST_NS:
        raise MoescopeError("changed durations add up to more than 36 years: the source's times or a factor are off")
    return np.rint(times).astype(np.int64)
