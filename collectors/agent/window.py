"""The window in which a process's operators are recorded: one at a time, whichever thread opens it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import kineto
from .graphs import Graphs
from .itt import IttSource, on_main, operator_cost_ns
from .ring import WINDOW

if TYPE_CHECKING:
    from .session import Session


class Window:
    """Opens and closes, tells when it was open, and reckons what it cost."""

    def __init__(self, session: Session, closed: Callable[[int, int], None]) -> None:
        """closed: is told what each window is reckoned to have cost and how long it lasted, ns; with ITT from the first
        on that holds operators: those before it, while the program loads, would tell that windows are cheap
        """
        self._session = session
        self._closed = closed
        self.source: Any = None
        """Of the next one."""
        self.tells_ranges = False
        """Whether that is torch's ITT, which tells when gloo executes a call."""
        self.since = 0
        """When it opened, CLOCK_MONOTONIC ns; 0 while none is open."""
        self.whole = False
        """Whether one is open that holds whole steps."""
        self.last_open = time.monotonic()
        self.main_worked = 0.0
        """time.monotonic() of the last in which the main thread ran operators."""
        self._claimed = False
        self._own_operators_before = 0
        self.worked = 0
        """Windows with operators in them."""
        self.empty = 0
        """Windows before the first of these."""
        self.last_cost_ns = 0
        self._of_open: Any = None
        self.thread = 0
        """Which opened the last one."""
        self._operator_cost_ns = 0.0
        self._operators_before = 0
        self._opening_ns = 0
        self._with_device = False
        self._graphs = Graphs(session)
        self._lock = threading.RLock()

    def here(self) -> bool:
        """Whether one is open that the calling thread opened."""
        return self.since != 0 and self.thread == threading.get_ident()

    def ready(self) -> Any:
        """The source of the next one, chosen and tried on the calling thread if it was not yet."""
        if self.source is None:
            self.source = self._choose()
            self.tells_ranges = isinstance(self.source, IttSource)
            self._session.tell(source=self.source.name)
        return self.source

    def of_main(self) -> bool:
        """Whether the main thread opened the last one."""
        return self.thread == threading.main_thread().ident

    def open(self, switch: Callable[[Any], None], *, whole: bool = False) -> None:
        """switch: has the source, which is ready, record what the calling thread does; whole: it holds whole steps

        Nothing happens where another thread has one open, or is about to.
        """
        with self._lock:
            if self.since or self._claimed:
                return
            self._claimed, self.thread = True, threading.get_ident()
        try:
            self._open(switch, whole=whole)
        finally:
            self._claimed = False

    def _open(self, switch: Callable[[Any], None], *, whole: bool) -> None:
        ring = self._session.ring
        self._own_operators_before = ring.thread_operators()
        self._operators_before = ring.operators()
        before = time.monotonic_ns()
        self._of_open = self.source
        switch(self._of_open)
        if self.tells_ranges:
            self._graphs.look()
            ring.window(1)
        now_ns = time.monotonic_ns()
        self.last_open = now_ns / 1e9
        self._opening_ns = now_ns - before
        self.since, self.whole = now_ns, whole
        ring.unsettle()

    def close(self, switch: Callable[[Any], None] | None, late_ns: int = 0) -> Any:
        """The source that was open; None where none was.

        switch: has it record no longer what the calling thread does; where another thread opened it there is none, and
        it goes on, in no window, until that thread sees to it
        late_ns: how much of the window's end is no part of it
        """
        ring = self._session.ring
        with self._lock:
            start, self.since, self.whole = self.since, 0, False
        if not start:
            return None
        ring.unsettle()
        end = time.monotonic_ns()
        source = self._of_open
        if switch is not None:
            ring.window(0)
            switch(source)
            if on_main() and ring.thread_operators() != self._own_operators_before:
                self.main_worked = end / 1e9
        ring.record(WINDOW, source.name, start, max(end - late_ns - start, 1))
        operators = ring.operators() - self._operators_before
        cost = int(operators * self._operator_cost_ns + self._opening_ns + (time.monotonic_ns() - end))
        ring.overhead(cost)
        self.last_cost_ns = cost
        self.worked += operators > 0
        # Of Kineto an empty one has its price, and a GPU's kernels are no operators.
        if self.worked or not isinstance(source, IttSource):
            self._closed(cost, end - start)
        else:
            self.empty += 1
        return source

    def take_in_device(self) -> None:
        """From the next one on it holds the GPU's kernels, too."""
        if not self._with_device:
            self._with_device = True
            self.tells_ranges = False
            self._session.ring.unsettle()
            self.source = None

    def _choose(self) -> Any:
        torch, ring = self._session.torch, self._session.ring
        if self._with_device:
            self._operator_cost_ns = kineto.OPERATOR_COST_NS
            return kineto.KinetoSource(torch, ring, cuda=True)
        if ring.kind == "ring":
            try:
                source = IttSource(torch)
                self._operator_cost_ns = operator_cost_ns(source, torch, ring)
            except Exception as error:  # noqa: BLE001  the next source is tried, and the reason is told
                self._session.recorder.log("warning", "kernels", f"ITT cannot be used ({error!r}); Kineto instead")
            else:
                return source
        self._operator_cost_ns = kineto.OPERATOR_COST_NS
        return kineto.KinetoSource(torch, ring)
