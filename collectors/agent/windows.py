"""Records operators in windows whose share of the time follows a budget.

Where steps are short a window is a whole step, opened and closed where steps begin. Elsewhere it is a slice of time: a
timer thread decides when; the main thread, through `Py_AddPendingCall`, opens and closes: torch's profilers are
thread-local, and toggling them from another thread crashes the target. The main thread cannot always answer (inside a
backward pass, or one long call). What it cannot cut is then recorded whole where a slice was open as it began, and not
at all where none was, so that everything is recorded for the same share of its time.

The cost of an operator is measured at the first window, on this process; what windows have cost decides their share.
"""

from __future__ import annotations

import ctypes
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import kineto
from .device import DeviceKeeper
from .graphs import Graphs
from .itt import Follower, IttSource, Switch, on_main, operator_cost_ns
from .pace import (
    FIRST_WINDOWS,
    LEAST_NS,
    MIN_WINDOW_S,
    PERIOD_S,
    STARVED_S,
    Pace,
    Steps,
    left_of,
    steps_share,
    until_next,
)
from .peers import Peers
from .process import is_data_worker
from .recorder import STEP_COST_NS
from .ring import WINDOW

if TYPE_CHECKING:
    from .session import Session

AWAIT_S = 0.1
"""How often to look whether CUDA has started, where it is likely to."""
RETRY_S = (0.02, 0.5)
"""How soon to ask the main thread again, at first and at last, where it was inside a backward pass: the end of the pass
is where it answers by itself, if the pass began in Python."""

_PENDING = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class WindowKeeper:
    """Opens and closes windows; one a process. Methods named `_on_main` run on the main thread only."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._budget = session.settings.budget
        self._source: Any = None
        self._tells_ranges = False
        """Whether the source is torch's ITT, which tells when gloo executes a call."""
        self._operator_cost_ns = 0.0
        self._open_since = 0
        self._operators_before = 0
        self._paused = 0
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._follower = Follower()
        self._failed = False
        self._graphs = Graphs(session)
        self._pace = Pace()
        self._steps = Steps()
        self._peers = Peers(session.settings.ring_dir)
        self._whole = False
        """Whether the open window holds whole steps."""
        self._opened: Any = None
        """The source of the open window: the next may have another."""
        self._opening_ns = 0
        self._last_cost_ns = 0
        self._worked = 0
        """Windows with operators in them."""
        self._last_open = time.monotonic()
        self._owed: Callable[[], None] | None = None
        self._asked = False
        self._switching_on_main = False
        """The main thread is switching torch's ranges by itself, or has lent them: what the timer asks for waits."""
        self._at_it = False
        """Whether the main thread is opening or closing a window: what the timer asks for waits."""
        self._device: DeviceKeeper | None = None
        self._with_device = False
        self._callback = _PENDING(self._pending)

    def ranges_on(self) -> bool:
        """Sees to the calling thread; whether what it issues now will tell when it is executed.

        Torch's profilers are thread-local. The main thread's windows are opened and closed as the timer asks, those of
        another by that itself, at its next call. Between them ranges alone stay on, which costs its operators nothing.
        """
        state, window = self._follower, self._open_since != 0
        if state.on_main and window:
            if self._tells_ranges:
                self._session.ring.settle(1)
            return self._tells_ranges
        if self._paused or not self._tells_ranges or self._stopping.is_set():
            self._let_go(state)
            return False
        # Where C++ issues calls, too, ranges would tell of their execution, and nothing of their issue.
        alone = not window and self._source.ranges_alone and not self._session.ring.followed()
        if state.switch is None or state.switch.ranges_alone != alone or not (window or alone):
            if self._in_backward():
                return state.switch is not None
            self._let_go(state)
            if not (window or alone):
                return False
            self._switch(state, lambda: Switch(self._source, ranges_alone=alone))
        self._session.ring.settle(1)
        return True

    def rest(self) -> None:
        """Nobody asks for ranges on the calling thread any more."""
        self._let_go(self._follower)

    def still_on(self) -> bool:
        """Whether ranges are on, on the calling thread; it has just issued something while they were."""
        state = self._follower
        return state.switch is not None or (state.on_main and self._open_since != 0)

    def _switch(self, state: Follower, to: Callable[[], Switch | None]) -> None:
        """What the thread's switch was before closes itself when nothing holds it any more."""
        if not state.on_main:
            state.switch = to()
            return
        # A pending call that opened a window on the way would find the profiler on already.
        before, self._switching_on_main = self._switching_on_main, True
        try:
            state.switch = to()
        finally:
            self._switching_on_main = before

    def _in_backward(self) -> bool:
        """Torch has swapped the calling thread's state for the time of a backward pass."""
        return bool(self._session.torch._C._current_graph_task_id() != -1)

    def _let_go(self, state: Follower) -> None:
        if state.switch is None:
            return
        self._session.ring.settle(0)
        if not self._in_backward():
            self._switch(state, lambda: None)

    def lend(self) -> IttSource | None:
        """Opens ranges, but no window, on the calling thread: what is issued meanwhile tells when it is executed.

        Where they cannot stay on. What this thread itself does is not recorded. The caller closes by `take_back`. None
        where there are none to lend: before the first window, or while the target runs a profiler of its own.
        """
        source = self._source
        if self._paused or self._stopping.is_set() or not isinstance(source, IttSource):
            return None
        # First: a pending call that opened a window between two of these lines would find the profiler on already.
        if on_main():
            self._switching_on_main = True
        try:
            source.open_ranges()
        except Exception:
            if on_main():
                self._switching_on_main = False
            raise
        self._session.ring.mute(1)
        return source

    def take_back(self, source: IttSource) -> None:
        """Ends what `lend` began, on the same thread."""
        self._session.ring.mute(0)
        try:
            source.close()
        finally:
            if on_main():
                self._switching_on_main = False
                self.settle_owed()

    def start(self) -> None:
        """Starts the timer thread; where steps were asked for, they open and close the window instead."""
        self._device = DeviceKeeper(self._session)
        if self._session.settings.steps is not None:
            self._session.recorder.on_step = self._at_step
            return
        if self._budget is not None:
            self._session.recorder.on_step = self._at_boundary
        threading.Thread(target=self._run, name="moescope", daemon=True).start()

    def stop(self) -> None:
        """At exit, on the main thread."""
        self._stopping.set()
        self._session.ring.unsettle()
        self.leave()
        if self._device is not None:
            self._device.stop()

    def prepare_pause(self) -> None:
        """The target prepares a profiler of its own: of the GPU it may take hold before it starts."""
        self.close_window()
        if self._device is not None:
            self._device.step_aside()

    def pause(self) -> None:
        """The target starts a profiler of its own on the calling thread: ours steps aside."""
        self._paused += 1
        self._session.ring.unsettle()
        self.leave()
        self.prepare_pause()

    def resume(self) -> None:
        self._paused = max(0, self._paused - 1)
        if self._device is not None and not self._paused:
            self._device.come_back()

    def leave(self) -> None:
        """Leaves torch's profilers off on the calling thread, until something has them on again."""
        self.close_window()
        self._let_go(self._follower)

    def close_window(self) -> None:
        """Closes the open window, if any; on the main thread alone."""
        if self._open_since and on_main():
            self._at_it = True
            try:
                self._close_on_main()
            finally:
                self._at_it = False

    def settle(self) -> None:
        """Does what the timer asks for, if it asks and this is a moment for it; on the main thread."""
        if self._switching_on_main or self._at_it:
            return
        # Inside a backward pass torch has swapped the thread's state: what is opened there is lost with it.
        if self._in_backward():
            return
        action, self._owed = self._owed, None
        if action is None:
            return  # no longer asked for
        try:
            action()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)
        finally:
            self._changed.set()

    def settle_owed(self) -> None:
        """What the timer could not have done a moment ago can be done now: a backward pass or a call has ended."""
        if self._owed is not None and on_main():
            self.settle()

    def _pending(self, _: Any) -> int:
        self._asked = False
        self.settle()
        return 0

    def _fail(self, error: BaseException) -> None:
        self._failed = True
        self._session.recorder.log("error", "kernels", f"operators are no longer recorded: {error!r}")

    def _run(self) -> None:
        # A short first wait lets the program finish its imports.
        gap, patience_s = 0.02, 0.0
        while not self._stopping.wait(gap):
            if self._failed or is_data_worker(self._session.torch):
                return
            if self._paused:
                gap = 0.02
                continue
            if self._device is not None and self._device.used():
                if self._device.records():
                    self._steps.pick(0.0)
                    self._device.turn()
                    gap = PERIOD_S
                    continue
                self._take_in_device()
            elif self._device is not None and self._device.awaited():
                gap = AWAIT_S
                continue
            if self._budget is None:
                gap = 0.0
                if not self._slice(PERIOD_S, late=True):
                    return
                continue
            available = left_of(self._budget, self._events_share())
            share = self._pace.share(available)
            if self._session.facts.get("world_size", 1) > 1:
                share = self._peers.least(share)
            step_s = (self._steps.usual_ns() or 0.0) / 1e9
            flow = self._steps.flow(time.monotonic_ns())
            of_steps = steps_share(share, step_s) if flow else 0.0
            self._steps.pick(of_steps)
            if self._whole and not flow and not self._ask(self._close_whole):
                return
            if of_steps == share:
                gap = PERIOD_S
                continue
            of_slices = share - of_steps
            starved = self._worked < FIRST_WINDOWS or time.monotonic() - self._last_open > patience_s
            if not self._slice(max(MIN_WINDOW_S, of_slices * PERIOD_S), late=starved):
                return
            patience_s = max(STARVED_S, 2 * step_s, 1e-9 * self._last_cost_ns / available)
            gap = until_next(of_slices)

    def _slice(self, lasts_s: float, *, late: bool) -> bool:
        """One window of this length from now on; False where the process is ending.

        late: it may open after its end, and lasts as long from then on; otherwise there is none where the main thread
        does not answer in time
        """
        if late:
            if not self._ask(self._open_on_main):
                return False
            end = time.monotonic() + lasts_s
        else:
            end = time.monotonic() + lasts_s
            if not self._ask(lambda: self._open_on_main(until=end), until=end):
                return False
        self._stopping.wait(max(0.0, end - time.monotonic()))
        if self._stopping.is_set():
            return False
        # While the main thread runs Python it keeps this one waiting: such a slice would last longer than others do.
        # It is kept for longer by a call that holds the interpreter, which cannot be cut.
        late_s = time.monotonic() - end
        late_ns = int(late_s * 1e9) if 0 < late_s < 2 * sys.getswitchinterval() else 0
        return not self._open_since or self._ask(lambda: self._close_slice(late_ns))

    def _take_in_device(self) -> None:
        """CUDA has started and CUPTI cannot be had: windows hold the GPU's kernels from here on."""
        if not self._with_device:
            self._with_device = True
            self._tells_ranges = False
            self._session.ring.unsettle()
            self._source = None

    def _events_share(self) -> float:
        """Share of the time that phases and counts have cost since the start."""
        elapsed = time.monotonic_ns() - self._session.facts["start_ns"]
        return float(self._session.recorder.cost_ns() / max(elapsed, 1))

    def _at_step(self, number: int) -> None:
        """A window a step, as `--steps` asks: nothing of the steps around it."""
        steps = self._session.settings.steps
        if steps is None or self._failed or not on_main() or self._in_backward():
            return
        try:
            self.close_window()
            wanted = steps[0] <= number <= steps[1]
            if self._device is not None and self._device.used():
                if self._device.records():
                    self._device.at_step(wanted=wanted)
                    return
                self._take_in_device()
            if wanted:
                self._open_on_main()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)

    def _at_boundary(self, number: int) -> None:
        """A step begins: the window of those before it ends, and a new one begins if this step is chosen."""
        # An optimizer may step inside a backward pass.
        if self._failed or not on_main() or self._in_backward():
            return
        self._at_it = True
        try:
            now_ns = time.monotonic_ns()
            self._steps.begin(now_ns, number)
            if self._whole and now_ns - self._open_since >= LEAST_NS:
                self._close_on_main()
            if not self._whole and self._steps.chosen() and not self._switching_on_main:
                self._close_on_main()
                self._open_on_main()
                self._whole = self._open_since != 0
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)
        finally:
            self._at_it = False
        self._session.recorder.events_cost_ns += STEP_COST_NS

    def _ask(self, action: Callable[[], None], until: float | None = None) -> bool:
        """Has the main thread run `action`; False where the process is ending meanwhile.

        until: time.monotonic() at which it is no longer asked for
        """
        self._changed.clear()
        self._owed = action
        wait_s, longest_s = RETRY_S
        while not self._stopping.is_set() and threading.main_thread().is_alive():
            if not self._asked:
                self._asked = ctypes.pythonapi.Py_AddPendingCall(self._callback, None) == 0
            left_s = wait_s if until is None else until - time.monotonic()
            if self._changed.wait(max(0.0, min(wait_s, left_s))):
                return not self._stopping.is_set()
            if left_s <= wait_s and until is not None:
                if self._withdraw():
                    return not self._stopping.is_set()
                until = None
            wait_s = min(2 * wait_s, longest_s)
        return False

    def _withdraw(self) -> bool:
        """Takes back what was asked for; False where the main thread is at it already."""
        owed, self._owed = self._owed, None
        return owed is not None

    def _open_on_main(self, until: float | None = None) -> None:
        """until: time.monotonic() from which on it is too late."""
        if self._open_since or self._paused or self._stopping.is_set():
            return
        if until is not None and time.monotonic() >= until:
            return
        if is_data_worker(self._session.torch):
            self._stopping.set()
            return
        if self._source is None:
            self._source = self._choose()
            self._tells_ranges = isinstance(self._source, IttSource)
            self._session.tell(source=self._source.name)
        self._operators_before = self._session.ring.operators()
        before = time.monotonic_ns()
        self._let_go(self._follower)
        self._opened = self._source
        self._opened.open()
        if self._tells_ranges:
            self._graphs.look()
            self._session.ring.window(1)
        self._open_since = time.monotonic_ns()
        self._last_open = self._open_since / 1e9
        self._session.ring.unsettle()
        self._opening_ns = self._open_since - before

    def _close_slice(self, late_ns: int) -> None:
        """late_ns: how much later than it should have been it was asked for"""
        if not self._whole:
            self._close_on_main(late_ns)

    def _close_whole(self) -> None:
        """Steps have stopped within a window of theirs, unless another has begun meanwhile."""
        if self._whole and not self._steps.flow(time.monotonic_ns()):
            self._close_on_main()

    def _close_on_main(self, late_ns: int = 0) -> None:
        """late_ns: how much of the window's end is no part of it"""
        if not self._open_since:
            return
        self._whole = False
        start, self._open_since = self._open_since, 0
        self._session.ring.unsettle()
        end = time.monotonic_ns()
        ring = self._session.ring
        ring.window(0)
        self._opened.close()
        ring.record(WINDOW, self._opened.name, start, max(end - late_ns - start, 1))
        operators = ring.operators() - self._operators_before
        cost = int(operators * self._operator_cost_ns + self._opening_ns + (time.monotonic_ns() - end))
        ring.overhead(cost)
        self._last_cost_ns = cost
        self._worked += operators > 0
        self._pace.window(cost, end - start)

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
