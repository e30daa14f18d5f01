"""Operators from PyTorch's ITT observer, straight into the ring: switched thread by thread, and what one costs."""

from __future__ import annotations

import threading
import time
from typing import Any

from .ring import Ring

IN_A_MODEL = 2.5
"""An operator's cost in a model, whose data fill the caches, over its cost in a loop (paired measurements: 790 ns of a
step's time where a loop shows 300)."""


class IttSource:
    """PyTorch's ITT observer: operators and ranges of all threads, straight into the ring.

    Asked for what users and gloo name alone (`USER_SCOPE`) it costs an operator some 15 ns.
    """

    name = "itt"

    def __init__(self, torch: Any) -> None:
        from torch._C._profiler import ProfilerConfig, ProfilerState, _ExperimentalConfig

        if not torch.profiler.itt.is_available():
            raise RuntimeError("this build of torch has no ITT")
        self._config = ProfilerConfig(ProfilerState.ITT, False, False, False, False, False, _ExperimentalConfig())
        # Taken now: the guard replaces these names in torch.autograd.profiler, and must not see ours.
        self._enable, self._disable = torch.autograd._enable_profiler, torch.autograd._disable_profiler
        self._activities: set[Any] = set()
        scope = getattr(torch._C._profiler, "RecordScope", None)
        self._all: set[Any] = set()
        self._ranges = self._all if scope is None else {scope.USER_SCOPE}

    def open(self, *, ranges_alone: bool = False) -> None:
        """ranges_alone: no operators, where this torch can tell the two apart"""
        self._enable(self._config, self._activities, self._ranges if ranges_alone else self._all)

    def tells_apart(self) -> bool:
        """Whether this torch can tell ranges from operators."""
        return self._ranges is not self._all

    def close(self) -> None:
        self._disable()


class Follower(threading.local):
    """What torch's profiler does on this thread; a thread that ends with it on switches it off as it goes."""

    def __init__(self) -> None:
        self.on_main = on_main()

    switch: Switch | None = None
    """Not of windows of the main thread, which are no thread's own."""


class Switch:
    """One thread's profiler, on as long as this lives."""

    def __init__(self, source: IttSource, *, ranges_alone: bool) -> None:
        self._close = source.close
        self.ranges_alone = ranges_alone
        source.open(ranges_alone=ranges_alone)

    def __del__(self) -> None:
        try:
            self._close()
        except Exception:  # noqa: BLE001  the thread, or the interpreter, is on its way out
            pass


def on_main() -> bool:
    return threading.get_ident() == threading.main_thread().ident


def operator_cost_ns(source: IttSource, torch: Any, ring: Ring) -> float:
    """What recording one operator costs here, measured; RuntimeError where none arrives in the ring."""
    seen = ring.thread_operators()
    quiet = min(_time_operators(torch) for _ in range(5))
    ring.mute(1)
    source.open()
    try:
        loud = min(_time_operators(torch) for _ in range(5))
    finally:
        source.close()
        ring.mute(0)
    if ring.thread_operators() == seen:
        raise RuntimeError("no operator arrived: another ITT collector, or INTEL_LIBITTNOTIFY64 is not ours")
    return IN_A_MODEL * max(300.0, loud - quiet)


def _time_operators(torch: Any, count: int = 50) -> float:
    """ns for one small operator (two recorded ranges would be one leaf and its parent)."""
    tensor = torch.empty(1)
    start = time.perf_counter_ns()
    for _ in range(count):
        tensor.neg()
    return (time.perf_counter_ns() - start) / count
