"""The text of a trace file, plain or gzip, a piece at a time; a gzip bomb is stopped while it unfolds."""

from __future__ import annotations

import zlib
from pathlib import Path
from types import TracebackType
from typing import Final

from moescope.profiler.errors import MoescopeError

GZIP_MAGIC: Final = b"\x1f\x8b"
BOM: Final = b"\xef\xbb\xbf"
LARGEST_RATIO: Final = 200
"""Text over gzip, beyond which a large file is no trace: traces come to 10-30."""
UNSUSPECTED: Final = 256 << 20
"""Text of this size may come from any gzip: it fits wherever a trace is read."""

_COMPRESSED: Final = 256 << 10
_ARCHIVES: Final = {
    b"PK\x03\x04": "a zip archive: unpack it",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it with `zstd -d`",
    b"\xfd7zXZ\x00": "compressed with xz: unpack it with `xz -d`",
    b"BZh": "compressed with bzip2: unpack it with `bzip2 -d`",
}


class TraceText:
    """An open trace file; without a byte-order mark, unpacked if need be.

    Every method raises MoescopeError where the file cannot be read, or is gzip that is damaged, ends early or unfolds
    without end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = path.open("rb")
            start = self._file.read(8)
            self._file.seek(len(BOM) if start.startswith(BOM) else 0)
        except OSError as problem:
            raise self._unreadable(problem) from problem
        for magic, what in _ARCHIVES.items():
            if start.startswith(magic):
                self._file.close()
                raise MoescopeError(f"{path}: {what}, then give the file inside")
        self._member = zlib.decompressobj(31) if start.startswith(GZIP_MAGIC) else None
        self._pending = b""
        self._made = 0

    def __enter__(self) -> TraceText:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def readinto(self, space: memoryview) -> int:
        """Fill `space` or a part of it; the number of bytes, 0 at the end."""
        try:
            if self._member is None:
                return self._file.readinto(space)
            text = self._inflated(len(space))
        except OSError as problem:
            raise self._unreadable(problem) from problem
        space[: len(text)] = text
        return len(text)

    def _unreadable(self, problem: OSError) -> MoescopeError:
        return MoescopeError(f"{self.path}: cannot be read: {problem.strerror or problem}")

    def _inflated(self, size: int) -> bytes:
        """At most `size` bytes of text, of all members of a gzip file one after the other; empty at the end."""
        assert self._member is not None
        while True:
            if not self._pending:
                self._pending = self._file.read(_COMPRESSED)
                if not self._pending:
                    break
            if self._member.eof:
                self._pending = self._pending.lstrip(b"\0")
                if not self._pending:
                    continue
                self._member = zlib.decompressobj(31)
            try:
                text = self._member.decompress(self._pending, size)
            except zlib.error as problem:
                raise MoescopeError(
                    f"{self.path}: gzip data is damaged before byte {self._file.tell()} of the file ({problem}); "
                    "copy the file again"
                ) from problem
            self._pending = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            self._made += len(text)
            if self._made > UNSUSPECTED and self._made > LARGEST_RATIO * (self._file.tell() - len(self._pending)):
                raise MoescopeError(
                    f"{self.path}: {self._file.tell()} bytes of gzip unfold to more than {self._made >> 20} MiB: no "
                    "trace is like that; unpack it yourself if you trust it"
                )
            if text:
                return self._without_mark(text)
        if not self._member.eof:
            raise MoescopeError(
                f"{self.path}: gzip data ends early (file of {self._file.tell()} bytes, {self._made} bytes of text); "
                "copy the file again"
            )
        return b""

    def _without_mark(self, text: bytes) -> bytes:
        return text.removeprefix(BOM) if self._made == len(text) else text
