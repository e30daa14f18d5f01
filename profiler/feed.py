"""What the dashboard draws from: the interface between the analysis and any screen."""

from __future__ import annotations

from typing import Protocol

from moescope.profiler.snapshot import Snapshot, Timeline, TimelineView, View


class Feed(Protocol):
    """A recording or trace, live or finished, that answers with frozen snapshots.

    `poll` and the two queries run on one background thread; the screen only swaps in what they return.
    """

    def poll(self) -> bool:
        """Take in what is new since the last call; True where anything was."""

    def snapshot(self, view: View) -> Snapshot:
        """Everything but the timeline."""

    def timeline(self, view: TimelineView) -> Timeline:
        """A window of the run, binned into cells."""

    def next_exposed(self, after_ns: int, rank: int | None, *, backward: bool = False) -> tuple[int, int] | None:
        """The next stretch of exposed communication, as start and end in ns since the epoch."""
