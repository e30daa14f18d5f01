"""Whether somebody looks at the recording: a dashboard opens `meta.json` each time it was rewritten, and inotify tells.

The reader leaves no mark of its own, so one without the right to write counts as well; one on another host, over a
network file system, is not noticed and sees what comes at the slower pace.
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from pathlib import Path
from typing import Final

from moescope.collectors.schema import META_FILE

_OPEN: Final = 0x20
_EVENT: Final = struct.Struct("<iIII")  # watch, mask, cookie, length of the name that follows
_BYTES: Final = 1 << 16
STAYS_S: Final = 5.0
"""How long after its last look somebody counts as looking."""


class Audience:
    """Notices who opens a recording's `meta.json`."""

    def __init__(self, folder: Path) -> None:
        """folder: the recording; where inotify cannot be had, somebody is always taken to look"""
        self._seen_s = -STAYS_S
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd >= 0 and libc.inotify_add_watch(self._fd, os.fsencode(folder), ctypes.c_uint32(_OPEN)) < 0:
            self.close()

    @property
    def wakes(self) -> list[int]:
        """A file that is readable when somebody may have begun to look."""
        return [self._fd] if self._fd >= 0 else []

    def looks(self) -> bool:
        """Whether somebody has looked a moment ago."""
        if self._fd < 0:
            return True
        try:
            while events := os.read(self._fd, _BYTES):
                if META_FILE in _names(events):
                    self._seen_s = time.monotonic()
        except BlockingIOError:
            pass
        return time.monotonic() - self._seen_s < STAYS_S

    def close(self) -> None:
        """Stops watching."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _names(events: bytes) -> set[str]:
    """Files of one read's events."""
    found: set[str] = set()
    at = 0
    while at + _EVENT.size <= len(events):
        length = _EVENT.unpack_from(events, at)[3]
        at += _EVENT.size
        found.add(os.fsdecode(events[at : at + length].rstrip(b"\0")))
        at += length
    return found
