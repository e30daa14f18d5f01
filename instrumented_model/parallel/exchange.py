"""The exchange of tokens between ranks, as the model sees it: dispatch copies tokens to their experts, combine sums.

Dispatch is linear and combine is its transpose, so the backward of each is the other: `dispatch_again` carries the
gradient of a combine along the way of the forward dispatch, `combine_gradients` that of a dispatch back. Tokens and
the gradients of sums travel in FP8 with power-of-2 scales, quantised once at their source; sums travel in BF16; gates
and their gradients in FP32 (arXiv 2412.19437 sections 3.2.2 and 3.3.3).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch

from moescope.instrumented_model.numerics.quantise import Quantised, dequantise

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Rows = Quantised | torch.Tensor
"""Rows [n, d] as they came: E4M3 in 1x128 tiles with power-of-2 scales, or float32 made of BF16."""


def as_float(rows: Rows) -> torch.Tensor:
    """returns: [n, d] float32"""
    return dequantise(rows) if isinstance(rows, Quantised) else rows


@dataclass(frozen=True)
class Plan:
    """Where the tokens of one micro-batch go.

    slots: [tokens, top_k] int64, experts numbered over all ranks (replicas counted apart), rank by rank
    gates: [tokens, top_k] float32, weights of what these experts make of the token
    """

    slots: torch.Tensor
    gates: torch.Tensor


@dataclass(frozen=True)
class Arrived:
    """Tokens for the experts of this rank, one row for each pair of token and expert, ordered by expert.

    came: [arrived, d], as an expert's first product takes them; gates: [arrived] float32
    counts: [local experts], rows of each, summing to `arrived`; int64 on the device where the host is not to wait
    way: what the exchange that made it needs to send along the same way, and back
    """

    came: Rows
    gates: torch.Tensor
    counts: tuple[int, ...] | torch.Tensor
    way: Any

    @property
    def rows(self) -> torch.Tensor:
        """What came, made anew at each call. returns: [arrived, d] float32"""
        return as_float(self.came)


class Waits(Protocol):
    """What a schedule sees of a handle."""

    def wait(self) -> None:
        """Let nothing that is computed from now on begin before the exchange has ended; raise what went wrong in it.

        On a CPU that is to return when it has ended.
        """

    def done(self) -> bool:
        """Whether it has ended."""


class Pending(Protocol[T_co]):
    """What an exchange has begun: a `Future` of a thread, or what a stream was given."""

    def result(self) -> T_co:
        """What came of it, once it has ended; may be asked for more than once."""

    def done(self) -> bool:
        """Whether it has ended."""


class Handle(Generic[T]):
    """An exchange under way. `wait` lets it end; `result` then does on the caller's thread what is left to do there."""

    def __init__(self, pending: Pending[Any], finish: Callable[[Any], T]) -> None:
        self._pending, self._finish = pending, finish

    def wait(self) -> None:
        self._pending.result()

    def done(self) -> bool:
        return self._pending.done()

    def result(self) -> T:
        """Ask once: nothing is kept."""
        return self._finish(self._pending.result())


class Exchange(ABC):
    """Calls return at once with handles. All ranks must make the same calls in the same order.

    phase, layer, micro_batch: what the profiler is told of the exchange: `dispatch(F)`
    """

    def plan(self, chosen: torch.Tensor, gates: torch.Tensor) -> Plan:
        """Where tokens go, without communication.

        chosen: [tokens, top_k] int64, experts numbered over all ranks, no two alike in a row
        gates: [tokens, top_k] float32
        """
        return Plan(chosen, gates)

    @abstractmethod
    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        """Send each token to the experts that `plan` names. x: [tokens, d] float32"""

    @abstractmethod
    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        """Send other rows of the same tokens along the same way: the backward of `combine`.

        x: [tokens, d] float32; result: [arrived, d]
        """

    @abstractmethod
    def combine(
        self, rows: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[torch.Tensor]:
        """Sum rows per token, at the rank of the experts first, at the token's own last.

        rows: [arrived, d] float32; result: [tokens, d] float32
        """

    @abstractmethod
    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        """`combine` with a number for each gate beside the sums: the backward of `dispatch`.

        rows: [arrived, d] float32; gates: [arrived] float32
        result: [tokens, d] and [tokens, top_k], both float32
        """

    @abstractmethod
    def run(self, job: Callable[[], None]) -> Future[None]:
        """Run another collective in its turn."""

    @abstractmethod
    def close(self) -> None:
        """End the thread when the exchange under way has ended; what has not begun is dropped."""


class CommunicationThread:
    """The one thread that runs a rank's collectives, in the order of the calls."""

    def __init__(self, *, single_threaded: bool) -> None:
        self._pool = ThreadPoolExecutor(1, "moescope-comm", initializer=_one_thread if single_threaded else None)

    def submit(self, job: Callable[[], T]) -> Future[T]:
        """Run `job` after all that was submitted before; the future has its result, or raises what it raised."""
        return self._pool.submit(job)

    def close(self) -> None:
        """Wait for the job that runs; those that have not begun are dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)


def finished(value: T) -> Future[T]:
    """A future that has its result."""
    future: Future[T] = Future()
    future.set_result(value)
    return future


def _one_thread() -> None:
    torch.set_num_threads(1)
