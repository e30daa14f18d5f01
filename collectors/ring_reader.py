"""Reads the ring that a target writes (collectors/native/ring.h): whole records only, during the run or after.

Reading and keeping are two steps: `take` hands out what is new, `commit` marks it as stored. What was taken and never
committed, because the reader was killed, is handed out again to the next one.
"""

from __future__ import annotations

import json
import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.structured import joined

MAGIC: Final = b"MOESRING"
OPERATOR, PHASE, EXECUTION, BLOB, DONE, STEP, WINDOW, CALL = range(1, 9)
COMPOSITE: Final = 1
UNTOLD: Final = 2
BETWEEN: Final = 4
_FREE, _WRITING, _FULL = range(3)

_RECORD_FIELDS: Final = (
    *(("type", "u1"), ("flags", "u1"), ("depth", "<u2"), ("name", "<u4"), ("start_ns", "<i8"), ("dur_ns", "<i8")),
    *(("a", "<u8"), ("b", "<u8"), ("c", "<u8")),
)
RECORD: Final = np.dtype(list(_RECORD_FIELDS))
_CHUNK_HEAD: Final = np.dtype(
    [("state", "<u4"), ("tid", "<u4"), ("sequence", "<u8"), ("used", "<u8"), ("consumed", "<u8"), ("name", "S16")]
)
_HEADER_FIELDS: Final = (
    *(("magic", "S8"), ("version", "<u4"), ("pid", "<u4"), ("file_bytes", "<u8"), ("chunk_bytes", "<u4")),
    *(("chunks", "<u4"), ("chunks_offset", "<u8"), ("names_offset", "<u8"), ("names_bytes", "<u8")),
    *(("names_used", "<u8"), ("dropped", "<u8"), ("sequence", "<u8"), ("phase_ids", "<u8"), ("operators", "<u8")),
    *(("identity_bytes", "<u8"), ("identity_seq", "<u8"), ("overhead_ns", "<u8"), ("closed", "<u8")),
)
_HEADER: Final = np.dtype(list(_HEADER_FIELDS))
_IDENTITY_OFFSET: Final = 512
_CHUNK_HEADER_BYTES: Final = 64

Records = npt.NDArray[np.void]


class RingError(Exception):
    """The file is no ring of this version."""


@dataclass(frozen=True)
class ThreadRecords:
    """New records of one thread in order; `positions` are their places, for `commit`."""

    tid: int
    records: Records
    positions: tuple[tuple[int, int, int], ...]
    """(chunk, first byte, last byte) of each stretch of `records`."""
    name: str = ""
    """The thread's own, as it was told last; nothing where it is not known."""


class Ring:
    """One process's ring."""

    def __init__(self, path: Path) -> None:
        """Raises RingError where `path` is not a whole ring, OSError where it cannot be opened."""
        self.path = path
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 4096:
                raise RingError(f"{path}: {size} bytes are too few for a ring")
            self._map = mmap.mmap(file.fileno(), size)
        self._head = np.ndarray((), _HEADER, self._map)
        # The magic is written last: before it, the target is still opening the file.
        if self._head["magic"] != MAGIC or int(self._head["version"]) != 1 or int(self._head["file_bytes"]) > size:
            raise RingError(f"{path}: not a ring of version 1")
        self.pid = int(self._head["pid"])
        self._chunk_bytes = int(self._head["chunk_bytes"])
        self._offset = int(self._head["chunks_offset"])
        self._chunks = np.ndarray(
            (int(self._head["chunks"]),), _CHUNK_HEAD, self._map, self._offset, (self._chunk_bytes,)
        )
        self._freed = int(self._head["sequence"]) - int((self._chunks["state"] != _FREE).sum())
        """Chunks that were taken by the target and given back: it counts those it takes."""
        self._names: list[str] = [""]
        self._names_read = 0

    @property
    def dropped(self) -> int:
        """Records lost because the ring was full."""
        return int(self._head["dropped"])

    def fill(self) -> float:
        """Share of the chunks that are in use, to within a chunk; looks at none of them."""
        return max(0, int(self._head["sequence"]) - self._freed) / len(self._chunks)

    def empty(self) -> bool:
        """Whether nothing has been recorded since it was made or last emptied."""
        return bool((self._chunks["state"] == _FREE).all())

    @property
    def overhead_ns(self) -> int:
        """What recording is reckoned to have cost the process."""
        return int(self._head["overhead_ns"])

    @property
    def closed(self) -> bool:
        """Whether the process ended normally."""
        return bool(self._head["closed"])

    def identity(self) -> dict[str, Any] | None:
        """Who wrote it; None before the agent has said so."""
        for _ in range(3):
            before = int(self._head["identity_seq"])
            size = int(self._head["identity_bytes"])
            data = self._map[_IDENTITY_OFFSET : _IDENTITY_OFFSET + size]
            if before % 2 == 0 and before == int(self._head["identity_seq"]) and size:
                found: dict[str, Any] = json.loads(data)
                return found
        return None

    def names(self) -> list[str]:
        """Names by id; grows from call to call."""
        used = int(self._head["names_used"])
        base = int(self._head["names_offset"])
        while self._names_read < used:
            at = base + self._names_read
            number, length = np.frombuffer(self._map, "<u4", 2, at)
            text = self._map[at + 8 : at + 8 + int(length)].decode("utf-8", "replace")
            while len(self._names) <= number:
                self._names.append("")
            self._names[number] = text
            self._names_read += (8 + int(length) + 1 + 7) & ~7
        return self._names

    def take(self) -> list[ThreadRecords]:
        """What no commit has marked yet, a thread at a time."""
        heads = self._chunks.copy()
        live = np.flatnonzero((heads["state"] != _FREE) & (heads["sequence"] > 0) & (heads["used"] > heads["consumed"]))
        by_thread: dict[int, list[int]] = {}
        for chunk in live[np.argsort(heads["sequence"][live])]:
            by_thread.setdefault(int(heads["tid"][chunk]), []).append(int(chunk))
        found = []
        for tid, chunks in by_thread.items():
            parts, positions = [], []
            for chunk in chunks:
                first, last = int(heads["consumed"][chunk]), int(heads["used"][chunk])
                start = self._offset + chunk * self._chunk_bytes + _CHUNK_HEADER_BYTES + first
                parts.append(np.frombuffer(self._map, RECORD, (last - first) // RECORD.itemsize, start))
                positions.append((chunk, first, last))
            name = heads["name"][chunks[-1]].decode("utf-8", "replace")
            found.append(ThreadRecords(tid, joined(parts), tuple(positions), name))
        self._recycle(heads)
        return found

    def _recycle(self, heads: Records) -> None:
        """Gives full chunks whose records are all stored back to the target."""
        for chunk in np.flatnonzero((heads["state"] == _FULL) & (heads["used"] == heads["consumed"])):
            entry = self._chunks[chunk : chunk + 1]
            entry["used"] = 0
            entry["consumed"] = 0
            entry["sequence"] = 0
            entry["state"] = _FREE
            self._freed += 1

    def commit(self, taken: ThreadRecords, count: int) -> None:
        """Marks the first `count` records as stored."""
        left = count * RECORD.itemsize
        for chunk, first, last in taken.positions:
            step = min(left, last - first)
            if step <= 0:
                return
            self._chunks[chunk : chunk + 1]["consumed"] = first + step
            left -= step

    def close(self) -> None:
        """Lets go of the file."""
        del self._head, self._chunks
        self._map.close()


def blob_heads(records: Records) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
    """Where blobs begin, and which slots hold a record rather than a blob's payload."""
    # Every blob has a name: of payloads that begin with the same byte, most do not.
    places = np.flatnonzero((records["type"] == BLOB) & (records["name"] > 0))
    ends = places + 1 - (-records["dur_ns"][places] // RECORD.itemsize)
    if (places[1:] < ends[:-1]).any():
        # Some payload reads as a blob's beginning.
        heads: list[int] = []
        free_from = 0
        for i, (at, end) in enumerate(zip(places.tolist(), ends.tolist(), strict=True)):
            if at >= free_from:
                free_from = end
                heads.append(i)
        places, ends = places[heads], ends[heads]
    is_record = np.ones(len(records), dtype=np.bool_)
    slots = ends - places - 1
    # Where each payload begins, for each of its slots, and the slot's number in it.
    first = np.repeat(places + 1, slots)
    is_record[first + np.arange(len(first)) - np.repeat(np.cumsum(slots) - slots, slots)] = False
    return places, is_record


def blob_payload(records: Records, at: int, *, raw: bool = False) -> Any:
    """The JSON value of the blob at `at`; its bytes where `raw`."""
    size = int(records["dur_ns"][at])
    slots = -(-size // RECORD.itemsize)
    data = records[at + 1 : at + 1 + slots].tobytes()[:size]
    return data if raw else json.loads(data)


def blob_bytes(records: Records, heads: npt.NDArray[np.intp], size: int) -> npt.NDArray[np.uint8]:
    """The first `size` bytes of each blob's payload: [len(heads), size]."""
    slots = -(-size // RECORD.itemsize)
    rows = records.view(np.uint8).reshape(-1, RECORD.itemsize)[heads[:, None] + 1 + np.arange(slots)]
    return np.ascontiguousarray(rows.reshape(len(heads), slots * RECORD.itemsize)[:, :size])
