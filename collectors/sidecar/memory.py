"""What the recorder does with memory that it has freed."""

from __future__ import annotations

import ctypes
from typing import Final

_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
"""mallopt(3) has them with an M before."""
FREED_KEPT: Final = 64 << 20
LARGE: Final = 32 << 20
"""The most that glibc takes."""


def keep_freed_memory() -> None:
    """Has this process keep what it has freed, about `FREED_KEPT` bytes a thread, for the next time it needs as much.

    Else arrays of more than 128 KB are fetched from the system again and again, a page fault for each of their pages.
    Nothing where the C library has no mallopt.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, FREED_KEPT)
