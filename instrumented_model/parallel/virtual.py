"""Virtual ranks: R ranks in one process and one memory, so that an exchange is real where there is one device.

Tokens and experts are dealt out to the ranks; a `Mover` copies rows from one rank's part of a buffer to another's, and
adds them up on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.quantisers import quantise_tiles
from moescope.instrumented_model.layers.routing import tally
from moescope.instrumented_model.numerics.quantise import Quantised
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Pending, Plan, Rows, finished
from moescope.instrumented_model.parallel.lane import InTurn, Lane
from moescope.instrumented_model.parallel.mover import IndexingMover, Mover

T = TypeVar("T")


@dataclass(frozen=True)
class VirtualWay:
    """source: [arrived] int32, token of each row; pair: [arrived] int64, token * top_k + k of it
    slot: [tokens, top_k] int32, row of each pair; moved: [ranks * ranks] int64, rows from rank to rank
    """

    source: torch.Tensor
    pair: torch.Tensor
    slot: torch.Tensor
    moved: torch.Tensor


class VirtualExchange(Exchange):
    """An exchange whose model holds the experts of all ranks, in order.

    A batch of tokens is all ranks' tokens, dealt out in order and as evenly as may be.

    counts_stay: leaves the experts' rows on the device, where the host is not to wait for them

    Emits the bytes of each pair of virtual ranks as transfers, with the host's times; on a GPU, where these say nothing
    of the device, none. The path over a GPU's kernels is not yet run on a GPU.
    """

    def __init__(self, c: Config, ranks: int, mover: Mover | None = None, lane: Lane | None = None) -> None:
        """lane: where `mover` works, in its turn where not given"""
        self.c, self.ranks, self.local = c, ranks, c.local_experts(ranks)
        self.mover: Mover = IndexingMover() if mover is None else mover
        self.lane: Lane = InTurn() if lane is None else lane
        self.counts_stay = False

    def close(self) -> None:
        return None

    def run(self, job: Callable[[], None]) -> Future[None]:
        job()
        return finished(None)

    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        tokens, top_k = plan.slots.shape
        flat = plan.slots.reshape(-1)
        pair = torch.argsort(flat, stable=True)
        place = torch.empty_like(pair)
        place[pair] = torch.arange(len(pair), device=pair.device)
        token = torch.arange(tokens, device=flat.device).repeat_interleave(top_k)
        of_rank = token * self.ranks // max(tokens, 1)
        between = tally(of_rank * self.ranks + flat // self.local, self.ranks**2)
        way = VirtualWay((pair // top_k).int(), pair, place.reshape(tokens, top_k).int(), between)
        counts = tally(flat, self.c.experts)
        known = None if self.counts_stay else self.lane.to_host(counts)
        gates = plan.gates.reshape(-1).index_select(0, pair)

        def arrived(rows: Rows) -> Arrived:
            return Arrived(rows, gates, counts if known is None else tuple(known()), way)

        return self._copied(x, way, arrived, "dispatch.x", phase, layer, micro_batch)

    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        return self._copied(x, arrived.way, lambda rows: rows, "combine.dy", phase, layer, micro_batch)

    def combine(
        self, rows: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[torch.Tensor]:
        pending = self._summed(rows, arrived.way, phase, layer, micro_batch)
        return Handle(pending, lambda sums: sums.float())

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        way: VirtualWay = arrived.way
        pending = self._summed(rows, way, phase, layer, micro_batch)
        of_gates = gates.index_select(0, way.slot.reshape(-1)).reshape(way.slot.shape)
        return Handle(pending, lambda sums: (sums.float(), of_gates))

    def _copied(
        self,
        x: torch.Tensor,
        way: VirtualWay,
        then: Callable[[Rows], T],
        name: str,
        phase: str,
        layer: int,
        micro_batch: int,
    ) -> Handle[T]:
        """then: what becomes of the rows"""
        q: torch.Tensor
        scale: torch.Tensor | None
        if self.c.fp8:
            xq = quantise_tiles(x, power_of_2=True)
            observe.quantised(name, x, xq)
            q, scale = xq.q, xq.scale
        else:
            q, scale = x.bfloat16().view(torch.uint8), None
        row_bytes = q.shape[1] + (0 if scale is None else 4 * scale.shape[1])
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            start_ns = emit.clock_ns()
            pending = self.lane.begin(lambda: self.mover.dispatch(q, scale, way.source), q, scale, way.source)
            self._told("dispatch", way.moved, row_bytes, start_ns, x.device)

        def came(parts: tuple[torch.Tensor, torch.Tensor | None]) -> T:
            rows, scales = parts
            return then(rows.view(torch.bfloat16).float() if scales is None else Quantised(rows, scales, 1))

        return Handle(pending, came)

    def _summed(
        self, rows: torch.Tensor, way: VirtualWay, phase: str, layer: int, micro_batch: int
    ) -> Pending[torch.Tensor]:
        sent = rows.bfloat16()
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            start_ns = emit.clock_ns()
            pending = self.lane.begin(lambda: self.mover.combine(sent, way.slot), sent, way.slot)
            self._told("combine", way.moved.reshape(self.ranks, -1).mT, 2 * self.c.d, start_ns, rows.device)
        return pending

    def _told(self, op: str, moved: torch.Tensor, row_bytes: int, start_ns: int, device: torch.device) -> None:
        """moved: [ranks, ranks], rows from rank to rank"""
        if not emit.active() or device.type != "cpu":
            return
        dur_ns = emit.clock_ns() - start_ns
        for number, rows in enumerate(moved.reshape(-1).tolist()):
            src, dst = divmod(number, self.ranks)
            if rows and src != dst:
                emit.transfer(op=op, src=src, dst=dst, bytes=rows * row_bytes, start_ns=start_ns, dur_ns=dur_ns)
