"""Reads a recording's folder, finished or growing: whole batches only, a torn tail is waited for or reported."""

from __future__ import annotations

import json
import os
import re
import socket
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moescope.collectors.schema import META_FILE, SEGMENT_SUFFIX, TABLES, arrow_schema
from moescope.profiler.classify.classifier import without_host_calls
from moescope.profiler.errors import MoescopeError

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import State

_SEGMENT = re.compile(rf"(?P<table>[a-z_]+)-(?P<number>\d+){re.escape(SEGMENT_SUFFIX)}")
_FRAME = struct.Struct("<Ii")
_CONTINUATION = 0xFFFFFFFF


class Segment:
    """One Arrow stream that may still grow: reads whole messages from where it stopped.

    batches: every whole batch so far, in the table's schema, kernels without the calls that only issue them;
    torn: bytes at the end that are no whole message
    """

    def __init__(self, path: Path, table: str) -> None:
        self.path = path
        self.table = table
        self.batches: list[pa.RecordBatch] = []
        self.offset = 0
        self.torn = 0
        self._schema: pa.Schema | None = None
        self._seen = 0
        self._ended = False

    def poll(self) -> bool:
        """Read what is whole and new; True where there was a batch.

        Raises FileNotFoundError where the file is gone.
        """
        size = self.path.stat().st_size
        if size == self._seen or self._ended:
            return False
        import pyarrow as pa

        self._seen = size
        before = len(self.batches)
        with pa.memory_map(str(self.path)) as file:
            for message in self._messages(file, file.size()):
                if message.type == "schema":
                    self._schema = pa.ipc.read_schema(message)
                elif message.type == "record batch" and self._schema is not None:
                    batch = _conform(pa.ipc.read_record_batch(message, self._schema), self.table)
                    self.batches.append(without_host_calls(batch) if self.table == "kernels" else batch)
            self.torn = file.size() - self.offset
        return len(self.batches) > before

    def _messages(self, file: pa.MemoryMappedFile, size: int) -> Iterator[pa.ipc.Message]:
        import pyarrow as pa

        while self.offset + _FRAME.size <= size:
            file.seek(self.offset)
            mark, metadata = _FRAME.unpack(file.read(_FRAME.size))
            if mark == _CONTINUATION and metadata == 0:
                self.offset += _FRAME.size
                self._ended = True
                return
            if mark != _CONTINUATION or metadata < 0 or self.offset + _FRAME.size + metadata > size:
                return
            file.seek(self.offset)
            try:
                message = pa.ipc.read_message(file)
                yield message
            except (pa.ArrowInvalid, OSError):
                return
            self.offset = file.tell()


def _conform(batch: pa.RecordBatch, table: str) -> pa.RecordBatch:
    """The batch with exactly the columns of the table: unknown ones go, missing ones are null."""
    import pyarrow as pa

    schema = arrow_schema(table)
    if batch.schema.equals(schema):
        return batch.replace_schema_metadata(schema.metadata)
    columns = []
    for field in schema:
        at = batch.schema.get_field_index(field.name)
        if at < 0:
            columns.append(pa.nulls(batch.num_rows, field.type))
        else:
            column = batch.column(at)
            columns.append(column if column.type.equals(field.type) else column.cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


class Recording:
    """A recording's folder; `poll` takes in new batches, new segments and a rewritten `meta.json`."""

    def __init__(self, folder: Path, parts: Sequence[str] = ("rank-*", "host-*")) -> None:
        """parts: patterns of the folders to read, all unless given"""
        self.folder = folder
        self._parts = tuple(parts)
        self._meta: dict[str, Any] = {}
        self._meta_stamp = (-1, -1)
        self._segments: dict[Path, Segment] = {}
        self._tables: dict[str, pa.Table] = {}

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.resolve().name

    @property
    def meta(self) -> dict[str, Any]:
        """`meta.json` as last read."""
        return self._meta

    @property
    def state(self) -> State:
        """`live` while it is written; `torn` where the writer died or a file ends in half a batch."""
        if self._live():
            return "live"
        whole = self._meta.get("state") == "finished" and not self._meta.get("recovered")
        return "finished" if whole and not self.torn else "torn"

    @property
    def torn(self) -> list[str]:
        """Files that end in a torn batch, once nobody writes them any more."""
        if self._live():
            return []
        return [f"{path.relative_to(self.folder)}" for path, segment in sorted(self._segments.items()) if segment.torn]

    def poll(self) -> bool:
        """Take in what is new; True where anything was."""
        changed = self._poll_meta()
        present: set[Path] = set()
        for path in sorted(path for part in self._parts for path in self.folder.glob(f"{part}/*")):
            match = _SEGMENT.fullmatch(path.name)
            if match is None or match["table"] not in TABLES:
                continue
            segment = self._segments.setdefault(path, Segment(path, match["table"]))
            try:
                fresh = segment.poll()
            except FileNotFoundError:
                continue
            present.add(path)
            if fresh:
                self._tables.pop(segment.table, None)
                changed = True
        for path in set(self._segments) - present:
            self._tables.pop(self._segments.pop(path).table, None)
            changed = True
        return changed

    def table(self, name: str) -> pa.Table:
        """All rows so far."""
        import pyarrow as pa

        if name not in self._tables:
            batches = [
                batch
                for _, segment in sorted(self._segments.items())
                if segment.table == name
                for batch in segment.batches
            ]
            self._tables[name] = pa.Table.from_batches(batches, schema=arrow_schema(name))
        return self._tables[name]

    def ranks(self) -> list[int]:
        """Ranks of `meta.json` and of the folders, rising."""
        listed = {int(entry["rank"]) for entry in self._meta.get("ranks") or () if entry.get("rank") is not None}
        # Names alone: paths of a thousand folders take longer to make than a rank to read.
        names = os.listdir(self.folder) if self.folder.is_dir() else []
        folders = {name.removeprefix("rank-") for name in names if name.startswith("rank-")}
        return sorted(listed | {int(number) for number in folders if number.isdigit()})

    def _live(self) -> bool:
        """Whether somebody writes it: a writer of this host that is gone never said `finished`."""
        if self._meta.get("state") != "live":
            return False
        pid = self._meta.get("sidecar_pid")
        if not isinstance(pid, int) or self._meta.get("host") != socket.gethostname():
            return True
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            return True
        return True

    def _poll_meta(self) -> bool:
        path = self.folder / META_FILE
        try:
            stat = path.stat()
            stamp = (stat.st_mtime_ns, stat.st_ino)
            if stamp == self._meta_stamp:
                return False
            meta = json.loads(path.read_bytes())
        except FileNotFoundError:
            return False
        except ValueError as problem:
            raise MoescopeError(
                f"{path}: not JSON ({problem}); restore it, or remove it to read the tables alone"
            ) from problem
        if not isinstance(meta, dict):
            raise MoescopeError(f"{path}: holds no JSON object; restore it, or remove it to read the tables alone")
        self._meta, self._meta_stamp = meta, stamp
        return True
