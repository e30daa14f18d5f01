"""The exchange over DeepEP's `Buffer`, where `deep_ep` is installed: NVLink inside a node, RDMA between nodes.

Written after the interface in DeepEP's README (github.com/deepseek-ai/DeepEP, `Buffer.get_dispatch_layout`, `dispatch`,
`combine`). Not yet run on a GPU.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.numerics.quantise import Quantised, quantise_tiles
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Plan, Rows, finished
from moescope.instrumented_model.parallel.ranks import answering


@dataclass(frozen=True)
class DeepEPWay:
    """handle: DeepEP's own; rows, top_k: of what came; pair, row: as in `hops.Way`"""

    handle: Any
    rows: int
    top_k: int
    pair: torch.Tensor
    row: torch.Tensor


class DeepEPExchange(Exchange):
    """c: sizes; group: ranks, of backend NCCL; nvl_bytes, rdma_bytes: of the buffers; 0 RDMA inside one node

    raises: ConfigError where `deep_ep` cannot be imported
    """

    def __init__(self, c: Config, group: dist.ProcessGroup, nvl_bytes: int, rdma_bytes: int = 0) -> None:
        try:
            self._deep_ep: Any = importlib.import_module("deep_ep")
        except ImportError as error:
            raise ConfigError(
                f"the DeepEP exchange needs the package deep_ep ({error}): install it, or use another exchange"
            ) from None
        self.c, self.local = c, c.local_experts(group.size())
        self._buffer: Any = self._deep_ep.Buffer(group, nvl_bytes, rdma_bytes)

    def close(self) -> None:
        self._buffer = None

    def run(self, job: Callable[[], None]) -> Future[None]:
        with answering():
            job()
        return finished(None)

    def _x(self, x: torch.Tensor) -> Any:
        """x as DeepEP takes it: FP8 values with their scales, or BF16."""
        if not self.c.fp8:
            return x.bfloat16()
        xq = quantise_tiles(x, power_of_2=True)
        return xq.q, xq.scale

    def _rows(self, came: Any, row: torch.Tensor) -> Rows:
        """Copies of what came. row: [copies] int64, which row each is of"""
        if not self.c.fp8:
            return came.float().index_select(0, row)  # type: ignore[no-any-return]
        q, scale = came[0].view(torch.uint8).index_select(0, row), came[1].index_select(0, row)
        return Quantised(q.view(came[0].dtype), scale, 1)

    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        top_k = plan.slots.shape[1]
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            per_rank, per_node, per_expert, in_rank, before = self._buffer.get_dispatch_layout(
                plan.slots, self.c.experts, async_finish=True, allocate_on_comm_stream=False
            )
            came, slots, gates, counts, handle, event = self._buffer.dispatch(
                self._x(x),
                topk_idx=plan.slots,
                topk_weights=plan.gates,
                num_tokens_per_rank=per_rank,
                num_tokens_per_rdma_rank=per_node,
                is_token_in_rank=in_rank,
                num_tokens_per_expert=per_expert,
                previous_event=before,
                async_finish=True,
            )

        def finish(_: None) -> Arrived:
            event.current_stream_wait()
            # DeepEP numbers a rank's experts from 0, and slots of other ranks -1: these go last.
            flat = slots.reshape(-1)
            pair = torch.argsort(torch.where(flat < 0, self.local, flat), stable=True)[: sum(counts)]
            row = pair // top_k
            way = DeepEPWay(handle, len(slots), top_k, pair, row)
            return Arrived(self._rows(came, row), gates.reshape(-1)[pair], tuple(counts), way)

        return Handle(finished(None), finish)

    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        way: DeepEPWay = arrived.way
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            came, *_, event = self._buffer.dispatch(self._x(x), handle=way.handle, async_finish=True)

        def finish(_: None) -> Rows:
            event.current_stream_wait()
            return self._rows(came, way.row)

        return Handle(finished(None), finish)

    def combine(
        self, rows: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[torch.Tensor]:
        back = self._combined(rows, None, arrived.way, phase, layer, micro_batch)
        return Handle(finished(None), lambda _: back()[0])

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        back = self._combined(rows, gates, arrived.way, phase, layer, micro_batch)
        return Handle(finished(None), lambda _: back())

    def _combined(
        self, rows: torch.Tensor, gates: torch.Tensor | None, way: DeepEPWay, phase: str, layer: int, micro_batch: int
    ) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
        at_rank = rows.new_zeros(way.rows, self.c.d).index_add_(0, way.row, rows).bfloat16()
        of_gates = None
        if gates is not None:
            flat = gates.new_zeros(way.rows * way.top_k).index_copy_(0, way.pair, gates)
            of_gates = flat.reshape(way.rows, way.top_k)
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            sums, gate_sums, event = self._buffer.combine(at_rank, way.handle, topk_weights=of_gates, async_finish=True)

        def finish() -> tuple[torch.Tensor, torch.Tensor]:
            event.current_stream_wait()
            return sums.float(), sums.new_empty(0) if gate_sums is None else gate_sums

        return finish
