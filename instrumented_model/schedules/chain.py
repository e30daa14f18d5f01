"""A micro-batch's way through the model, forward and back, as a generator that pauses while an exchange is under way.

The chain of chunks of a micro-batch is fixed; which micro-batch goes on at a pause is the schedule's choice. Autograd
works inside a chunk only: at its edges tensors are cut, and backward hands gradients from chunk to chunk by hand.
Phases of the computing thread hold chunks; phases `dispatch` and `combine` are on the communication thread.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import torch

from moescope.instrumented_model import observe
from moescope.instrumented_model.gemm.linear import WEIGHT_GRADIENTS
from moescope.instrumented_model.layers.attention import LatentCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel import exchange as dispatch
from moescope.instrumented_model.parallel.exchange import Arrival, Exchange, Plan

Chain = Generator[Future[Any], None, None]


class Chunk:
    """A function run with its inputs cut off from the graph.

    backward: takes gradients of its differentiable outputs, returns those of its inputs
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor, record: bool) -> None:
        self._inputs = [t.detach().requires_grad_(record) for t in inputs]
        with torch.set_grad_enabled(record):
            self._outputs = function(*self._inputs)
        self.outputs = [t.detach() for t in self._outputs]

    def backward(self, *gradients: torch.Tensor) -> list[torch.Tensor]:
        differentiable = [t for t in self._outputs if t.requires_grad]
        torch.autograd.backward(differentiable, gradients)
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in self._inputs]


@dataclass(frozen=True)
class LayerTape:
    """What backward needs of a layer."""

    attend: Chunk
    mlp: Chunk
    join: Chunk
    plan: Plan
    arrival: Arrival


@dataclass
class MicroBatch:
    """Input, state and result of one micro-batch.

    tokens: [sequences, positions] int64; targets: the same shape, or None for inference
    chosen: [layers, experts] int64, tokens this rank routed to each expert
    """

    number: int
    tokens: torch.Tensor
    targets: torch.Tensor | None = None
    caches: list[LatentCache] | None = None
    chosen: list[torch.Tensor] = field(default_factory=list)
    tape: list[LayerTape] = field(default_factory=list)
    embedded: torch.Tensor | None = None
    head: Chunk | None = None
    result: torch.Tensor | None = None  # loss [], or logits of the last position [sequences, vocabulary]


def forward(model: Model, exchange: Exchange, mb: MicroBatch) -> Chain:
    """Run `mb` through the model; with targets the tape for `backward` is kept."""
    record, m, fp8 = mb.targets is not None, mb.number, model.c.fp8
    sequences = mb.tokens.shape[0]
    with observe.phase("embed(F)", micro_batch=m), torch.set_grad_enabled(record):
        mb.embedded = model.embed(mb.tokens)
        h = mb.embedded.detach()
    for n in range(model.c.layers):
        layer = model.layer(n)
        cache = None if mb.caches is None else mb.caches[n]
        with observe.phase("attn(F)", n, m):
            attend = Chunk(lambda h, layer=layer, cache=cache: layer.attend(h, sequences, cache), h, record=record)
            residual, x, gates, chosen = attend.outputs
        with observe.phase("permute(F)", n, m):
            plan = dispatch.plan(chosen, model.c.experts, model.ranks)
            mb.chosen.append(plan.sent.reshape(-1))
            wire = dispatch.pack(x, fp8)[plan.order // plan.top_k]
        there = exchange.dispatch(wire, plan.sent, phase="dispatch(F)", layer=n, micro_batch=m)
        yield there
        received_wire, received = there.result()
        with observe.phase("mlp(F)", n, m):
            arrival = dispatch.arrival(received)
            arrived = dispatch.unpack(received_wire[arrival.by_expert], model.c.d, fp8)
            mlp = Chunk(lambda x, a, layer=layer, rows=arrival.rows: layer.mlp(x, a, rows), x, arrived, record=record)
            shared, routed = mlp.outputs
            wire = _to_wire_order(dispatch.pack(routed, fp8=False), arrival)
        back = exchange.exchange(wire, received, plan.sent, phase="combine(F)", layer=n, micro_batch=m)
        yield back
        with observe.phase("unpermute(F)", n, m):
            returned = dispatch.unpack(_to_token_order(back.result(), plan), model.c.d, fp8=False)
            returned = returned.reshape(*gates.shape, model.c.d)
            join = Chunk(layer.join, residual, shared, gates, returned, record=record)
            (h,) = join.outputs
        if record:
            mb.tape.append(LayerTape(attend, mlp, join, plan, arrival))
    with observe.phase("head(F)", micro_batch=m):
        if mb.targets is not None:
            mb.head = Chunk(lambda h, targets=mb.targets: model.loss(h, targets), h, record=True)
            (mb.result,) = mb.head.outputs
        else:
            with torch.no_grad():
                mb.result = model.logits(h.reshape(sequences, -1, model.c.d)[:, -1])


def backward(model: Model, exchange: Exchange, mb: MicroBatch, weight: float) -> Chain:
    """Gradients of `weight * loss` into the parameters' `.grad`.

    Weight gradients of FP8 layers are chunks of their own (W): they need nothing of the exchange under way, so a
    schedule that does not wait at the pause has them run beside it.
    Frees the tape as it goes.
    """
    m, fp8, d = mb.number, model.c.fp8, model.c.d
    if mb.head is None or mb.embedded is None:
        raise ValueError(f"micro-batch {m} has no tape: run forward with targets first")
    with observe.phase("head(B)", micro_batch=m):
        (dh,) = mb.head.backward(torch.tensor(weight))
    pending: list[Callable[[], None]] = []
    for n in reversed(range(model.c.layers)):
        tape = mb.tape.pop()
        plan, arrival = tape.plan, tape.arrival
        with observe.phase("unpermute(B)", n, m):
            dresidual, dshared, dgates, dreturned = tape.join.backward(dh)
            wire = dispatch.pack(dreturned.reshape(-1, d), fp8)[plan.order]
        there = exchange.exchange(wire, plan.sent, arrival.received, phase="combine(B)", layer=n, micro_batch=m)
        yield there
        _run(pending, "attn(W)", n + 1, m)
        with observe.phase("mlp(B)", n, m):
            drouted = dispatch.unpack(there.result()[arrival.by_expert], d, fp8)
            WEIGHT_GRADIENTS.deferred = True
            dx, darrived = tape.mlp.backward(dshared, drouted)
            pending = WEIGHT_GRADIENTS.take()
            wire = _to_wire_order(dispatch.pack(darrived, fp8=False), arrival)
        back = exchange.exchange(wire, arrival.received, plan.sent, phase="dispatch(B)", layer=n, micro_batch=m)
        yield back
        _run(pending, "mlp(W)", n, m)
        with observe.phase("permute(B)", n, m):
            copies = dispatch.unpack(_to_token_order(back.result(), plan), d, fp8=False)
            dx = dx + copies.reshape(-1, plan.top_k, d).sum(1)
        with observe.phase("attn(B)", n, m):
            (dh,) = tape.attend.backward(dresidual, dx, dgates)
            pending = WEIGHT_GRADIENTS.take()
            WEIGHT_GRADIENTS.deferred = False
    _run(pending, "attn(W)", 0, m)
    with observe.phase("embed(B)", micro_batch=m):
        torch.autograd.backward(mb.embedded, dh)


def _run(pending: list[Callable[[], None]], name: str, layer: int, micro_batch: int) -> None:
    if pending:
        with observe.phase(name, layer, micro_batch):
            for compute in pending:
                compute()


def _to_wire_order(rows: torch.Tensor, arrival: Arrival) -> torch.Tensor:
    """Rows ordered by expert, back in the order they arrived in."""
    return torch.empty_like(rows).index_copy_(0, arrival.by_expert, rows)


def _to_token_order(rows: torch.Tensor, plan: Plan) -> torch.Tensor:
    """Rows ordered as sent, back in the order of assignments: token * top_k + k."""
    return torch.empty_like(rows).index_copy_(0, plan.order, rows)
