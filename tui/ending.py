"""Leaves the dashboard of a demo some time after its run has ended, unless somebody looks at something."""

from __future__ import annotations

import time
from typing import Final

OVER: Final = "The run has ended; q shows its summary."


class Ending:
    """Counts down once the run is over; who has touched a key is told that it is over, and stays."""

    def __init__(self, after_s: float | None) -> None:
        """after_s: how long after the end to leave; None for never"""
        self._after_s = after_s
        self._ended_s: float | None = None
        self._touched = False

    def touch(self) -> None:
        """Somebody is there."""
        self._touched = True

    def call_off(self) -> bool:
        """Stays whatever comes; True where it was about to leave."""
        counting, self._after_s = self._after_s is not None, None
        return counting

    def look(self, state: str) -> tuple[bool, str]:
        """Whether to leave now, and what to say, empty for nothing. state: the snapshot's"""
        if self._after_s is None:
            return False, ""
        if state == "live":
            self._ended_s = None
            return False, ""
        if self._touched:
            self._after_s = None
            return False, OVER
        now = time.monotonic()
        if self._ended_s is None:
            self._ended_s = now
        left = self._after_s - (now - self._ended_s)
        told = f"The run has ended. The summary follows in {left:.0f} s; q shows it now, any other key stays here."
        return (True, "") if left <= 0 else (False, told)
