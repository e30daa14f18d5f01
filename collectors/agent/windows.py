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

from .device import DeviceKeeper
from .itt import IttSource, on_main
from .pace import (
    EAGER_S,
    EAGER_WINDOWS,
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
from .switches import Switches
from .window import Window

if TYPE_CHECKING:
    from .session import Session

AWAIT_S = 0.1
"""How often to look whether CUDA has started, where it is likely to."""
RETRY_S = (0.02, 0.5)
"""How soon to ask the main thread again, at first and at last, where it was inside a backward pass: the end of the pass
is where it answers by itself, if the pass began in Python."""

WORKED_S = 1.0
"""For how long the main thread must not be seen to run operators before the steps of another are followed instead."""

_PENDING = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)


class WindowKeeper:
    """Opens and closes windows; one a process."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._budget = session.settings.budget
        self._paused = 0
        self._changed = threading.Event()
        self._stopping = threading.Event()
        self._failed = False
        self._pace = Pace()
        self._window = Window(session, self._pace.window)
        self.switches = Switches(session, self._window, lambda: self._paused > 0 or self._stopping.is_set())
        self._steps = Steps()
        self._peers = Peers(session.settings.ring_dir)
        self._stepper = threading.main_thread()
        """The thread that makes the steps. Windows of another than the main one are whole steps of its own."""
        self._claims: tuple[threading.Thread, float] | None = None
        """The thread that made steps last beside those of the stepper, and since when."""
        self._left: Any = None
        """What records on the main thread still, though its window has ended."""
        self._owed: Callable[[], None] | None = None
        self._asked = False
        self._at_it = False
        """Whether the main thread is opening or closing a window: what the timer asks for waits."""
        self._device: DeviceKeeper | None = None
        self._callback = _PENDING(self._pending)

    def start(self) -> None:
        """Starts the timer thread; where steps were asked for, they open and close the window instead."""
        self._device = DeviceKeeper(self._session)
        if self._session.settings.steps is not None:
            self._session.recorder.on_step = self._at_step
            return
        self._session.recorder.on_step = self._at_boundary
        threading.Thread(target=self._run, name="moescope", daemon=True).start()

    def stop(self) -> None:
        """At exit, on the main thread."""
        self._stopping.set()
        self._session.ring.unsettle()
        self.leave()
        self._window.close(None)  # another thread's
        if self._device is not None:
            self._device.stop()

    def prepare_pause(self) -> None:
        """The target prepares a profiler of its own: of the GPU it may take hold before it starts."""
        try:
            self.close_window()
            if self._device is not None:
                self._device.step_aside()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)

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
        try:
            self.close_window()
            if on_main() and not self.switches.in_backward():
                self._close_left()
            self.switches.let_go()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)

    def close_window(self) -> None:
        """Closes the window that the calling thread has open, if any."""
        if not self._window.here():
            return
        if not on_main():
            self._close()
            return
        self._at_it = True
        try:
            self._close()
        finally:
            self._at_it = False

    def settle(self) -> None:
        """Does what the timer asks for, if it asks and this is a moment for it; on the main thread."""
        if self.switches.at_main or self._at_it:
            return
        # Inside a backward pass torch has swapped the thread's state: what is opened there is lost with it.
        if self.switches.in_backward():
            return
        action, self._owed = self._owed, None
        self._at_it = True
        try:
            self._close_left()
            if action is not None:  # else it is no longer asked for
                action()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)
        finally:
            self._at_it = False
            if action is not None:
                self._changed.set()

    def settle_owed(self) -> None:
        """What could not have been done a moment ago can be done now: a backward pass has ended."""
        self.switches.see_to()
        if (self._owed is not None or self._left is not None) and on_main():
            self.settle()

    def _close_left(self) -> None:
        """On the main thread, outside backward passes."""
        left, self._left = self._left, None
        if left is not None:
            self._session.ring.window(0)
            left.close()

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
                self._window.take_in_device()
            elif self._device is not None and self._device.awaited():
                gap = AWAIT_S
                continue
            beside = self._steps_beside()
            if not beside and self._window.since and not self._window.of_main():
                self._close()
            if self._budget is None:
                gap = PERIOD_S if beside else 0.0
                if not beside and not self._slice(PERIOD_S, late=True) and self._over():
                    return
                continue
            available = left_of(self._budget, self._events_share(), self._window.worked)
            share = self._pace.share(available)
            if self._session.facts.get("world_size", 1) > 1:
                share = self._peers.least(share, sure=self._window.worked > 0)
            if beside:
                self._steps.pick(share)
                gap = PERIOD_S
                continue
            step_s = (self._steps.usual_ns() or 0.0) / 1e9
            flow = self._steps.flow(time.monotonic_ns())
            of_steps = steps_share(share, step_s) if flow and self._stepper is threading.main_thread() else 0.0
            self._steps.pick(of_steps)
            if self._window.whole and not flow and not self._ask(self._close_whole) and self._over():
                return
            if of_steps == share:
                gap = PERIOD_S
                continue
            of_slices = share - of_steps
            starved = self._window.worked < FIRST_WINDOWS or time.monotonic() - self._window.last_open > patience_s
            if not self._slice(max(MIN_WINDOW_S, of_slices * PERIOD_S), late=starved) and self._over():
                return
            patience_s = max(STARVED_S, 2 * step_s, 1e-9 * self._window.last_cost_ns / available)
            window = self._window
            eager = window.tells_ranges and not window.worked and window.empty < EAGER_WINDOWS
            gap = EAGER_S if eager else until_next(of_slices)

    def _slice(self, lasts_s: float, *, late: bool) -> bool:
        """One window of this length from now on; False where the process is ending.

        late: it may open after its end, and lasts as long from then on; otherwise there is none where the main thread
        does not answer in time
        """
        if late:
            if not self._ask(self._open):
                return False
            end = time.monotonic() + lasts_s
        else:
            end = time.monotonic() + lasts_s
            if not self._ask(lambda: self._open(until=end), until=end):
                return False
        self._stopping.wait(max(0.0, end - time.monotonic()))
        if self._stopping.is_set():
            return False
        # While the main thread runs Python it keeps this one waiting: such a slice would last longer than others do.
        # It is kept for longer by a call that holds the interpreter, which cannot be cut.
        late_s = time.monotonic() - end
        late_ns = int(late_s * 1e9) if 0 < late_s < 2 * sys.getswitchinterval() else 0
        return not self._window.since or self._ask(lambda: self._close_slice(late_ns))

    def _events_share(self) -> float:
        """Share of the time that phases and counts have cost since the start."""
        elapsed = time.monotonic_ns() - self._session.facts["start_ns"]
        return float(self._session.recorder.cost_ns() / max(elapsed, 1))

    def _at_step(self, number: int) -> None:
        """A window a step, as `--steps` asks: nothing of the steps around it."""
        steps = self._session.settings.steps
        if steps is None or self._failed or self.switches.in_backward() or not self._makes_steps(number):
            return
        try:
            self._close()
            wanted = steps[0] <= number <= steps[1]
            if self._device is not None and self._device.used():
                if self._device.records():
                    self._device.at_step(wanted=wanted)
                    return
                self._window.take_in_device()
            if wanted:
                self._open()
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)

    def _at_boundary(self, number: int) -> None:
        """A step begins: the window of those before it ends, and a new one begins if this step is chosen."""
        # An optimizer may step inside a backward pass.
        if self._failed or self.switches.in_backward() or not self._makes_steps(number):
            return
        main = on_main()
        if main and self._budget is None:
            return  # one slice follows another
        if main:
            self._at_it = True
        try:
            window, lasted_ns = self._window, time.monotonic_ns() - self._window.since
            if window.since and (not window.here() or (window.whole and lasted_ns >= LEAST_NS)):
                self._close()
            if not window.whole and self._chosen() and not (main and self.switches.at_main):
                self._close()
                self._open(whole=True)
        except Exception as error:  # noqa: BLE001  fail open
            self._fail(error)
        finally:
            if main:
                self._at_it = False
        self._session.recorder.events_cost_ns += STEP_COST_NS

    def _chosen(self) -> bool:
        return self._budget is None or self._steps.chosen()

    def _makes_steps(self, number: int) -> bool:
        """Notes that a step begins on the calling thread; whether the steps are this thread's.

        They are another's as long as that makes some, or, where that is the main one, works by itself. A program may
        train in a thread of its own, beside a main one that waits for it.
        """
        now_ns, thread = time.monotonic_ns(), threading.current_thread()
        self.switches.see_to()
        beside = thread is not threading.main_thread()
        if beside and not self._switched_anywhere():
            return False
        if thread is not self._stepper:
            if not self._steps.rest(now_ns) or (beside and not self._main_waits(thread)):
                return False
            self._stepper, self._steps = thread, Steps()
            if beside:
                text = f"{thread.name} makes the steps: operators are recorded there, not on the main thread, meanwhile"
                self._session.recorder.log("info", "kernels", text)
        self._steps.begin(now_ns, number)
        return True

    def _main_waits(self, thread: threading.Thread) -> bool:
        """Whether the main thread has run no operators, as far as its windows tell, since this thread makes steps."""
        now = time.monotonic()
        if self._claims is None or self._claims[0] is not thread:
            self._claims = thread, now
        return now - max(self._claims[1], self._window.main_worked) >= WORKED_S

    def _steps_beside(self) -> bool:
        """Whether a thread beside the main one makes the steps: it opens and closes windows by itself."""
        if self._stepper is threading.main_thread() or not self._stepper.is_alive():
            return False
        if not self._switched_anywhere():
            return False
        return not self._steps.rest(time.monotonic_ns())

    def _switched_anywhere(self) -> bool:
        """Whether any thread may switch the source: what is not ITT is switched on the main one alone."""
        return self._window.source is None or bool(self._window.tells_ranges)

    def _over(self) -> bool:
        """Whether the process is ending."""
        return self._stopping.is_set() or not threading.main_thread().is_alive()

    def _ask(self, action: Callable[[], None], until: float | None = None) -> bool:
        """Has the main thread run `action`; False where the process is ending, or another makes the steps meanwhile.

        until: time.monotonic() at which it is no longer asked for
        """
        self._changed.clear()
        self._owed = action
        wait_s, longest_s = RETRY_S
        while not self._over() and not self._steps_beside():
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
        self._withdraw()
        return False

    def _withdraw(self) -> bool:
        """Takes back what was asked for; False where the main thread is at it already."""
        owed, self._owed = self._owed, None
        return owed is not None

    def _open(self, until: float | None = None, *, whole: bool = False) -> None:
        """On the main thread, or on that which makes the steps; whole: it holds whole steps.

        until: time.monotonic() from which on it is too late
        """
        if self._window.since or self._paused or self._stopping.is_set():
            return
        if until is not None and time.monotonic() >= until:
            return
        if is_data_worker(self._session.torch):
            self._stopping.set()
            return
        self.switches.let_go()
        if on_main():
            self._close_left()
        source = self._window.ready()
        if on_main():
            self._window.open(lambda source: source.open(), whole=whole)
        elif isinstance(source, IttSource):
            # Should the thread end with the window open, the profiler goes off with it.
            self._window.open(self.switches.record, whole=whole)

    def _close_slice(self, late_ns: int) -> None:
        """late_ns: how much later than it should have been it was asked for"""
        if not self._window.whole:
            self._close(late_ns)

    def _close_whole(self) -> None:
        """Steps have stopped within a window of theirs, unless another has begun meanwhile."""
        if self._window.whole and not self._steps.flow(time.monotonic_ns()):
            self._close()

    def _close(self, late_ns: int = 0) -> None:
        """Closes the window, whichever thread opened it; late_ns: how much of its end is no part of it"""
        of_main = self._window.of_main()
        if self._window.here():
            self._window.close(lambda source: source.close() if of_main else self.switches.let_go(), late_ns)
            return
        # That thread sees to its profiler at its next step; the main one, which may wait for others, when it answers.
        left = self._window.close(None)
        if left is not None and of_main:
            self._left = left
            ctypes.pythonapi.Py_AddPendingCall(self._callback, None)
