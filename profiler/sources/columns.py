"""What a trace of any tool holds, as columns: work on devices, launches, named ranges, operators.

Strings are codes into one list a trace, so that a name that stands in a trace a million times is held once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.sources.messages import Message

Ints = NDArray[np.int64]
Codes = NDArray[np.int32]
Columns = Mapping[str, NDArray[Any]]
Key = TypeVar("Key")

NO_TEXT: Final = -1
"""Code of a string that is not known."""
NO_INT: Final = -(2**63)
"""An integer that is not known: no clock and no size reaches it."""
FARTHEST_NS: Final = 2**61
"""Times beyond this are no times: 73 years either side of what they count from."""
LONGEST_NS: Final = 2**50
"""Nothing lasts longer than this, 13 days: sums of what is longer could leave 64 bits."""
LARGEST_BYTES: Final = 2**50
"""No launch moves or holds more than this."""


def integer(value: object, bits: int = 64) -> int | None:
    """A whole number from what an argument holds; None for anything else, and for what the column cannot hold."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and len(value) < 20 and value.strip().removeprefix("-").isdecimal():
        value = int(value)
    if isinstance(value, float):
        value = int(value) if isfinite(value) else None
    return value if isinstance(value, int) and -(2 ** (bits - 1)) < value < 2 ** (bits - 1) else None


def sizes(values: Ints) -> Ints:
    """[values] bytes; NO_INT for what can be none."""
    return np.where((values < 0) | (values > LARGEST_BYTES), NO_INT, values)


class Numbered(dict[Key, int]):
    """Numbers keys from 0 on as they are asked for, in the order in which they were first met."""

    def __missing__(self, key: Key) -> int:
        number = self[key] = len(self)
        return number

    def of(self, keys: Iterable[Key]) -> Codes:
        """[keys] their numbers."""
        return np.fromiter(map(self.__getitem__, keys), np.int32)


class Texts:
    """Strings to codes, in the order in which they were first met."""

    def __init__(self) -> None:
        # None is number 0, so that it need not be looked for in every column.
        self._numbers: Numbered[str | None] = Numbered({None: 0})

    def code(self, text: str | None) -> int:
        """The string's code; NO_TEXT for None."""
        return self._numbers[text] + NO_TEXT

    def codes(self, texts: Iterable[str | None]) -> Codes:
        """[texts] codes."""
        return self._numbers.of(texts) + np.int32(NO_TEXT)

    def values(self) -> list[str]:
        """All strings by code."""
        return [text for text in self._numbers if text is not None]


class Growing:
    """Columns of one length that grow by pieces."""

    def __init__(self, **types: Any) -> None:
        self._types = types
        self._pieces: dict[str, list[NDArray[Any]]] = {name: [] for name in types}

    def add(self, **columns: NDArray[Any]) -> None:
        """Append a piece; every column, all of one length."""
        for name, values in columns.items():
            self._pieces[name].append(values.astype(self._types[name], copy=False))

    def done(self) -> dict[str, NDArray[Any]]:
        """The whole columns; the pieces are let go."""
        found = {}
        for name, kind in self._types.items():
            pieces = self._pieces[name]
            found[name] = np.concatenate(pieces) if pieces else np.empty(0, kind)
            pieces.clear()
        return found


@dataclass(frozen=True, slots=True)
class Thread:
    """Whoever ranges belong to: a thread of a process, or a device's stream.

    group: which rank it belongs to in a trace that holds several; empty in a trace of one
    """

    process: str
    label: str
    group: str = ""


RANGE: Final = {"thread": np.int32, "name": np.int32, "start": np.int64, "dur": np.int64}
"""A named range: index of its thread, code of its name, ns, ns."""
LAUNCH: Final = {"thread": np.int32, "correlation": np.int64, "start": np.int64}
OPERATOR: Final = RANGE | {"shapes": np.int32, "dtype": np.int32}
"""A range with the codes of its operands' shapes and type."""
WORK: Final = {
    "thread": np.int32, "device": np.int64, "stream": np.int32, "name": np.int32, "start": np.int64, "dur": np.int64,
    "correlation": np.int64, "grid": np.int32, "block": np.int32, "registers": np.int64,
    "shared": np.int64, "bytes": np.int64, "dtype": np.int32, "op": np.int32, "group": np.int32, "ranks": np.int32,
    "message": np.int32,
}  # fmt: skip
"""A kernel, copy or set. thread: process and stream as the trace has them; op, group, ranks: of its collective;
message: index of what it tells of its sizes, NO_TEXT where it tells nothing."""


@dataclass(frozen=True, slots=True)
class TraceColumns:
    """One trace. Times in ns, counted from `base_ns`, ns since the epoch.

    work: WORK; launches: LAUNCH; ranges, device_ranges: RANGE; operators: OPERATOR; texts: strings by code;
    threads, messages: by index; groups: ranks by name of the process group, as the trace's head has them; notes: what
    was left out, for the user, and how many events that were
    """

    base_ns: int
    work: Mapping[str, NDArray[Any]]
    launches: Mapping[str, NDArray[Any]]
    ranges: Mapping[str, NDArray[Any]]
    device_ranges: Mapping[str, NDArray[Any]]
    operators: Mapping[str, NDArray[Any]]
    texts: list[str]
    threads: list[Thread]
    notes: list[tuple[str, int]] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    groups: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a trace's columns come from.

    tool: `kineto` or `nsight`; rank, world_size: as the file says, None where it does not; group: what tells the rank
    from others in the same file; devices: properties by device (`numSms`, `name`); notes: as in TraceColumns
    """

    path: Path
    tool: str
    rank: int | None = None
    world_size: int | None = None
    group: str = ""
    devices: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class TraceFile:
    """One rank's part of a file."""

    origin: Origin
    columns: TraceColumns


def count(columns: Mapping[str, NDArray[Any]]) -> int:
    """Rows of a set of columns."""
    return len(next(iter(columns.values())))


def picked(columns: Mapping[str, NDArray[Any]], rows: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """The rows of a set of columns; rows: indices or a mask"""
    return {name: values[rows] for name, values in columns.items()}


def empty(types: Mapping[str, Any]) -> dict[str, NDArray[Any]]:
    """A set of columns without rows."""
    return {name: np.empty(0, kind) for name, kind in types.items()}


def groups_of(columns: TraceColumns) -> dict[str, TraceColumns]:
    """The ranks of a trace: the groups of threads with device work, each with all that is theirs."""
    known: dict[str, int] = {}
    number = np.array([known.setdefault(thread.group, len(known)) for thread in columns.threads], np.int64)
    working = {columns.threads[thread].group for thread in np.unique(columns.work["thread"]).tolist()}
    if len(known) < 2:
        return dict.fromkeys(working or {""}, columns)

    def of(rows: Mapping[str, NDArray[Any]], group: str) -> dict[str, NDArray[Any]]:
        return picked(rows, number[rows["thread"]] == known[group])

    return {
        group: replace(
            columns,
            work=of(columns.work, group),
            launches=of(columns.launches, group),
            ranges=of(columns.ranges, group),
            device_ranges=of(columns.device_ranges, group),
            operators=of(columns.operators, group),
        )
        for group in sorted(working)
    }
