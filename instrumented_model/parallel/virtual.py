"""Virtual ranks: R ranks in one process and one memory, so that an exchange is real where there is one device.

Tokens and experts are dealt out to the ranks; a `Mover` copies rows from one rank's part of a buffer to another's, and
adds them up on the way back.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.numerics.quantise import Quantised, quantise_tiles
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Plan, Rows, finished
from moescope.instrumented_model.parallel.mover import IndexingMover, Mover


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

    Emits the bytes of each pair of virtual ranks as transfers, with the host's times; on a GPU, where these say nothing
    of the device, none. The path over a GPU's kernels is not yet run on a GPU.
    """

    def __init__(self, c: Config, ranks: int, mover: Mover | None = None) -> None:
        self.c, self.ranks, self.local = c, ranks, c.local_experts(ranks)
        self.mover: Mover = IndexingMover() if mover is None else mover

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
        between = torch.bincount(of_rank * self.ranks + flat // self.local, minlength=self.ranks**2)
        way = VirtualWay((pair // top_k).int(), pair, place.reshape(tokens, top_k).int(), between)
        counts = torch.bincount(flat, minlength=self.c.experts)
        rows = self._copied(x, way, "dispatch.x", phase, layer, micro_batch)
        gates = plan.gates.reshape(-1).index_select(0, pair)
        return Handle(finished(Arrived(rows, gates, tuple(counts.tolist()), way)), lambda arrived: arrived)

    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        rows = self._copied(x, arrived.way, "combine.dy", phase, layer, micro_batch)
        return Handle(finished(rows), lambda rows: rows)

    def combine(
        self, rows: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[torch.Tensor]:
        return Handle(finished(self._summed(rows, arrived.way, phase, layer, micro_batch)), lambda sums: sums)

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        way: VirtualWay = arrived.way
        sums = self._summed(rows, way, phase, layer, micro_batch)
        of_gates = gates.index_select(0, way.slot.reshape(-1)).reshape(way.slot.shape)
        return Handle(finished((sums, of_gates)), lambda both: both)

    def _copied(self, x: torch.Tensor, way: VirtualWay, name: str, phase: str, layer: int, micro_batch: int) -> Rows:
        if not self.c.fp8:
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                start_ns = emit.clock_ns()
                bits, _ = self.mover.dispatch(x.bfloat16().view(torch.uint8), None, way.source)
                self._told("dispatch", way.moved, 2 * self.c.d, start_ns, x.device)
            return bits.view(torch.bfloat16).float()
        xq = quantise_tiles(x, power_of_2=True)
        observe.quantised(name, x, xq)
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            start_ns = emit.clock_ns()
            q, scale = self.mover.dispatch(xq.q, xq.scale, way.source)
            self._told("dispatch", way.moved, self.c.d + 4 * xq.scale.shape[1], start_ns, x.device)
        assert scale is not None
        return Quantised(q, scale, 1)

    def _summed(self, rows: torch.Tensor, way: VirtualWay, phase: str, layer: int, micro_batch: int) -> torch.Tensor:
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            start_ns = emit.clock_ns()
            sums = self.mover.combine(rows.bfloat16(), way.slot)
            self._told("combine", way.moved.reshape(self.ranks, -1).mT, 2 * self.c.d, start_ns, rows.device)
        return sums.float()

    def _told(self, op: str, moved: torch.Tensor, row_bytes: int, start_ns: int, device: torch.device) -> None:
        """moved: [ranks, ranks], rows from rank to rank"""
        if not emit.active() or device.type != "cpu":
            return
        dur_ns = emit.clock_ns() - start_ns
        for number, rows in enumerate(moved.reshape(-1).tolist()):
            src, dst = divmod(number, self.ranks)
            if rows and src != dst:
                emit.transfer(op=op, src=src, dst=dst, bytes=rows * row_bytes, start_ns=start_ns, dur_ns=dur_ns)
