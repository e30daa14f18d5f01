"""The exchange with redundant experts: before each dispatch all ranks make the same plan of which replica is used.

For inference: the gradients of an expert's replicas are not added up here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
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
from moescope.instrumented_model.parallel.two_hop import own_group
from moescope.instrumented_model.parallel.wire import as_bytes, pack_tokens


@dataclass(frozen=True)
class Planned:
    """What the plan of one dispatch was made from, and what it did; figures are worked out when they are asked for.

    counts: [ranks, experts] int64, tokens of each rank for each expert; slots: [ranks, experts] int64, where they went
    gather_ns: that the dispatch waited for counts still on their way, of the slowest rank; plan_ns: to make the plan
    """

    layer: int
    micro_batch: int
    placement: Placement
    counts: torch.Tensor
    slots: torch.Tensor
    gather_ns: int
    plan_ns: int

    @property
    def before(self) -> tuple[int, ...]:
        """[ranks], rows of each rank's experts without replicas."""
        return tuple(self.counts.sum(0).reshape(self.placement.ranks, -1).sum(1).tolist())

    @property
    def after(self) -> tuple[int, ...]:
        """[ranks], the same with them."""
        return tuple(rank_loads(self.counts, self.slots, self.placement).tolist())

    @property
    def digest(self) -> str:
        """What ranks compare to know that they had the same plan."""
        return digest(self.slots)


class PlannedExchange(HopExchange):
    """placements: of each layer with experts, by its number; all with the same number of slots
    timeout_s: for a rank that does not answer, in the group that is made here; all ranks must make this together

    plans: what the last dispatches planned, newest last
    """

    KEPT = 1024

    def __init__(
        self,
        hops: Sequence[Hop],
        local_of: torch.Tensor,
        placements: Mapping[int, Placement],
        experts: int,
        rank: int,
        d: int,
        fp8: bool,
        timeout_s: float,
    ) -> None:
        first = next(iter(placements.values()))
        super().__init__(hops, local_of, first.slots_per_rank, d, fp8)
        self.placements, self.experts, self.rank, self.ranks = dict(placements), experts, rank, first.ranks
        self.plans: deque[Planned] = deque(maxlen=self.KEPT)
        self._group = own_group("plan", [list(range(first.ranks))], 0, timeout_s) if first.ranks > 1 else None

    def dispatch(self, x: torch.Tensor, plan: Plan, *, phase: str, layer: int, micro_batch: int) -> Handle[Arrived]:
        """`plan.slots` are experts here; the global plan gives them slots, on the communication thread."""
        with emit.phase("plan(F)", layer=layer, micro_batch=micro_batch):
            counts = torch.bincount(plan.slots.reshape(-1), minlength=self.experts)
            gathered = self._gathered(counts)
        parts = [*pack_tokens(x, self.fp8, "dispatch.x"), as_bytes(plan.gates)]
        top_k = plan.slots.shape[1]

        def job() -> tuple[torch.Tensor, tuple[object, ...]]:
            with emit.phase("plan(F)", layer=layer, micro_batch=micro_batch):
                mine = self._planned(gathered, layer, micro_batch)
                slots = mine.index_select(0, plan.slots.reshape(-1)).reshape(plan.slots.shape)
            wire = torch.cat([*parts, as_bytes(slots.int())], dim=1)
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

    def _gathered(self, counts: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Begin to tell every rank what this one has. counts: [experts] int64; returns: waits for [ranks, experts]

        In a group of its own, where it need not queue behind the exchanges under way and neither waits for nor delays
        them; as an all-to-all, one hop of the network for all ranks, where a gather goes around a ring.
        """
        if self.ranks == 1:
            return lambda: counts.unsqueeze(0)
        everyone = counts.new_empty(self.ranks, self.experts)
        with answering():
            work = dist.all_to_all_single(everyone, counts.repeat(self.ranks, 1), group=self._group, async_op=True)

        def wait() -> torch.Tensor:
            with answering():
                work.wait()
            return everyone

        return wait

    def _planned(self, gathered: Callable[[], torch.Tensor], layer: int, micro_batch: int) -> torch.Tensor:
        """returns: slots of this rank's tokens, [experts] int64; the host makes the plan, wherever the counts are"""
        start_ns = emit.clock_ns()
        counts, placement = gathered(), self.placements[layer]
        of_all = counts.cpu()
        gathered_ns = emit.clock_ns()
        plan = planned(of_all, placement)
        planned_ns = emit.clock_ns()
        self.plans.append(
            Planned(layer, micro_batch, placement, of_all, plan, gathered_ns - start_ns, planned_ns - gathered_ns)
        )
        return plan[self.rank].to(counts.device)


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
