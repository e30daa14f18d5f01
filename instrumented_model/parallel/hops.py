"""The exchange over `torch.distributed`: no hop for a rank alone, one on a node, two where there are nodes.

A token travels once to each rank that has a chosen expert, with its slots and gates, and is copied to the experts
there. On the way back rows are added up where they were copied: at the experts' rank, at a forwarder, at the source.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from moescope.collectors import emit
from moescope.instrumented_model.parallel.exchange import (
    Arrived,
    CommunicationThread,
    Exchange,
    Handle,
    Plan,
    Rows,
    finished,
)
from moescope.instrumented_model.parallel.hop import Hop, Route, summed
from moescope.instrumented_model.parallel.ranks import answering
from moescope.instrumented_model.parallel.wire import (
    as_bytes,
    column,
    pack_tokens,
    token_bytes,
    unpack_sums,
    unpack_tokens,
)


@dataclass(frozen=True)
class Way:
    """The way of one dispatch: a route for each hop, then from the rows that came to the experts.

    rows: number of rows that came; top_k: slots of each
    pair: [arrived] int64, row * top_k + k of each pair of token and expert, ordered by expert
    row: [arrived] int64, row of each pair
    """

    routes: tuple[Route, ...]
    rows: int
    top_k: int
    pair: torch.Tensor
    row: torch.Tensor


class HopExchange(Exchange):
    """d: width of a token; fp8: whether tokens travel in FP8, else in BF16
    local_of: [slots] int64, number on this rank of each slot; `local` where it is another's
    """

    def __init__(self, hops: Sequence[Hop], local_of: torch.Tensor, local: int, d: int, fp8: bool) -> None:
        self.hops, self.d, self.fp8, self.local = tuple(hops), d, fp8, local
        self._local_of = local_of
        self._thread = CommunicationThread(single_threaded=True) if hops else None

    def close(self) -> None:
        if self._thread is not None:
            self._thread.close()

    def run(self, job: Callable[[], None]) -> Future[None]:
        def guarded() -> None:
            with answering():
                job()

        if self._thread is not None:
            return self._thread.submit(guarded)
        job()
        return finished(None)

    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        tokens = pack_tokens(x, self.fp8, "dispatch.x")
        meta = [as_bytes(plan.gates), as_bytes(plan.slots.int())]
        wire = torch.cat([*tokens, *meta], dim=1)
        top_k = plan.slots.shape[1]
        if not self.hops:
            return Handle(finished((wire, ())), lambda came: self._arrived(came[0], came[1], top_k))
        row, sent = self.hops[0].routed(plan.slots)
        outgoing = wire.index_select(0, row)

        def job() -> tuple[torch.Tensor, tuple[Route, ...]]:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                return self._there(len(wire), row, sent, outgoing, top_k)

        assert self._thread is not None
        return Handle(self._thread.submit(job), lambda came: self._arrived(came[0], came[1], top_k))

    def _there(
        self, rows: int, row: torch.Tensor, sent: torch.Tensor, outgoing: torch.Tensor, top_k: int
    ) -> tuple[torch.Tensor, tuple[Route, ...]]:
        routes: list[Route] = []
        for number, hop in enumerate(self.hops):
            if number:  # a forwarder: what came goes on to the ranks of this node
                rows = len(outgoing)
                row, sent = hop.routed(self._slots(outgoing, top_k))
                outgoing = outgoing.index_select(0, row)
            received = hop.counts(sent)
            routes.append(Route(rows, row, sent.tolist(), received.tolist()))
            outgoing = hop.there(outgoing, routes[-1])
        return outgoing, tuple(routes)

    def _slots(self, wire: torch.Tensor, top_k: int) -> torch.Tensor:
        return column(wire, token_bytes(self.d, self.fp8) + 4 * top_k, top_k, torch.int32)

    def _arrived(self, wire: torch.Tensor, routes: tuple[Route, ...], top_k: int) -> Arrived:
        self._local_of = self._local_of.to(wire.device)
        local = self._local_of.index_select(0, self._slots(wire, top_k).reshape(-1))
        counts = torch.bincount(local, minlength=self.local + 1)[: self.local].tolist()
        pair = torch.argsort(local, stable=True)[: sum(counts)]
        row = pair // top_k
        gates = column(wire, token_bytes(self.d, self.fp8), top_k, torch.float32).reshape(-1)
        way = Way(routes, len(wire), top_k, pair, row)
        rows = unpack_tokens(wire, row, self.d, self.fp8)
        return Arrived(rows, gates.index_select(0, pair), tuple(counts), way)

    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        way: Way = arrived.way
        wire = torch.cat(pack_tokens(x, self.fp8, "combine.dy"), dim=1)

        def finish(came: torch.Tensor) -> Rows:
            return unpack_tokens(came, way.row, self.d, self.fp8)

        if not self.hops:
            return Handle(finished(wire), finish)
        outgoing = wire.index_select(0, way.routes[0].row)

        def job() -> torch.Tensor:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                rows = outgoing
                for number, (hop, route) in enumerate(zip(self.hops, way.routes, strict=True)):
                    rows = hop.there(rows.index_select(0, route.row) if number else rows, route)
                return rows

        assert self._thread is not None
        return Handle(self._thread.submit(job), finish)

    def combine(
        self, rows: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[torch.Tensor]:
        way: Way = arrived.way
        at_rank = rows.new_zeros(way.rows, self.d).index_add_(0, way.row, rows)
        back = self._back(at_rank, None, way, phase, layer, micro_batch)
        return Handle(back, lambda came: self._at_source(came, way)[0])

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        way: Way = arrived.way
        at_rank = rows.new_zeros(way.rows, self.d).index_add_(0, way.row, rows)
        of_gates = gates.new_zeros(way.rows * way.top_k).index_copy_(0, way.pair, gates)
        back = self._back(at_rank, of_gates.reshape(way.rows, way.top_k), way, phase, layer, micro_batch)
        return Handle(back, lambda came: self._at_source(came, way))

    def _back(
        self, sums: torch.Tensor, gates: torch.Tensor | None, way: Way, phase: str, layer: int, micro_batch: int
    ) -> Future[torch.Tensor]:
        """Rows to the ranks of their tokens, added up at forwarders but not at the source: [sent, bytes] uint8."""
        wire = _sums(sums, gates)
        if not self.hops:
            return finished(wire)

        def job() -> torch.Tensor:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                rows = wire
                for number, (hop, route) in enumerate(zip(self.hops[::-1], way.routes[::-1], strict=True)):
                    if number:  # a forwarder: the partial sum of this node
                        came = way.routes[-number]
                        parts = self._values(rows), self._gates(rows, way.top_k)
                        rows = _sums(*(None if part is None else summed(part, came) for part in parts))
                    rows = hop.back(rows, route)
                return rows

        assert self._thread is not None
        return self._thread.submit(job)

    def _values(self, wire: torch.Tensor) -> torch.Tensor:
        return unpack_sums(wire, self.d)

    def _gates(self, wire: torch.Tensor, top_k: int) -> torch.Tensor | None:
        return column(wire, 2 * self.d, top_k, torch.float32) if wire.shape[1] > 2 * self.d else None

    def _at_source(self, wire: torch.Tensor, way: Way) -> tuple[torch.Tensor, torch.Tensor]:
        """returns: [tokens, d] and [tokens, top_k] float32; the second is empty where no gates travelled"""
        values, gates = self._values(wire), self._gates(wire, way.top_k)
        if way.routes:
            values = summed(values, way.routes[0])
            gates = None if gates is None else summed(gates, way.routes[0])
        return values, values.new_empty(0) if gates is None else gates


def _sums(sums: torch.Tensor | None, gates: torch.Tensor | None) -> torch.Tensor:
    """Rows on their way back: BF16 sums, then FP32 gradients of gates where there are some. returns: [rows, bytes]"""
    assert sums is not None
    wire = as_bytes(sums.bfloat16())
    return wire if gates is None else torch.cat([wire, as_bytes(gates)], dim=1)
