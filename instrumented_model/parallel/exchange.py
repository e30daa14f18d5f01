"""Tokens to their experts and back: all-to-all with uneven splits, on a communication thread.

Dispatch sends FP8 rows with their scales; both combines send BF16 (arXiv 2412.19437 section 3.3.3). Backward runs the
transposed exchanges: the gradient of combine travels as dispatch does (FP8), that of dispatch as combine does (BF16).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model.numerics.formats import E4M3, TILE
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise, quantise_tiles
from moescope.instrumented_model.parallel.link import Link


@dataclass(frozen=True)
class Plan:
    """Where the rows of one micro-batch go; both sides of the exchange.

    order: [tokens * top_k] int64, assignments (token * top_k + k) sorted by expert, hence by rank
    sent: [ranks, local experts] int64, rows for each expert of each rank
    """

    order: torch.Tensor
    sent: torch.Tensor
    top_k: int


@dataclass(frozen=True)
class Arrival:
    """What came in. Rows are ordered by local expert, then by source rank.

    received: [ranks, local experts] int64, rows from each rank for each expert
    by_expert: [rows] int64, position on the wire of each row so ordered
    rows: [local experts], how many each expert got
    """

    received: torch.Tensor
    by_expert: torch.Tensor
    rows: tuple[int, ...]


def plan(chosen: torch.Tensor, experts: int, ranks: int) -> Plan:
    """chosen: [tokens, top_k] int64, experts numbered over all ranks, the same number on each rank"""
    flat = chosen.reshape(-1)
    return Plan(
        order=torch.argsort(flat, stable=True),
        sent=torch.bincount(flat, minlength=experts).reshape(ranks, experts // ranks),
        top_k=chosen.shape[1],
    )


def arrival(received: torch.Tensor) -> Arrival:
    """received: [ranks, local experts] int64"""
    ranks, local = received.shape
    expert = torch.arange(local).repeat(ranks).repeat_interleave(received.reshape(-1))
    return Arrival(received, torch.argsort(expert, stable=True), tuple(received.sum(0).tolist()))


def pack(x: torch.Tensor, fp8: bool) -> torch.Tensor:
    """Rows as they travel. x: [rows, d] float32; returns: [rows, bytes] uint8, E4M3 values then FP32 scales; or BF16"""
    if not fp8:
        return x.bfloat16().contiguous().view(torch.uint8)
    xq = quantise_tiles(x)
    return torch.cat([xq.q.contiguous().view(torch.uint8), xq.scale.view(torch.uint8)], dim=1)


def unpack(wire: torch.Tensor, d: int, fp8: bool) -> torch.Tensor:
    """Inverse of `pack`. wire: [rows, bytes] uint8; returns: [rows, d] float32"""
    if not fp8:
        return wire.view(torch.bfloat16).float()
    scale = wire[:, d : d + 4 * -(-d // TILE)].contiguous().view(torch.float32)
    return dequantise(Quantised(wire[:, :d].contiguous().view(E4M3), scale, 1))


class Exchange:
    """The ranks of a group and the one thread that runs their exchanges, in the order of the calls.

    Each call returns at once; `result()` of what it returns waits, and raises what went wrong on the thread. All ranks
    must make the same calls in the same order. With one rank, rows come back without travelling.
    """

    def __init__(self, link: Link, ranks: int) -> None:
        self.link, self.ranks = link, ranks
        self._thread = ThreadPoolExecutor(1, "moescope-comm", initializer=_one_thread if ranks > 1 else None)

    def close(self) -> None:
        """Finish what was asked for and end the thread."""
        self._thread.shutdown(wait=True)

    def run(self, job: Callable[[], None]) -> Future[None]:
        """Run another collective in its turn."""
        return self._thread.submit(job)

    def dispatch(
        self, wire: torch.Tensor, sent: torch.Tensor, *, phase: str, layer: int, micro_batch: int
    ) -> Future[tuple[torch.Tensor, torch.Tensor]]:
        """Send rows to their experts when the other side does not know how many come.

        wire: [rows, bytes] uint8, ordered by destination; sent: [ranks, local experts] int64
        returns: rows received [received rows, bytes] uint8 and their numbers [ranks, local experts]
        """

        def job() -> tuple[torch.Tensor, torch.Tensor]:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                received = torch.empty_like(sent)
                self._all_to_all(received, sent.contiguous(), None, None)
                return self._rows(wire, sent, received), received

        return self._thread.submit(job)

    def exchange(
        self,
        wire: torch.Tensor,
        sent: torch.Tensor,
        received: torch.Tensor,
        *,
        phase: str,
        layer: int,
        micro_batch: int,
    ) -> Future[torch.Tensor]:
        """Send rows where both sides know the numbers: combine, and both exchanges of backward.

        sent, received: [ranks, local experts] int64
        """

        def job() -> torch.Tensor:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                return self._rows(wire, sent, received)

        return self._thread.submit(job)

    def _rows(self, wire: torch.Tensor, sent: torch.Tensor, received: torch.Tensor) -> torch.Tensor:
        if self.ranks == 1:
            return wire
        start_ns = emit.clock_ns()
        outgoing, incoming = sent.sum(1).tolist(), received.sum(1).tolist()
        result = wire.new_empty(sum(incoming), wire.shape[1])
        self._all_to_all(result, wire.contiguous(), incoming, outgoing)
        me = dist.get_rank()
        row_bytes = wire.shape[1]
        self.link.hold(
            "all_to_all",
            start_ns,
            (sum(outgoing) - outgoing[me]) * row_bytes,
            (sum(incoming) - incoming[me]) * row_bytes,
        )
        return result

    def _all_to_all(
        self, output: torch.Tensor, source: torch.Tensor, incoming: list[int] | None, outgoing: list[int] | None
    ) -> None:
        if self.ranks == 1:
            output.copy_(source)
            return
        work = dist.all_to_all_single(output, source, incoming, outgoing, async_op=True)
        if work is not None:
            work.wait()


def _one_thread() -> None:
    torch.set_num_threads(1)
