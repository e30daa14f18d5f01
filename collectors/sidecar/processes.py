"""Processes of this host, as `/proc` tells of them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable
from pathlib import Path


def alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return _stat(pid)[0:1] not in ([], [b"Z"], [b"X"])


def started(pid: int) -> int | None:
    """When the process started, clock ticks since boot: with its number it names a process for good."""
    fields = _stat(pid)
    return int(fields[19]) if fields else None


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
