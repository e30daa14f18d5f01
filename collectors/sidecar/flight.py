"""Calls that C++ issued. Three tell of them: the C library when each was issued and when something was executed for its
group, and torch's flight recorder, seconds later, which calls there were and in which order.

A group's calls of one kind begin to be executed in the order of their issue, on threads of its own. What is told is
taken together so, and only where it fits: a call that was issued while no range was on has no execution, and one that
begins long after it could have is another's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

CLOCK_NS: Final = 10_000
"""How far the clocks may be apart by which the flight recorder and the C library tell a call's issue."""
SETTLED_NS: Final = 5_000_000_000
"""How long before the last call that was told all records of both have come."""
PROMPT_NS: Final = 100_000_000
"""How long a thread may take to begin with a call that it is free for, on a machine with too few cores."""
BLIND_NS: Final = 2_000_000_000
"""How long after a call without a range nobody knows whether its thread is free."""
KEPT_NS: Final = 120_000_000_000
"""How long a call is waited for that has been issued and not begun."""
DRAINS_KEPT: Final = 512
"""Of so many drains it is known when a group's threads became free."""
MOST: Final = 50_000
"""Issues of a thread, and executions of a kind, that wait to be told of."""


class Issue(NamedTuple):
    """When C++ was in the operator that issues a call; phase: around it"""

    start_ns: int
    end_ns: int
    operator: str
    phase: int


class Told(NamedTuple):
    """What the flight recorder tells of a call; sequence: its place among its group's; bytes: of its input, or -1"""

    issued_ns: int
    sequence: int
    bytes: int
    thread: int
    group: str
    op: str
    dtype: str


class Execution(NamedTuple):
    """Something that a group's thread executed; number: made for it"""

    start_ns: int
    end_ns: int
    number: int


class Found(NamedTuple):
    """A call of which all is known."""

    told: Told
    issue: Issue
    execution: Execution


class _Waiting(NamedTuple):
    """A call whose execution is looked for; blind: whether others of its group may run of which nothing is seen"""

    told: Told
    issue: Issue
    blind: bool


@dataclass
class _Line:
    """Calls of one kind and group, and what was executed of that kind, each in order."""

    calls: deque[_Waiting] = field(default_factory=deque)
    executions: list[Execution] = field(default_factory=list)


class Flights:
    """Brings together what was told of calls that C++ issued."""

    def __init__(self) -> None:
        self._issues: dict[int, list[Issue]] = {}
        self._fresh: list[Told] = []
        self._lines: dict[tuple[str, str], _Line] = {}
        self._ends: dict[str, deque[npt.NDArray[np.int64]]] = {}
        self._unseen_ns: dict[str, int] = {}
        """When the last call of each group was issued that has no range."""
        self._horizon_ns = 0

    def issued(self, thread: int, issue: Issue) -> None:
        """The C library saw a call; thread: as torch calls it"""
        held = self._issues.setdefault(thread, [])
        held.append(issue)
        if len(held) > MOST:
            del held[: MOST // 2]

    def told(self, row: dict[str, Any]) -> None:
        """The flight recorder tells of calls of one group and operation."""
        group, op, dtype = row["group"], row["op"], row["dtype"]
        self._fresh += [
            Told(issued, place, size, thread, group, op, dtype) for issued, place, size, thread in row["calls"]
        ]
        self._horizon_ns = max(self._horizon_ns, row["last_ns"] - SETTLED_NS)

    def ran(self, group: str, op: str, execution: Execution) -> None:
        """A group's thread executed a call that Python did not issue; op: as gloo names it"""
        held = self._line(group, op).executions
        held.append(execution)
        if len(held) > MOST:
            del held[: MOST // 2]

    def busy(self, group: str, ends_ns: npt.NDArray[np.int64]) -> None:
        """A group's threads executed calls, whoever issued them, until these times."""
        self._ends.setdefault(group, deque(maxlen=DRAINS_KEPT)).append(ends_ns)

    def met(self, *, final: bool = False) -> list[Found]:
        """Calls of which all is known by now; final: nothing more will be told"""
        if not self._fresh and not final:
            return []
        until_ns = 2**63 - 1 if final else self._horizon_ns
        self._admit(until_ns)
        found: list[Found] = []
        for (group, _), line in self._lines.items():
            found += _paired(line, self._free(group), until_ns)
        return found

    def _line(self, group: str, op: str) -> _Line:
        line = self._lines.get((group, op))
        if line is None:
            line = self._lines[group, op] = _Line()
        return line

    def _admit(self, until_ns: int) -> None:
        """Lines up the calls that were issued while ranges were on: those inside an issue of their thread."""
        self._fresh.sort()
        count = bisect_right(self._fresh, until_ns, key=lambda told: told.issued_ns)
        settled, self._fresh = self._fresh[:count], self._fresh[count:]
        for issues in self._issues.values():
            issues.sort()
        for told in settled:
            issues = self._issues.get(told.thread, [])
            at = bisect_right(issues, told.issued_ns + CLOCK_NS, key=lambda issue: issue.start_ns) - 1
            if at >= 0 and told.issued_ns <= issues[at].end_ns + CLOCK_NS:
                blind = told.issued_ns - self._unseen_ns.get(told.group, -BLIND_NS) < BLIND_NS
                self._line(told.group, told.op).calls.append(_Waiting(told, issues[at], blind))
            else:
                self._unseen_ns[told.group] = told.issued_ns
        for thread, issues in list(self._issues.items()):
            kept = issues[bisect_right(issues, until_ns - CLOCK_NS, key=lambda issue: issue.end_ns) :]
            if kept:
                self._issues[thread] = kept
            else:
                del self._issues[thread]

    def _free(self, group: str) -> npt.NDArray[np.int64]:
        """When the group's threads ended something, rising."""
        ends = self._ends.get(group)
        return np.sort(np.concatenate(list(ends))) if ends else np.empty(0, np.int64)


def _paired(line: _Line, ends_ns: npt.NDArray[np.int64], until_ns: int) -> list[Found]:
    """Takes what belongs together out of a line; ends_ns: when the group's threads became free, rising"""
    found: list[Found] = []
    line.executions.sort()
    count = bisect_right(line.executions, until_ns, key=lambda one: one.start_ns)
    settled, later = deque(line.executions[:count]), line.executions[count:]
    while line.calls:
        told, issue, blind = line.calls[0]
        while settled and settled[0].start_ns < told.issued_ns - CLOCK_NS:
            settled.popleft()  # nobody told of the call that this was
        if not settled:
            if told.issued_ns > until_ns - KEPT_NS:
                break  # it has not begun yet
            line.calls.popleft()
            continue
        at = int(np.searchsorted(ends_ns, settled[0].start_ns, side="right"))
        free_ns = int(ends_ns[at - 1]) if at else 0
        line.calls.popleft()
        if blind or settled[0].start_ns - max(told.issued_ns, free_ns) <= PROMPT_NS:
            found.append(Found(told, issue, settled.popleft()))
    line.executions = [*(settled if line.calls else ()), *later]
    return found
