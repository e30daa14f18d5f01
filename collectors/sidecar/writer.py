"""Writes a recording: append-only Arrow streams, a file a table and segment, and meta.json."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.schema import META_FILE, SEGMENT_SUFFIX, arrow_schema, segment_file

if TYPE_CHECKING:
    import pyarrow as pa

SEGMENT_BYTES: Final = 16 << 20

_NO_ROW: Final = (ValueError, TypeError, OverflowError)
"""What Arrow raises for a value that its column cannot hold (ArrowInvalid and ArrowTypeError are among them)."""


@dataclass
class _Segment:
    """A file that is being written; `good` is its length up to the last whole batch."""

    path: Path
    file: Any
    stream: Any
    opened_s: float
    good: int


SAMPLED: Final = frozenset({"device_samples", "link_samples", "unit_intervals", "log"})
"""Tables that go on while a rank does nothing."""


class RecordingWriter:
    """One recording. A write that fails leaves whole batches only, and may be tried again later."""

    def __init__(self, root: Path, keep_s: float | None = None) -> None:
        """root: an existing folder; keep_s: how much of the run's end to keep, s, None for all of it."""
        _arrow_without_pandas()
        self.root = root
        self.bytes_written = 0
        self._keep_s = keep_s
        self._segments: dict[tuple[str, str], _Segment] = {}
        self._numbers: dict[tuple[str, str], int] = {}
        self._closed: dict[tuple[str, str], list[tuple[float, Path]]] = {}
        self._worked: dict[str, float] = {}
        """When something but samples was last written, by folder."""
        self._remade = False
        """The folder was gone when something was to be written into it."""

    def write_rows(self, folder: str, table: str, rows: list[dict[str, Any]]) -> str:
        """Appends `rows`; columns that a row lacks are null. What was wrong with rows that were left out, if any was.

        Raises OSError where they cannot be stored.
        """
        import pyarrow as pa

        schema = arrow_schema(table)
        problem = ""
        try:
            found = pa.Table.from_pylist(rows, schema=schema)
        except _NO_ROW:
            # A model may tell anything: what is no number must not cost the rows beside it.
            problems = [_problem(row, schema) for row in rows]
            found = pa.Table.from_pylist([r for r, wrong in zip(rows, problems, strict=True) if not wrong], schema)
            refused = [wrong for wrong in problems if wrong]
            problem = f"{len(refused)} row(s) of {table} left out: {refused[0]}"
        if found.num_rows:
            self.write(folder, table, found.to_batches())
        return problem

    def write(self, folder: str, table: str, batches: Iterable[pa.RecordBatch]) -> None:
        """Appends and flushes `batches`. Raises OSError where they cannot be stored; nothing torn stays behind."""
        key = (folder, table)
        segment = self._segments.get(key) or self._open(key)
        try:
            for batch in batches:
                segment.stream.write_batch(batch)
            segment.file.flush()
        except OSError:
            self._abandon(key)
            raise
        position = segment.file.tell()
        self.bytes_written += position - segment.good
        segment.good = position
        now = time.monotonic()
        if table not in SAMPLED:
            self._worked[folder] = now
        age = now - segment.opened_s
        if position > SEGMENT_BYTES or (self._keep_s is not None and age > self._keep_s / 8):
            self._close(key)
            self._prune(folder)

    def _open(self, key: tuple[str, str]) -> _Segment:
        import pyarrow as pa

        folder = self.root / key[0]
        self._remade |= not self.root.exists()
        folder.mkdir(parents=True, exist_ok=True)
        number = self._numbers.get(key)
        if number is None:
            there = [path.stem.rpartition("-")[2] for path in folder.glob(f"{key[1]}-*{SEGMENT_SUFFIX}")]
            number = max((int(text) + 1 for text in there if text.isdigit()), default=0)
        path = folder / segment_file(key[1], number)
        self._numbers[key] = number + 1
        file = open(path, "xb")  # noqa: SIM115  lives as long as the segment
        # Batches are small: handing their columns to other threads costs more than compressing them.
        options = pa.ipc.IpcWriteOptions(compression="lz4", use_threads=False)
        stream = pa.ipc.new_stream(file, arrow_schema(key[1]), options=options)
        segment = _Segment(path, file, stream, time.monotonic(), file.tell())
        self._segments[key] = segment
        return segment

    def _abandon(self, key: tuple[str, str]) -> None:
        """Leaves a segment whose last write failed, cut back to what is whole."""
        segment = self._segments.pop(key)
        try:
            segment.file.close()
        except OSError:
            pass  # its buffer cannot be stored either; the rows are still in the ring
        try:
            # Only now: closing may write what was buffered.
            if segment.good:
                os.truncate(segment.path, segment.good)
            else:
                segment.path.unlink()
                self._numbers[key] -= 1
        except OSError:
            pass  # a reader skips the torn tail

    def _close(self, key: tuple[str, str]) -> None:
        segment = self._segments.pop(key)
        segment.stream.close()
        segment.file.close()
        self._closed.setdefault(key, []).append((time.monotonic(), segment.path))

    def _prune(self, folder: str) -> None:
        """Removes segments that ended before what is to be kept.

        Of what a rank did that is counted from the last it did: what it did before it hung is kept, however long
        samplers go on.
        """
        if self._keep_s is None:
            return
        now = time.monotonic()
        for key in [key for key in self._closed if key[0] == folder]:
            limit = (now if key[1] in SAMPLED else self._worked.get(folder, now)) - self._keep_s
            for _, path in (one for one in self._closed[key] if one[0] < limit):
                path.unlink(missing_ok=True)
            self._closed[key] = [one for one in self._closed[key] if one[0] >= limit]

    def keep_all(self) -> None:
        """The run has ended: what it did last is not what was done since then."""
        self._keep_s = None

    def vanished(self) -> bool:
        """Whether somebody removed the recording's files under us."""
        gone = [key for key, segment in self._segments.items() if not segment.path.exists()]
        for key in gone:
            segment = self._segments.pop(key)
            segment.file.close()
        lost = bool(gone) or self._remade or not self.root.exists()
        self._remade = False
        return lost

    def write_meta(self, meta: dict[str, Any]) -> None:
        """Replaces meta.json whole. Raises OSError where it cannot be stored."""
        import msgspec

        self._remade |= not self.root.exists()
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = self.root / (META_FILE + ".part")
        try:
            temporary.write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=1))
            temporary.replace(self.root / META_FILE)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Ends all segments."""
        for key in list(self._segments):
            try:
                self._close(key)
            except OSError:
                self._segments.pop(key, None)  # whole batches are on disk; only the end mark is missing


class _NoPandas:
    """A finder on `sys.meta_path` for which there is no pandas."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def _problem(row: dict[str, Any], schema: pa.Schema) -> str:
    """Why the row cannot be stored; nothing where it can."""
    import pyarrow as pa

    try:
        pa.Table.from_pylist([row], schema=schema)
    except _NO_ROW as error:
        return str(error)
    return ""


def _arrow_without_pandas() -> None:
    """Has pyarrow settle that there is no pandas: it would import it, in half a second of the target's time."""
    if "pandas" in sys.modules:
        return
    finder: Any = _NoPandas()
    sys.meta_path.insert(0, finder)
    try:
        import pyarrow as pa

        pa.array([0])  # looks for pandas, once
    finally:
        sys.meta_path.remove(finder)
