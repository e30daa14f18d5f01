"""Small files of /proc and /sys that are read again and again: to open one costs more than to read it."""

from __future__ import annotations

import os
from typing import Final

_BYTES: Final = 4096


class Files:
    """Keeps files open from one reading to the next."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._read: set[str] = set()

    def text(self, path: str) -> str:
        """What the file says now, its first 4 KiB. Raises OSError where it cannot be read (any more)."""
        file = self._open.get(path)
        if file is None:
            file = self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.pread(file, _BYTES, 0)
        except OSError:
            os.close(self._open.pop(path))
            raise
        self._read.add(path)
        return data.decode("utf-8", "replace")

    def close_others(self) -> None:
        """Closes what was not read since the last call of this: it may be gone."""
        for path in self._open.keys() - self._read:
            os.close(self._open.pop(path))
        self._read.clear()

    def close(self) -> None:
        """Closes all."""
        self._read.clear()
        self.close_others()
