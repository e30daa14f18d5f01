"""What of torch's profiler is on, thread by thread.

Torch's profilers are thread-local, and toggling one from another thread crashes the target. Gloo tells when it executes
a call that was issued with ranges on: on a thread that communicates ranges alone stay on, which costs its operators
next to nothing, and everything inside windows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from .itt import Follower, IttSource, Switch
from .window import Window

if TYPE_CHECKING:
    from .session import Session


class Switches:
    """One a process; each method is about the calling thread."""

    def __init__(self, session: Session, window: Window, off: Callable[[], bool]) -> None:
        """off: whether nothing is to be on, as the target profiles by itself, or ends"""
        self._session, self._window, self._off = session, window, off
        self._follower = Follower()
        self.at_main = False
        """Whether the main thread is being switched here: no window can open meanwhile."""

    def in_backward(self) -> bool:
        """Torch has swapped the thread's state for the time of a backward pass: what is switched is lost with it."""
        return bool(self._session.torch._C._current_graph_task_id() != -1)

    def ranges_on(self) -> bool:
        """Sees to the thread; whether what it issues now will tell when it is executed.

        The main thread's windows are opened and closed as a timer asks; in those of another thread all is on from here,
        its next call, on.
        """
        ring, window, state = self._session.ring, self._window, self._follower
        if state.on_main and window.here():
            if window.tells_ranges:
                ring.settle(1)
            return window.tells_ranges
        if self._off() or not window.tells_ranges:
            self.let_go()
            return False
        is_open = window.since != 0
        # Where C++ issues calls, too, ranges would tell of their execution, and nothing of their issue.
        alone = not is_open and window.source.tells_apart() and not ring.followed()
        if state.switch is None or state.switch.ranges_alone != alone or not (is_open or alone):
            if self.in_backward():
                return state.switch is not None
            self.let_go()
            if not (is_open or alone):
                return False
            self._set(lambda: Switch(window.source, ranges_alone=alone))
        ring.settle(1)
        return True

    def still_on(self) -> bool:
        """Whether ranges are on; the thread has just issued something while they were."""
        return self._follower.switch is not None or self._window.here()

    def record(self, source: IttSource) -> None:
        """Has all of the thread recorded, until it lets go or ends."""
        self._set(lambda: Switch(source, ranges_alone=False))

    def see_to(self) -> None:
        """Has what a window had on go off, where another thread has ended that window."""
        switch = self._follower.switch
        if switch is not None and not switch.ranges_alone and not self._window.since:
            self._session.ring.window(0)
            self.let_go()

    def let_go(self) -> None:
        """Nothing is on any more, but what a window of the main thread's has on."""
        if self._follower.switch is None:
            return
        self._session.ring.settle(0)
        if not self.in_backward():
            self._set(lambda: None)

    def _set(self, to: Callable[[], Switch | None]) -> None:
        """What the thread's switch was before closes itself when nothing holds it any more."""
        state = self._follower
        if not state.on_main:
            state.switch = to()
            return
        # A pending call that opened a window on the way would find the profiler on already.
        before, self.at_main = self.at_main, True
        try:
            state.switch = to()
        finally:
            self.at_main = before

    def lend(self) -> bool:
        """Has ranges on for one call, where they cannot stay on; `take_back` has to follow.

        What is issued meanwhile tells when it is executed; what the thread itself does is not recorded. False where
        there are none to lend: before the first window, or while the target runs a profiler of its own.
        """
        source = self._window.source
        if self._off() or not isinstance(source, IttSource):
            return False
        self._set(lambda: Switch(source, ranges_alone=True))
        self._session.ring.mute(1)
        return True

    def take_back(self) -> None:
        """Ends what `lend` began, inside the same backward pass if it was inside one."""
        self._session.ring.mute(0)
        self._set(lambda: None)
