"""Processes of this host, as `/proc` tells of them."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

M_TRIM_THRESHOLD: Final = -1
M_MMAP_THRESHOLD: Final = -3
"""What mallopt(3) calls them."""
FREED_KEPT: Final = 64 << 20
LARGE: Final = 32 << 20
"""The most that glibc takes."""


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return _stat(pid)[0:1] not in ([], [b"Z"], [b"X"])


def started(pid: int) -> int | None:
    """When the process started, clock ticks since boot: with its number it names a process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


def keep_freed_memory() -> None:
    """Has this process keep what it has freed, about `FREED_KEPT` bytes a thread, for the next time it needs as much.

    Else arrays of more than 128 KB are fetched from the system again and again, a page fault for each of their pages.
    Nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGE)
        mallopt(M_TRIM_THRESHOLD, FREED_KEPT)


def descendants(pid: int) -> list[int]:
    """The processes that `pid` has started, and those that these have; not where one in between has ended."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        fields = _stat(int(entry)) if entry.isdigit() else []
        if fields:
            children.setdefault(int(fields[1]), []).append(int(entry))
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found[1:]


def kill(pids: Iterable[int]) -> None:
    """Ends the processes at once; those that have ended, or are another's, are left alone."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue


def _stat(pid: int) -> list[bytes]:
    """Fields of `/proc/<pid>/stat` from the state on; none where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return []
