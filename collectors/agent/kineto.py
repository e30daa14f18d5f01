"""Operators from Kineto in short windows on the main thread: the fallback where ITT or the C library is missing.

Thread-local Kineto is what is safe to toggle; it gives shapes and FLOPs, at several microseconds an operator. Where
the GPU is in use and CUPTI cannot be used directly, it gives the GPU's kernels instead, by name, stream and time: not
yet run on a GPU.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from typing import Any

from .ring import EXECUTION, OPERATOR, Ring

OPERATOR_COST_NS = 8_000.0
"""Cost of an operator while a window is open, and to read it afterwards (measured; most of it is paid at the end)."""


DEVICE_KERNELS = "device_kernels"
"""Kind of the blobs that hold what the GPU did."""

_WORK = ("kernel", "gpu_memcpy", "gpu_memset")
"""Kineto's types of what keeps a device busy; annotations and synchronisation are no work."""
_BLOB_BYTES = 32_000


class KinetoSource:
    """One Kineto profile a window; its events are written when the window closes."""

    name = "kineto"

    def __init__(self, torch: Any, ring: Ring, *, cuda: bool = False) -> None:
        """cuda: whether kernels of the GPU are wanted, and not operators of the host"""
        from torch._C._profiler import ProfilerActivity, ProfilerConfig, ProfilerState, _ExperimentalConfig

        self._ring = ring
        self._cuda = cuda
        self._activities = {ProfilerActivity.CPU, ProfilerActivity.CUDA} if cuda else {ProfilerActivity.CPU}
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
        host, device = [], []
        for event in result.events():
            if event.device_type().name == "CPU":
                host.append(_row(event, offset))
            elif _is_work(event):
                device.append(_device_row(event, offset))
        if not self._cuda:
            write_events(self._ring, host)
        write_device_events(self._ring, device)


def _is_work(event: Any) -> bool:
    told = getattr(event, "activity_type", None)  # older versions of torch lack it
    return told() in _WORK if told is not None else not event.is_user_annotation()


def _device_row(event: Any, offset_ns: int) -> list[Any]:
    """[device, stream, name, start_ns, dur_ns, correlation], on CLOCK_MONOTONIC."""
    start = event.start_ns() - offset_ns
    place = [event.device_index(), event.device_resource_id()]
    return [*place, event.name(), start, event.duration_ns(), event.correlation_id()]


def write_device_events(ring: Ring, rows: Iterable[list[Any]]) -> None:
    """Writes what the GPU did, as many rows at a time as a blob has room for. rows: as _device_row gives them"""
    some: list[list[Any]] = []
    size = 0
    for row in rows:
        size += len(json.dumps(row))
        if some and size > _BLOB_BYTES:
            ring.blob(DEVICE_KERNELS, some)
            some, size = [], len(json.dumps(row))
        some.append(row)
    if some:
        ring.blob(DEVICE_KERNELS, some)


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
