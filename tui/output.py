"""The tail of a file that a run writes its output to, without what would disturb a screen."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

LINES: Final = 500
_FIRST_READ: Final = 1 << 16
_ESCAPES: Final = re.compile(r"\x1b(?:\[[0-9;?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-_])")


class OutputTail:
    """Reads what is new at each call; a line rewritten with carriage returns shows its last state."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = -1
        self._rest = ""
        self._lines: deque[str] = deque(maxlen=LINES)

    def read(self) -> Sequence[str]:
        """The last lines, the unfinished one included."""
        try:
            with open(self._path, "rb") as file:
                size = file.seek(0, 2)
                if self._at < 0 or self._at > size:
                    self._at = max(0, size - _FIRST_READ)
                if size > self._at:
                    file.seek(self._at)
                    data = file.read()
                    self._at += len(data)
                    self._take(data.decode("utf-8", "replace"))
        except OSError:
            pass
        return [*self._lines, _shown(self._rest)] if self._rest.strip() else list(self._lines)

    def _take(self, text: str) -> None:
        *whole, self._rest = (self._rest + text).split("\n")
        self._lines.extend(_shown(line) for line in whole)


def _shown(line: str) -> str:
    plain = _ESCAPES.sub("", line.rstrip("\r")).expandtabs()
    return plain.rpartition("\r")[2]
