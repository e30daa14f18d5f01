"""The exchange over DeepEP's `Buffer`, where `deep_ep` is installed: NVLink inside a node, RDMA between nodes.

After the interface of DeepEP 1.2 (github.com/deepseek-ai/DeepEP, `deep_ep/buffer.py`, which release 2 keeps beside its
`ElasticBuffer`); the tests hold arguments, shapes, types, handles and the order of streams against a stand-in for it.
Its high-throughput kernels alone: the low-latency ones apply gates where tokens come from and have no backward, here
the experts' rank applies them. Not yet run on a GPU.
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
from moescope.instrumented_model.gemm.quantisers import quantise_tiles
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Plan, Rows, finished
from moescope.instrumented_model.parallel.ranks import answering

SMS = 20
"""10 channels of 2 (arXiv 2412.19437 section 3.2.2)."""
RANKS_OF_A_NODE = 8
"""`NUM_MAX_NVL_PEERS`: more ranks exchange by RDMA too."""
WIDTH = 256
"""Between nodes, combine adds up 32 x 16 bytes at a time."""


@dataclass(frozen=True)
class DeepEPWay:
    """handle: DeepEP's own; rows, top_k: of what came; pair, row: as in `hops.Way`"""

    handle: Any
    rows: int
    top_k: int
    pair: torch.Tensor
    row: torch.Tensor


class DeepEPExchange(Exchange):
    """c: sizes; group: ranks, of backend NCCL, all of which make this together; sms: that its kernels take, even

    A dispatch returns when the counts of what comes are known, which waits for the other ranks; all else is under way.

    raises: ConfigError where `deep_ep` cannot be imported, or does not take these sizes or so many ranks
    """

    def __init__(self, c: Config, group: dist.ProcessGroup, *, sms: int = SMS) -> None:
        try:
            self._deep_ep: Any = importlib.import_module("deep_ep")
            buffer: Any = self._deep_ep.Buffer
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"the DeepEP exchange needs the package deep_ep ({error}): install it, or use another exchange"
            ) from None
        ranks = group.size()
        self.c, self.local = c, c.local_experts(ranks)
        width = WIDTH if ranks > RANKS_OF_A_NODE else TILE if c.fp8 else 8
        if c.d % width:
            raise ConfigError(f"DeepEP sends tokens in multiples of {width} between {ranks} ranks, not d = {c.d}")
        if sms % 2 or sms < 2:
            raise ConfigError(f"DeepEP takes an even number of SMs, 2 to a channel, not {sms}")
        buffer.set_num_sms(sms)  # before sizes are asked for: they grow with it
        try:
            configs = buffer.get_dispatch_config(ranks), buffer.get_combine_config(ranks)
        except AssertionError as error:
            raise ConfigError(f"DeepEP: {error}; use another exchange for {ranks} ranks") from None
        token_bytes = 2 * c.d  # of BF16, the wider of the two
        nvl_bytes = max(config.get_nvl_buffer_size_hint(token_bytes, ranks) for config in configs)
        rdma_bytes = max(config.get_rdma_buffer_size_hint(token_bytes, ranks) for config in configs)
        self._buffer: Any = buffer(group, nvl_bytes, rdma_bytes, explicitly_destroy=True)

    def close(self) -> None:
        if self._buffer is not None:
            self._buffer.destroy()
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
        # All that is sent comes first: the exchange waits for the layout, and the layout for what came before it.
        sent, gates = self._x(x), plan.gates.contiguous()
        slots = plan.slots.to(self._deep_ep.topk_idx_t).contiguous()
        with emit.phase(phase, layer=layer, micro_batch=micro_batch):
            per_rank, per_node, per_expert, in_rank, before = self._buffer.get_dispatch_layout(
                slots, self.c.experts, async_finish=True
            )
            came, came_slots, came_gates, counts, handle, event = self._buffer.dispatch(
                sent,
                topk_idx=slots,
                topk_weights=gates,
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
            flat = came_slots.reshape(-1).long()
            pair = torch.argsort(torch.where(flat < 0, self.local, flat), stable=True)[: sum(counts)]
            row = pair // top_k
            way = DeepEPWay(handle, len(came_slots), top_k, pair, row)
            return Arrived(self._rows(came, row), came_gates.reshape(-1)[pair], tuple(counts), way)

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
