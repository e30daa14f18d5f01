"""The exchange with redundant experts: before each dispatch all ranks make the same plan of which replica is used.

For inference: the gradients of an expert's replicas are not added up here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn

from moescope.collectors import emit
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.layers.experts import Experts
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Arrived, Handle, Plan, Rows, finished
from moescope.instrumented_model.parallel.global_plan import digest, planned, rank_loads
from moescope.instrumented_model.parallel.hop import Hop
from moescope.instrumented_model.parallel.hops import HopExchange
from moescope.instrumented_model.parallel.placement import Placement
from moescope.instrumented_model.parallel.ranks import answering
from moescope.instrumented_model.parallel.wire import pack_tokens


@dataclass(frozen=True)
class Planned:
    """What the plan of one dispatch did.

    before: [ranks], rows of each rank's experts without replicas; after: [ranks], with them
    gather_ns: to tell each other the counts, waiting for the slowest; plan_ns: to make the plan
    """

    layer: int
    micro_batch: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    gather_ns: int
    plan_ns: int
    digest: str


class PlannedExchange(HopExchange):
    """placements: of each layer with experts, by its number; all with the same number of slots

    plans: what the last dispatches planned, newest last
    """

    KEPT = 4096

    def __init__(
        self,
        hops: Sequence[Hop],
        local_of: torch.Tensor,
        placements: Mapping[int, Placement],
        experts: int,
        rank: int,
        d: int,
        fp8: bool,
    ) -> None:
        first = next(iter(placements.values()))
        super().__init__(hops, local_of, first.slots_per_rank, d, fp8)
        self.placements, self.experts, self.rank, self.ranks = dict(placements), experts, rank, first.ranks
        self.plans: deque[Planned] = deque(maxlen=self.KEPT)

    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        """`plan.slots` are experts here; the global plan gives them slots, on the communication thread."""
        parts = [*pack_tokens(x, self.fp8, "dispatch.x"), plan.gates.contiguous().view(torch.uint8)]
        counts = torch.bincount(plan.slots.reshape(-1), minlength=self.experts)
        top_k = plan.slots.shape[1]

        def job() -> tuple[torch.Tensor, tuple[object, ...]]:
            with emit.phase("plan(F)", layer=layer, micro_batch=micro_batch):
                mine = self._planned(counts, layer, micro_batch)
                slots = mine.index_select(0, plan.slots.reshape(-1)).reshape(plan.slots.shape)
            wire = torch.cat([*parts, slots.int().view(torch.uint8)], dim=1)
            if not self.hops:
                return wire, ()
            with emit.phase(phase, layer=layer, micro_batch=micro_batch):
                row, sent = self.hops[0].routed(slots)
                return self._there(len(wire), row, sent, wire.index_select(0, row), top_k)

        future = finished(job()) if self._thread is None else self._thread.submit(job)
        return Handle(future, lambda came: self._arrived(came[0], came[1], top_k))

    def dispatch_again(
        self, x: torch.Tensor, arrived: Arrived, *, phase: str, layer: int, micro_batch: int
    ) -> Handle[Rows]:
        raise ValueError("redundant experts are for inference: gradients of replicas are not added up")

    def _planned(self, counts: torch.Tensor, layer: int, micro_batch: int) -> torch.Tensor:
        """returns: slots of this rank's tokens, [experts] int64"""
        start_ns = emit.clock_ns()
        everyone = counts.new_empty(self.ranks * self.experts)
        if self.ranks > 1:
            with answering():
                dist.all_gather(list(everyone.chunk(self.ranks)), counts)
        else:
            everyone.copy_(counts)
        gathered_ns = emit.clock_ns()
        of_all, placement = everyone.reshape(self.ranks, self.experts), self.placements[layer]
        plan = planned(of_all, placement)
        planned_ns = emit.clock_ns()
        self.plans.append(
            Planned(
                layer,
                micro_batch,
                tuple(of_all.sum(0).reshape(self.ranks, -1).sum(1).tolist()),
                tuple(rank_loads(of_all, plan, placement).tolist()),
                gathered_ns - start_ns,
                planned_ns - gathered_ns,
                digest(plan),
            )
        )
        return plan[self.rank]


def place_experts(model: Model, placements: Mapping[int, Placement]) -> None:
    """Give each rank the weights of the experts in its slots, from the ranks that hold them. All ranks call this.

    The model then computes with a `PlannedExchange` over the same placements alone, and cannot be trained.
    """
    for number, layer in model.moe_layers().items():
        here = placements[number].of_rank(model.rank)
        new = Experts("mlp", model.c.d, model.c.d_expert, len(here), Arithmetic.of(model.c))
        for old, linear in ((layer.experts.gate_up, new.gate_up), (layer.experts.down, new.down)):
            own = old.weight.detach()
            every = own.new_empty(model.ranks * own.shape[0], *own.shape[1:])
            if model.ranks > 1:
                with answering():
                    dist.all_gather(list(every.chunk(model.ranks)), own.contiguous())
            else:
                every.copy_(own)
            linear.weight = nn.Parameter(every[here], requires_grad=False)
        layer.experts = new
