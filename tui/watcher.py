"""Asks the feed on a thread of its own: the screen never waits for the analysis, and swaps in whole answers."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from moescope.profiler.feed import Feed
from moescope.profiler.snapshot import Snapshot, Timeline, TimelineView, View

Found = TypeVar("Found")

IDLE_S: Final = 1.0
"""How often a source that grows no more is looked at again."""

CORE_SHARE: Final = 0.06
"""Share of a core that taking in and analysing a growing run may use: what a look has cost decides when the next is."""

LONGEST_S: Final = 3.0
"""At least this often a growing run is looked at, whatever it costs."""


@dataclass(frozen=True)
class Wish:
    """What the screen wants to draw; frozen: nothing new is taken in."""

    view: View
    timeline: TimelineView | None = None
    frozen: bool = False


@dataclass(frozen=True)
class Answer:
    """One consistent picture."""

    wish: Wish
    snapshot: Snapshot
    timeline: Timeline | None


class Watcher(threading.Thread):
    """Polls the feed, at most at the screen's rate and within `CORE_SHARE`, and holds the newest answer.

    What the viewer chooses is answered at once, from what has been taken in.
    """

    def __init__(self, feed: Feed, wish: Wish, interval_s: float) -> None:
        super().__init__(name="moescope-feed", daemon=True)
        self.interval_s = interval_s
        self.latest: Answer | None = None
        self.problem = ""
        self._feed = feed
        self._wish = wish
        self._wake = threading.Event()
        self._ending = False
        self._questions: queue.SimpleQueue[tuple[Callable[[Feed], Any], Callable[[Any], None]]] = queue.SimpleQueue()
        self._replies: queue.SimpleQueue[tuple[Callable[[Any], None], Any]] = queue.SimpleQueue()

    def want(self, wish: Wish) -> None:
        """Asks for another picture."""
        if wish != self._wish:
            self._wish = wish
            self._wake.set()

    def ask(self, question: Callable[[Feed], Found], then: Callable[[Found], None]) -> None:
        """Has `question` answered on the feed's thread; `then` is called by the next `deliver`."""
        self._questions.put((question, then))
        self._wake.set()

    def deliver(self) -> bool:
        """Hands over what was answered, on the caller's thread; True where anything was."""
        delivered = False
        while not self._replies.empty():
            then, found = self._replies.get()
            then(found)
            delivered = True
        return delivered

    def stop(self) -> None:
        """Ends the thread after the query at hand."""
        self._ending = True
        self._wake.set()

    def run(self) -> None:
        answered: Wish | None = None
        next_poll_s = 0.0
        while not self._ending:
            self._wake.clear()
            wish = self._wish
            cost_s = time.thread_time()
            try:
                due = time.monotonic() >= next_poll_s and not wish.frozen
                new = due and self._feed.poll()
                if new or wish != answered:
                    timeline = self._feed.timeline(wish.timeline) if wish.timeline is not None else None
                    self.latest = Answer(wish, self._feed.snapshot(wish.view), timeline)
                    answered = wish
                if due:
                    next_poll_s = time.monotonic() + self._pause(time.thread_time() - cost_s)
                while not self._questions.empty():
                    question, then = self._questions.get()
                    self._replies.put((then, question(self._feed)))
                self.problem = ""
            except Exception as error:  # noqa: BLE001  shown on the screen; the next round may do better
                self.problem = f"the recording could not be read: {type(error).__name__}: {error}"
                answered, next_poll_s = wish, time.monotonic() + self.interval_s
            self._wake.wait(max(next_poll_s - time.monotonic(), 0.0) if not wish.frozen else IDLE_S)

    def _pause(self, cost_s: float) -> float:
        """How long to wait after a look that has cost `cost_s` of CPU time."""
        if self.latest is not None and self.latest.snapshot.state != "live":
            return max(self.interval_s, IDLE_S)
        return max(self.interval_s, min(cost_s / CORE_SHARE, LONGEST_S))
