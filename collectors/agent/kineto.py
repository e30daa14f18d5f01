"""Operators from Kineto in short windows on the main thread: the fallback where ITT or the C library is missing.

Thread-local Kineto is what is safe to toggle; it gives shapes and FLOPs, at several microseconds an operator.
"""

from __future__ import annotations

import time
from typing import Any

from .ring import EXECUTION, OPERATOR, Ring

OPERATOR_COST_NS = 8_000.0
"""Cost of an operator while a window is open, and to read it afterwards (measured; most of it is paid at the end)."""


class KinetoSource:
    """One Kineto profile a window; its events are written when the window closes."""

    name = "kineto"

    def __init__(self, torch: Any, ring: Ring) -> None:
        from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

        self._ring = ring
        self._activities = {ProfilerActivity.CPU}
        self._config = ProfilerConfig(ProfilerState.KINETO, True, False, False, True, False, _ExperimentalConfig())
        autograd = torch.autograd
        self._prepare, self._enable, self._disable = (
            autograd._prepare_profiler,
            autograd._enable_profiler,
            autograd._disable_profiler,
        )

    def open(self) -> None:
        self._prepare(self._config, self._activities)
        self._enable(self._config, self._activities)

    def close(self) -> None:
        result = self._disable()
        offset = time.time_ns() - time.monotonic_ns()
        write_events(self._ring, [_row(event, offset) for event in result.events()])


def _row(event: Any, offset_ns: int) -> tuple[int, int, int, str, int]:
    """(thread, start_ns, end_ns, name, flops) on CLOCK_MONOTONIC."""
    start = event.start_ns() - offset_ns
    return event.start_thread_id(), start, start + event.duration_ns(), event.name(), event.flops()


def write_events(ring: Ring, rows: list[tuple[int, int, int, str, int]]) -> None:
    """Writes what the C library would have written: operators with their nesting, and executions.

    Ranges named by the target arrive through its own calls (hooks.py), in windows and outside.
    """
    rows.sort(key=lambda row: (row[0], row[1], -row[2]))
    stack: list[
        list[Any]
    ] = []  # thread, end, name, covered by operators below, is operator, start, flops, open operators

    def close_until(thread: int, start: int) -> None:
        while stack and (stack[-1][0] != thread or stack[-1][1] <= start):
            _, end, name, covered, is_operator, begin, flops, depth = stack.pop()
            if not is_operator:
                continue
            for frame in reversed(stack):
                if frame[4]:
                    frame[3] += end - begin
                    break
            composite = 1 if covered * 2 >= end - begin and covered else 0
            ring.record(OPERATOR, name, begin, end - begin, 0, flops, flags=composite, depth=depth)

    for thread, start, end, name, flops in rows:
        close_until(thread, start)
        head, separator, tail = name.partition("::")
        is_operator = bool(separator) and head.replace("_", "a").isalnum() and " " not in tail
        depth = sum(1 for frame in stack if frame[4])
        stack.append([thread, end, name, 0, is_operator, start, flops, depth])
        if name.startswith(("gloo:", "nccl:", "mpi:", "ucc:")):
            ring.record(EXECUTION, name, start, end - start)
    close_until(-1, 0)
