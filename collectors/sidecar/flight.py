"""Calls that C++ issued: the C library saw when, torch's flight recorder tells a few seconds later what they were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, NamedTuple

ISSUING: Final = {
    "c10d::allreduce_": ("all_reduce", "all_reduce"),
    "c10d::allgather_": ("all_gather", "all_gather"),
    "c10d::_allgather_base_": ("all_gather", "all_gather"),
    "c10d::allgather_into_tensor_coalesced_": ("all_gather", "all_gather"),
    "c10d::reduce_scatter_tensor_coalesced_": ("reduce_scatter", "all_reduce"),
    "c10d::_reduce_scatter_base_": ("reduce_scatter", "all_reduce"),
    "c10d::alltoall_base_": ("all_to_all", "all_to_all"),
    "c10d::alltoall_": ("all_to_all", "all_to_all"),
    "c10d::broadcast_": ("broadcast", "broadcast"),
    "c10d::reduce_": ("reduce", "reduce"),
    "c10d::gather_": ("gather", "gather"),
    "c10d::scatter_": ("scatter", "scatter"),
    "c10d::barrier": ("barrier", "barrier"),
}
"""By operator that issues a call, as in collectors/native/ring.c: its operation, and that which gloo makes of it."""

CLOCK_NS: Final = 50_000
"""How far the clocks may be apart by which the two tell a call's issue."""
TOLD_KEPT_NS: Final = 30_000_000_000
"""How long what is told waits for the record of its issue, which was written before: most calls leave none."""
ISSUES_KEPT: Final = 50_000
"""Issues of one operation that wait to be told of."""


class Told(NamedTuple):
    """What the flight recorder tells of a call; bytes: of its input, -1 where not known"""

    issued_ns: int
    sequence: int
    bytes: int
    group: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Issue:
    """When a call was issued, between two times; op: as `ISSUING` names it"""

    number: int
    op: str
    start_ns: int
    end_ns: int


class Flights:
    """Brings the two together, by what gloo makes of the calls."""

    def __init__(self) -> None:
        self._issues: dict[str, list[Issue]] = {}
        self._told: dict[str, list[Told]] = {}
        self._changed: set[str] = set()

    def issued(self, operator: str, number: int, start_ns: int, end_ns: int) -> str:
        """The C library saw a call; its operation."""
        op, made_of = ISSUING[operator]
        self._issues.setdefault(made_of, []).append(Issue(number, op, start_ns, end_ns))
        self._changed.add(made_of)
        return op

    def told(self, row: dict[str, Any]) -> None:
        """The flight recorder tells of calls of one group and operation."""
        group, dtype = row["group"], row["dtype"]
        more = [Told(issued_ns, sequence, size, group, dtype) for issued_ns, sequence, size in row["calls"]]
        self._told.setdefault(row["op"], []).extend(more)
        self._changed.add(row["op"])

    def met(self) -> tuple[list[tuple[Issue, Told]], list[int]]:
        """What is known of both sides by now, and numbers of calls that are waited for no longer."""
        found: list[tuple[Issue, Told]] = []
        lost: list[int] = []
        for op in self._changed:
            issues = sorted(self._issues.get(op, ()), key=lambda one: one.start_ns)
            told = sorted(self._told.get(op, ()))
            left, unmet, at = [], [], 0
            for issue in issues:
                while at < len(told) and told[at].issued_ns < issue.start_ns - CLOCK_NS:
                    unmet.append(told[at])  # no range was on when it was issued, or its record is still to come
                    at += 1
                if at < len(told) and told[at].issued_ns <= issue.end_ns + CLOCK_NS:
                    found.append((issue, told[at]))
                    at += 1
                else:
                    left.append(issue)
            unmet += told[at:]
            lost += [issue.number for issue in left[:-ISSUES_KEPT]]
            self._issues[op] = left[-ISSUES_KEPT:]
            self._told[op] = [one for one in unmet if one.issued_ns >= told[-1].issued_ns - TOLD_KEPT_NS]
        self._changed.clear()
        return found, lost
