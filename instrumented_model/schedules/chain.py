"""One micro-batch through the model, forward or backward, as a chain of chunks that pauses before each.

A chain runs from pause to pause; at each it tells what comes next and which exchange that waits for, so that a
schedule (`order`) may run another micro-batch meanwhile, or wait. Chunks are cut out of the autograd graph at their
borders, so that backward too is a chain of chunks with exchanges between.

Chunks of a layer with experts, in the report's names (arXiv 2412.19437 section 3.2.1):
    forward   attn(F) dispatch(F) mlp(F) combine(F)
    backward  combine(B) mlp(B) dispatch(B) mlp(W) attn(B) attn(W)
dispatch and combine only start their exchange; the chunk that needs it waits: mlp(F), the next attn(F) or head(F);
mlp(B), attn(B). A dense layer has attn(F) mlp(F) and mlp(B) mlp(W) attn(B) attn(W), and no exchange. Embedding and head
belong to the first and last steps of a chain; multi-token prediction adds a layer and a head for each depth.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.beside import WEIGHT_GRADIENTS, WireGradient, stand_in
from moescope.instrumented_model.layers.cache import LayerCache, Places
from moescope.instrumented_model.layers.model import DenseLayer, Model
from moescope.instrumented_model.layers.routing import tally
from moescope.instrumented_model.numerics.quantise import Quantised
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Rows, Waits


class Next(NamedTuple):
    """A pause of a chain: what it does when it is resumed.

    chunk: `attn(F)`, `dispatch(B)`, `head(F)`; layer: its number
    waits_for: the exchange that this chunk needs and would wait for; None where it can go on at once
    beside: an exchange under way that this chunk does not need
    """

    chunk: str
    layer: int
    waits_for: Waits | None = None
    beside: Waits | None = None


Chain = Generator[Next, None, None]


class Chunk:
    """A function run with its inputs cut off from the graph, so that its backward is a chunk too.

    outputs: detached
    """

    def __init__(self, function: Callable[..., tuple[torch.Tensor, ...]], *inputs: torch.Tensor, record: bool) -> None:
        self._inputs = [t.detach().requires_grad_(record) for t in inputs]
        with torch.set_grad_enabled(record):
            self._outputs = function(*self._inputs)
        self.outputs = [t.detach() for t in self._outputs]

    def backward(self, *gradients: torch.Tensor) -> list[torch.Tensor]:
        """gradients: of the outputs, each of its shape; those that need none come last and are left out

        returns: those of the inputs, each of its shape, zeros where one has none
        """
        differentiable = [t for t in self._outputs if t.requires_grad]
        torch.autograd.backward(differentiable, gradients[: len(differentiable)])
        return [torch.zeros_like(t) if t.grad is None else t.grad for t in self._inputs]


@dataclass(frozen=True)
class LayerTape:
    """What backward needs of a layer; `arrived` is None for a dense one.

    gradient: where that of the routed experts' result is put as it comes
    """

    attend: Chunk
    mlp: Chunk
    arrived: Arrived | None
    gradient: WireGradient


@dataclass
class MicroBatch:
    """Input, state and result of one micro-batch.

    tokens: [sequences, positions] int64; targets: the same shape, or None for inference
    caches: [layers], opened for this pass; they tell the sequences, then, and tokens may be [tokens], one after another
    chosen: [layers with experts][experts] int64, tokens this rank routed to each expert
    served: [layers with experts][local experts], rows that this rank's experts got, as `Arrived` has them
    balance_losses: [layers with experts] of [], weighted; a part of the loss that `result` leaves out
    embedded: of tokens, and with multi-token prediction of targets; heads, merges: of the model and each further depth
    further_losses: [depths] of [], of multi-token prediction, unweighted
    """

    number: int
    tokens: torch.Tensor
    targets: torch.Tensor | None = None
    record: bool = True  # keep what backward needs, where there are targets
    caches: list[LayerCache] | None = None
    chosen: list[torch.Tensor] = field(default_factory=list)
    served: list[tuple[int, ...] | torch.Tensor] = field(default_factory=list)
    tape: list[LayerTape] = field(default_factory=list)
    embedded: list[torch.Tensor] = field(default_factory=list)
    heads: list[Chunk] = field(default_factory=list)
    merges: list[Chunk] = field(default_factory=list)
    balance_losses: list[torch.Tensor] = field(default_factory=list)
    further_losses: list[torch.Tensor] = field(default_factory=list)
    result: torch.Tensor | None = None  # loss [], or logits of the last position [sequences, vocabulary]

    @property
    def balance(self) -> float:
        """Sum of the layers' balance losses, weighted. Asked for once the pass is over: it waits for the device."""
        return sum(float(loss) for loss in self.balance_losses)

    @property
    def further(self) -> float:
        """Sum of the losses of multi-token prediction, unweighted; waits for the device."""
        return sum(float(loss) for loss in self.further_losses)


def forward(model: Model, exchange: Exchange, mb: MicroBatch) -> Chain:
    """Run `mb` through the model; with targets the tape for `backward` is kept."""
    record, m, c = mb.record and mb.targets is not None, mb.number, model.c
    with observe.phase("embed(F)", micro_batch=m), torch.set_grad_enabled(record):
        mb.embedded = [model.embed(mb.tokens)]
        if record and c.mtp_depth and mb.targets is not None:
            mb.embedded.append(model.embed(mb.targets))
    h, back = mb.embedded[0].detach(), None
    for n in range(c.layers):
        h, back = yield from _layer_ahead(model, exchange, mb, n, h, back)
    yield Next("head(F)", c.layers, back)
    h = _joined(h, back, c.layers - 1, m)
    with observe.phase("head(F)", micro_batch=m):
        if mb.targets is not None:
            head = Chunk(lambda h, targets=mb.targets: model.loss(h, targets), h, record=record)
            mb.heads.append(head)
            (mb.result,) = head.outputs
        else:
            with torch.no_grad():
                places = mb.caches[0].places if mb.caches else Places.uncached(*mb.tokens.shape, h.device)
                mb.result = model.logits(h[places.last])
    if record:
        yield from _predict_further(model, exchange, mb, h)


def _predict_further(model: Model, exchange: Exchange, mb: MicroBatch, h: torch.Tensor) -> Chain:
    """The chain of multi-token prediction, depth by depth. h: [tokens, d], of the last layer"""
    m, sequences = mb.number, mb.tokens.shape[0]
    for k in range(1, model.c.mtp_depth + 1):
        module, n = model.mtp_module(k), model.c.layers + k - 1
        with observe.phase("mtp(F)", n, m):
            following = mb.embedded[1].detach()
            merge = Chunk(lambda h, e, at=module: at.merge(h, e, sequences), h, following, record=True)
            mb.merges.append(merge)
            (h,) = merge.outputs
        h, back = yield from _layer_ahead(model, exchange, mb, n, h, None)
        yield Next("head(F)", n + 1, back)
        h = _joined(h, back, n, m)
        with observe.phase("head(F)", n, m):
            head = Chunk(lambda h, at=module: at.loss(h, mb.targets, model.head), h, record=True)
            mb.heads.append(head)
            mb.further_losses.append(head.outputs[0])


Returned = tuple[torch.Tensor, Handle[torch.Tensor] | None]
"""What a layer hands on: residual and shared experts' part, and the routed experts' that is still under way."""


def _layer_ahead(
    model: Model, exchange: Exchange, mb: MicroBatch, n: int, h: torch.Tensor, back: Handle[torch.Tensor] | None
) -> Generator[Next, None, Returned]:
    """Layer `n` forward. h, back: what the layer before handed on"""
    record, m, sequences = mb.record and mb.targets is not None, mb.number, mb.tokens.shape[0]
    layer = model.layer(n)
    cache = None if mb.caches is None else mb.caches[n]
    gradient = WireGradient()
    yield Next("attn(F)", n, back)
    h = _joined(h, back, n - 1, m)
    if isinstance(layer, DenseLayer):
        with observe.phase("attn(F)", n, m):
            attend = Chunk(lambda h, at=layer: at.attended(h, sequences, cache), h, record=record)
        yield Next("mlp(F)", n)
        with observe.phase("mlp(F)", n, m):
            mlp = Chunk(layer.mlp, *attend.outputs, record=record)
            (h,), back, arrived = mlp.outputs, None, None
    else:
        with observe.phase("attn(F)", n, m):
            attend = Chunk(lambda h, at=layer: at.attend(h, sequences, cache), h, record=record)
            residual, x, gates, balance, chosen = attend.outputs
            mb.balance_losses.append(balance)
        yield Next("dispatch(F)", n)
        with observe.phase("permute(F)", n, m):
            mb.chosen.append(tally(chosen.reshape(-1), model.c.experts))
            there = exchange.dispatch(x, exchange.plan(chosen, gates), phase="dispatch(F)", layer=n, micro_batch=m)
        yield Next("mlp(F)", n, there)
        with observe.phase("mlp(F)", n, m):
            arrived = there.result()
            counts, (rows, wire) = arrived.counts, _in_graph(arrived.came)
            mb.served.append(counts)
            mlp = Chunk(
                lambda x, a, g, at=layer: at.mlp(x, a, g, counts, wire, gradient), x, rows, arrived.gates, record=record
            )
            routed, *shared = mlp.outputs
            h = residual + shared[0] if shared else residual
        yield Next("combine(F)", n)
        with observe.phase("unpermute(F)", n, m):
            back = exchange.combine(routed, arrived, phase="combine(F)", layer=n, micro_batch=m)
    if record:
        mb.tape.append(LayerTape(attend, mlp, arrived, gradient))
    return h, back


def backward(model: Model, exchange: Exchange, mb: MicroBatch, weight: float) -> Chain:
    """Gradients of `weight * (loss + balance loss + mtp_weight * mean further loss)` into the parameters' `.grad`.

    Weight gradients of FP8 layers are chunks of their own (W), which need nothing of the exchange under way.
    Frees the tape as it goes. What micro-batches share outside layers, head and embedding, gets its gradients at the
    first and the last step of the chain alone, so that they add up in the order of the micro-batches.
    """
    m, c = mb.number, model.c
    if not mb.tape:
        raise ValueError(f"micro-batch {m} has no tape: run forward with targets first")
    scale = torch.full((), weight, device=model.device)
    with observe.phase("head(B)", micro_batch=m):
        of_heads = [head.backward(scale if k == 0 else scale * _share(c))[0] for k, head in enumerate(mb.heads)]
        mb.heads.clear()
    gradients = [torch.zeros_like(embedded) for embedded in mb.embedded]
    for k in reversed(range(1, c.mtp_depth + 1)):
        dh = yield from _layer_back(model, exchange, mb, c.layers + k - 1, of_heads[k], scale)
        with observe.phase("mtp(B)", c.layers + k - 1, m):
            dbefore, dfollowing = mb.merges.pop().backward(dh)
            of_heads[k - 1] += dbefore
            gradients[1] += dfollowing
    dh = of_heads[0]
    for n in reversed(range(c.layers)):
        dh = yield from _layer_back(model, exchange, mb, n, dh, scale)
    gradients[0] = dh
    with observe.phase("embed(B)", micro_batch=m):
        torch.autograd.backward(mb.embedded, gradients)
        mb.embedded.clear()


def _share(c: Config) -> float:
    """Weight of one depth's loss: lambda / D, equation 25."""
    return c.mtp_weight / c.mtp_depth


def _layer_back(
    model: Model, exchange: Exchange, mb: MicroBatch, n: int, dh: torch.Tensor, scale: torch.Tensor
) -> Generator[Next, None, torch.Tensor]:
    """Layer `n` backward. dh: [tokens, d], gradient of what it handed on; scale: [], gradient of the balance loss

    returns: gradient of what it was given
    """
    m, tape = mb.number, mb.tape.pop()
    arrived = tape.arrived
    if arrived is None:
        yield Next("mlp(B)", n)
        with observe.phase("mlp(B)", n, m), _deferred() as pending:
            of_attend = tape.mlp.backward(dh)
        yield Next("mlp(W)", n)
        _run(pending, "mlp(W)", n, m)
        yield Next("attn(B)", n)
    else:
        yield Next("combine(B)", n)
        with observe.phase("unpermute(B)", n, m):
            there = exchange.dispatch_again(dh, arrived, phase="combine(B)", layer=n, micro_batch=m)
        yield Next("mlp(B)", n, there)
        with observe.phase("mlp(B)", n, m), _deferred() as pending:
            dy, tape.gradient.came = _in_graph(there.result())
            dx, drows, dgates = tape.mlp.backward(dy, dh)
        yield Next("dispatch(B)", n)
        with observe.phase("permute(B)", n, m):
            back = exchange.combine_gradients(drows, dgates, arrived, phase="dispatch(B)", layer=n, micro_batch=m)
        yield Next("mlp(W)", n, beside=back)
        _run(pending, "mlp(W)", n, m)
        yield Next("attn(B)", n, back)
        with observe.phase("permute(B)", n, m):
            copies, dgates = back.result()
            of_attend = [dh, dx.add_(copies), dgates, scale]
    with observe.phase("attn(B)", n, m), _deferred() as pending:
        (dh,) = tape.attend.backward(*of_attend)
    yield Next("attn(W)", n)
    _run(pending, "attn(W)", n, m)
    return dh


def _joined(h: torch.Tensor, back: Handle[torch.Tensor] | None, layer: int, micro_batch: int) -> torch.Tensor:
    """What a layer hands on: residual and shared experts' part, plus what its routed experts made (equation 12)."""
    if back is None:
        return h
    with observe.phase("unpermute(F)", layer, micro_batch):
        return back.result().add_(h)


def _in_graph(rows: Rows) -> tuple[torch.Tensor, Quantised | None]:
    """What stands for rows in the graph, and what is multiplied in its place: rows in FP8 as they came (S4's scales
    are powers of 2 already), None where the first is the rows themselves."""
    return (stand_in(rows), rows) if isinstance(rows, Quantised) else (rows, None)


@contextmanager
def _deferred() -> Iterator[list[Callable[[], None]]]:
    """Weight gradients are put off inside, and stand in the list afterwards."""
    pending: list[Callable[[], None]] = []
    WEIGHT_GRADIENTS.deferred = True
    try:
        yield pending
    finally:
        WEIGHT_GRADIENTS.deferred = False
        pending += WEIGHT_GRADIENTS.take()


def _run(pending: list[Callable[[], None]], name: str, layer: int, micro_batch: int) -> None:
    if pending:
        with observe.phase(name, layer, micro_batch):
            for compute in pending:
                compute()
