"""Pipeline stages over ranks by torch's own DualPipeV (arXiv 2412.19437 section 3.2.1; its V-shaped half).

Each rank holds two stages, the r-th from the front and the r-th from the back, so that rank 0 has embedding and head.
The schedule is `torch.distributed.pipelining.ScheduleDualPipeV`, and weight gradients are its W actions. It takes a
stage as one module and knows no pause inside, so here all experts of a layer are on the rank of the layer: no exchange,
no dispatch beside computation. Pipeline and expert parallelism are not combined. The balance loss is left out; load is
balanced by the bias alone, which each rank moves for its own layers, as all tokens come through them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.pipelining import PipelineStage, ScheduleDualPipeV

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.gemm.beside import WEIGHT_GRADIENTS
from moescope.instrumented_model.layers.model import DenseLayer, Model, MoELayer
from moescope.instrumented_model.layers.routing import tally
from moescope.instrumented_model.parallel.ranks import Ranks


class Stage(nn.Module):
    """Layers `first` to `end` of the model, embedding before the first and head after the last. Parameters are shared.

    input: [sequences, positions] int64 tokens, or [sequences, positions, d] float32; output: that, or logits
    load: by layer with experts, tokens each expert got since the dict was last emptied [experts] int64
    """

    def __init__(self, model: Model, first: int, end: int) -> None:
        super().__init__()
        c = model.c
        self.first = first
        self.load: dict[int, torch.Tensor] = {}
        self.embedding = model.embedding if first == 0 else None
        self.layers = nn.ModuleList(model.layer(n) for n in range(first, end))
        self.norm = model.norm if end == c.layers else None
        self.head = model.head if end == c.layers else None

    def example_input(self, model: Model) -> torch.Tensor:
        """What a micro-batch of the model's configuration comes as; the values do not matter.

        returns: tokens [sequences, positions] int64 for the first stage, else [sequences, positions, d] float32
        """
        shape = model.c.sequences, model.c.sequence_length
        if self.embedding is not None:
            return torch.zeros(shape, dtype=torch.int64)
        return torch.zeros(*shape, model.c.d, requires_grad=True)

    def example_output(self, model: Model) -> torch.Tensor:
        """What it leaves as. returns: [sequences, positions, d], after the head [.., vocabulary], float32"""
        width = model.c.d if self.head is None else model.c.vocabulary
        return torch.zeros(model.c.sequences, model.c.sequence_length, width, requires_grad=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: as `example_input`; returns: as `example_output`"""
        h: torch.Tensor = x if self.embedding is None else self.embedding(x)
        sequences, positions, d = h.shape
        h = h.reshape(-1, d)
        for n, layer in enumerate(self.layers, start=self.first):
            with observe.phase("layer(F)", n):
                h, load = _layer(layer, h, sequences)
            if load is not None:
                self.load[n] = load if n not in self.load else self.load[n] + load
        if self.norm is not None and self.head is not None:
            h = self.head(self.norm(h))
        return h.reshape(sequences, positions, -1)


def _layer(layer: nn.Module, h: torch.Tensor, sequences: int) -> tuple[torch.Tensor, torch.Tensor | None]:
    """A whole layer with all its experts here, in one autograd graph.

    h: [tokens, d]; returns: the same shape, and tokens of each expert [experts] int64, None for a dense layer
    """
    if isinstance(layer, DenseLayer):
        (out,) = layer.mlp(*layer.attended(h, sequences, None))
        return out, None
    assert isinstance(layer, MoELayer)
    residual, x, gates, _, chosen = layer.attend(h, sequences, None)
    pair = torch.argsort(chosen.reshape(-1), stable=True)  # token * top_k + k, by expert
    token = pair // chosen.shape[1]
    load = tally(chosen.reshape(-1), layer.c.experts)
    routed, *shared = layer.mlp(x, x[token], gates.reshape(-1)[pair], tuple(load.tolist()))
    h = residual + shared[0] if shared else residual
    return h.index_add(0, token, routed), load


def loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy. logits: [sequences, positions, vocabulary]; targets: [sequences, positions] int64"""
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def stages_of(layers: int, ranks: int) -> list[tuple[int, int]]:
    """First and end layer of each of the 2 * ranks stages, as even as can be. Raises ConfigError where one has none."""
    count = 2 * ranks
    if layers < count:
        raise ConfigError(
            f"{layers} layers do not fill the {count} stages of {ranks} ranks: use at least {count} layers"
        )
    cuts = [layers * i // count for i in range(count + 1)]
    return list(pairwise(cuts))


def _weight_gradients() -> Callable[[], None]:
    """What torch calls after a stage's B: the W that belongs to it, to run when the schedule says."""
    pending = WEIGHT_GRADIENTS.take()

    def run() -> None:
        with observe.phase("layer(W)"):
            for compute in pending:
                compute()

    return run


class Pipeline:
    """This rank's two stages of `model`, whose other layers it does not touch; the group must be joined.

    model: whole and alike on all ranks (`ranks=1`); micro_batches: a step, at least 2 * ranks
    """

    def __init__(self, model: Model, ranks: Ranks, micro_batches: int) -> None:
        if micro_batches < 2 * ranks.count:
            stages = 2 * ranks.count
            raise ConfigError(
                f"{micro_batches} micro-batches do not fill {stages} stages: use at least {stages}, by --accumulate"
            )
        cuts = stages_of(model.c.layers, ranks.count)
        self.rank = ranks.rank
        self.stages = {i: Stage(model, *cuts[i]) for i in (ranks.rank, len(cuts) - 1 - ranks.rank)}
        self._schedule = ScheduleDualPipeV(
            [
                PipelineStage(
                    stage,
                    i,
                    len(cuts),
                    torch.device("cpu"),
                    # Not left to torch to find out: it would run a backward of its own, weight gradients and all.
                    input_args=stage.example_input(model),
                    output_args=stage.example_output(model),
                    dw_builder=_weight_gradients,
                )
                for i, stage in self.stages.items()
            ],
            micro_batches,
            loss_fn=loss,
        )

    def gradients(self, tokens: torch.Tensor, targets: torch.Tensor) -> float | None:
        """Forward and backward of a step into this rank's `.grad`, of the mean loss over micro-batches.

        tokens, targets: [micro_batches * sequences, positions] int64, sizes of the configuration; read on rank 0 alone
        returns: the mean loss on rank 0, None elsewhere
        """
        losses: list[torch.Tensor] = []
        WEIGHT_GRADIENTS.deferred = True
        try:
            if self.rank == 0:
                self._schedule.step(tokens, target=targets, losses=losses)
            else:
                self._schedule.step()
        finally:
            WEIGHT_GRADIENTS.deferred = False
        return float(torch.stack([one.detach() for one in losses]).mean()) if self.rank == 0 else None
