"""Where the work of an exchange runs on its device: in its turn, or on a stream beside what is computed meanwhile.

Beside it, an exchange of one micro-batch hides behind the computation of another, and a handle's `wait` holds back what
the device does next, not the host (arXiv 2412.19437 section 3.2.1). Not yet run on a GPU; the order of reads, writes
and reuse of memory over both streams is checked in the tests, operation by operation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

import torch

from moescope.instrumented_model.parallel.exchange import Pending, finished

T = TypeVar("T")


class Lane(Protocol):
    """Runs what an exchange does on the device."""

    def begin(self, work: Callable[[], T], *used: torch.Tensor | None) -> Pending[T]:
        """Begin `work` after all that the caller's stream was given so far; used: every tensor that it reads."""

    def to_host(self, values: torch.Tensor) -> Callable[[], list[int]]:
        """Begin to bring integers over; what is returned waits for them, and for nothing that was begun later.

        values: [n] int64
        """


class InTurn:
    """`Lane` for one stream: `work` stands in the queue like all else, or has run when `begin` returns, on a CPU."""

    def begin(self, work: Callable[[], T], *used: torch.Tensor | None) -> Pending[T]:
        return finished(work())

    def to_host(self, values: torch.Tensor) -> Callable[[], list[int]]:
        known: list[int] = values.tolist()
        return lambda: known


class Aside:
    """`Lane` with a stream of its own, first in line for SMs that become free.

    Memory: `work` allocates on its own stream, and only ever after that has waited for the caller's. So what it made
    may be read by the caller's stream and let go of at any time: reuse comes after the read. What it reads is kept
    until the caller's stream has waited for it.
    """

    def __init__(self, device: torch.device, runtime: Any = torch.cuda) -> None:
        """runtime: has Stream, Event, stream and current_stream as torch.cuda does"""
        self._runtime = runtime
        self._device = device
        self._stream = runtime.Stream(device, priority=-1)

    def begin(self, work: Callable[[], T], *used: torch.Tensor | None) -> Pending[T]:
        here = self._runtime.current_stream(self._device)
        self._stream.wait_stream(here)
        try:
            with self._runtime.stream(self._stream):
                value = work()
                event = self._runtime.Event()
                event.record(self._stream)
        except BaseException:  # raised again: what has begun may still read
            here.wait_stream(self._stream)
            raise
        return _Launched(value, event, used, here, lambda: self._runtime.current_stream(self._device))

    def to_host(self, values: torch.Tensor) -> Callable[[], list[int]]:
        there = torch.empty(values.shape, dtype=values.dtype, pin_memory=values.is_cuda)
        pending = self.begin(lambda: there.copy_(values, non_blocking=True), values)

        def known() -> list[int]:
            assert isinstance(pending, _Launched)
            pending.synchronize()
            return there.tolist()

        return known


class _Launched(Pending[T]):
    """What a stream has been given."""

    def __init__(
        self,
        value: T,
        event: Any,
        used: tuple[torch.Tensor | None, ...],
        beside: Any,
        current_stream: Callable[[], Any],
    ) -> None:
        """beside: the stream that `used` was allocated on"""
        self._value, self._event, self._used, self._current_stream = value, event, used, current_stream
        self._beside = beside

    def result(self) -> T:
        self._current_stream().wait_event(self._event)
        self._used = ()  # whoever reuses their memory does so after this
        return self._value

    def done(self) -> bool:
        return bool(self._event.query())

    def __del__(self) -> None:
        if self._used and not sys.is_finalizing():  # nobody has asked for it
            self._beside.wait_event(self._event)

    def synchronize(self) -> None:
        """Let the host wait."""
        self._event.synchronize()
        self._used = ()


def lane_for(device: torch.device) -> Lane:
    """The lane for tensors on `device`."""
    return Aside(device) if device.type == "cuda" else InTurn()
