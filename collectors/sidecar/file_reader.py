"""Reads the append-only event file of a target without the C library, with the interface of a ring."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from moescope.collectors.ring_reader import BLOB, RECORD, RingError, ThreadRecords
from moescope.collectors.structured import joined


class FileRing:
    """One process's event file (collectors/agent/file_ring.py): JSON lines, the last of which may be torn."""

    def __init__(self, path: Path) -> None:
        """Raises RingError where the file's name tells no process, OSError where it cannot be opened."""
        self.path = path
        head = path.name.partition("-")[0]
        if not head.isdigit():
            raise RingError(f"{path}: not an event file")
        self.pid = int(head)
        self.dropped = 0
        self.overhead_ns = 0
        self.closed = False
        self._file = open(path, "rb")  # noqa: SIM115  lives as long as the reader
        self._identity: dict[str, Any] | None = None
        self._names: list[str] = [""]
        self._ids: dict[str, int] = {"": 0}
        self._held: dict[int, list[np.ndarray[Any, Any]]] = {}

    def identity(self) -> dict[str, Any] | None:
        """Who wrote it; None before the agent has said so."""
        if self._identity is None:
            self._read()
        return self._identity

    def fill(self) -> float:
        """Share of the room in use: a file has no end of it."""
        return 0.0

    def empty(self) -> bool:
        """Whether nothing has been recorded that was not taken yet."""
        self._read()
        return not any(self._held.values())

    def names(self) -> list[str]:
        """Names by id; grows from call to call."""
        return self._names

    def take(self) -> list[ThreadRecords]:
        """What no commit has marked yet, a thread at a time."""
        self._read()
        found = []
        for tid, parts in self._held.items():
            if parts:
                records = joined(parts)
                self._held[tid] = [records]
                found.append(ThreadRecords(tid, records, ((tid, 0, records.nbytes),)))
        return found

    def commit(self, taken: ThreadRecords, count: int) -> None:
        """Lets go of the first `count` records."""
        self._held[taken.tid] = [taken.records[count:]] if count < len(taken.records) else []

    def close(self) -> None:
        """Lets go of the file."""
        self._file.close()

    def _read(self) -> None:
        while line := self._file.readline():
            if not line.endswith(b"\n"):
                self._file.seek(-len(line), 1)
                return
            self._line(json.loads(line))

    def _line(self, row: list[Any]) -> None:
        type_, flags, depth, name, start, dur, a, b, c, tid, payload = row
        if type_ == BLOB and name in ("identity", "overhead", "closed"):
            if name == "identity":
                self._identity = payload
            elif name == "overhead":
                self.overhead_ns = int(payload)
            else:
                self.closed = True
            return
        if type_ == BLOB and not name:
            return  # nobody could tell what it is
        number = self._ids.setdefault(name, len(self._ids))
        if number == len(self._names):
            self._names.append(name)
        data = json.dumps(payload).encode() if type_ == BLOB else b""
        slots = -(-len(data) // RECORD.itemsize)
        records = np.zeros(1 + slots, RECORD)
        records[0] = (type_, flags, depth, number, start, len(data) if type_ == BLOB else dur, a, b, c)
        if slots:
            records[1:].view("u1")[: len(data)] = np.frombuffer(data, "u1")
        self._held.setdefault(tid, []).append(records)
