"""Prefill and decode: two micro-batches, one's attention and mlp against the other's exchanges (section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.device import ended
from moescope.instrumented_model.layers.cache import BLOCK, ContiguousCache, LatentCache, LayerCache, PagedCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.chain import MicroBatch, forward
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training import data
from moescope.instrumented_model.training.train import report_routing, routed

DECODE_WINDOW = 64
"""Positions decoded after a prompt before the same prompt starts over, which bounds the caches."""


CacheKind = Literal["contiguous", "paged"]
CACHES: tuple[CacheKind, ...] = ("contiguous", "paged")


@dataclass(frozen=True)
class InferenceStep:
    """What one pass of this rank's micro-batches did; lists are a micro-batch each.

    tokens: processed by this rank; logits: of each sequence's last position [sequences, vocabulary]
    ends: [sequences], positions of each with the new ones; empty without caches
    served: [layers with experts][local experts], tokens that this rank's experts got from all ranks
    """

    step: int
    dur_ns: int
    tokens: int
    logits: tuple[torch.Tensor, ...]
    ends: tuple[tuple[int, ...], ...]
    served: tuple[tuple[tuple[int, ...], ...], ...]


Graphed = Callable[[LatentCache, list[list[int]], int], Callable[[list[torch.Tensor], int], InferenceStep]]
"""From a cache, its sequences [micro-batches][sequences] and the positions that each has room for, to what does a
decode step of them: takes a micro-batch's tokens each, [sequences, 1] int64, and the number of the step."""


def infer(
    model: Model,
    exchange: Exchange,
    tokens: list[torch.Tensor],
    caches: list[list[LayerCache]] | None,
    schedule: Schedule,
    step: int,
    start_ns: int | None = None,
) -> InferenceStep:
    """One pass of all micro-batches, from its beginning to when its logits are there.

    start_ns: when it began, where that was before this call
    tokens: a micro-batch each, [sequences, positions] int64, or [tokens] of sequences as the caches' spans tell
    caches: a micro-batch each, [layers], opened for this pass
    """
    start_ns = emit.clock_ns() if start_ns is None else start_ns
    with emit.step(step):
        observe.sample(step)
        micro_batches = [MicroBatch(m, t, caches=None if caches is None else caches[m]) for m, t in enumerate(tokens)]
        SCHEDULES[schedule]([forward(model, exchange, mb) for mb in micro_batches])
        report_routing(model, routed(micro_batches))
        ended(model.device)
    logits = tuple(mb.result for mb in micro_batches if mb.result is not None)
    ends = tuple(layers[0].places.spans.ends for layers in caches or [])
    served = tuple(tuple(tuple(int(n) for n in counts) for counts in mb.served) for mb in micro_batches)
    return InferenceStep(step, emit.clock_ns() - start_ns, sum(t.numel() for t in tokens), logits, ends, served)


def prompts(model: Model, text: torch.Tensor, *, step: int, sequences: int, seed: int) -> list[torch.Tensor]:
    """A micro-batch each, [sequences, positions] int64."""
    c = model.c
    return [
        data.batch(
            text,
            step=step,
            rank=model.rank,
            micro_batch=m,
            sequences=sequences,
            positions=c.sequence_length,
            seed=seed,
        )[0].to(model.device)
        for m in range(c.micro_batches)
    ]


def new_cache(
    c: Config, sequences: int, capacity: int, kind: CacheKind = "contiguous", device: torch.device | str = "cpu"
) -> tuple[LatentCache, list[list[int]]]:
    """A cache for all micro-batches, with room for as many `sequences` of `capacity` positions in each.

    returns: it, and the numbers of its sequences [micro-batches][sequences]
    """
    count = c.micro_batches * sequences
    cache: LatentCache
    if kind == "contiguous":
        cache = ContiguousCache(c, count, capacity, device=device)
    else:
        cache = PagedCache(c, count * -(-capacity // BLOCK), device=device)
    return cache, [[cache.add() for _ in range(sequences)] for _ in range(c.micro_batches)]


def opened(cache: LatentCache, sequences: list[list[int]], tokens: list[torch.Tensor]) -> list[list[LayerCache]]:
    """The layers of the cache for one pass of `tokens`. returns: [micro-batches][layers]"""
    return [cache.open(s, [t.shape[1]] * len(s)) for s, t in zip(sequences, tokens, strict=True)]


def prefill(model: Model, exchange: Exchange, *, steps: int, schedule: Schedule, seed: int) -> Iterator[InferenceStep]:
    """`steps` prefills of new prompts, each into caches of its own."""
    text = data.corpus_for(model.c.vocabulary)
    emit.stage("prefill")
    for step in range(steps):
        tokens = prompts(model, text, step=step, sequences=model.c.sequences, seed=seed)
        cache, sequences = new_cache(model.c, model.c.sequences, model.c.sequence_length, device=model.device)
        yield infer(model, exchange, tokens, opened(cache, sequences, tokens), schedule, step)


def decode(
    model: Model,
    exchange: Exchange,
    *,
    steps: int,
    schedule: Schedule,
    seed: int,
    cache: CacheKind = "contiguous",
    graphed: Graphed | None = None,
) -> Iterator[InferenceStep]:
    """Prefill one prompt, then `steps` greedy steps of one token a sequence from the latent cache.

    graphed: makes what does a step, where that is not to be `infer`
    """
    c, text, room = model.c, data.corpus_for(model.c.vocabulary), model.c.sequence_length + DECODE_WINDOW
    emit.stage("prefill")
    kept, sequences = new_cache(c, c.decode_sequences, room, cache, model.device)

    def one_by_one(tokens: list[torch.Tensor], step: int) -> InferenceStep:
        start_ns = emit.clock_ns()
        return infer(model, exchange, tokens, opened(kept, sequences, tokens), schedule, step, start_ns)

    do_step = one_by_one if graphed is None else graphed(kept, sequences, room)
    tokens = prompts(model, text, step=0, sequences=c.decode_sequences, seed=seed)
    first = infer(model, exchange, tokens, opened(kept, sequences, tokens), schedule, 0)
    emit.stage("decode")
    last = first
    for step in range(steps):
        if step and step % DECODE_WINDOW == 0:
            for sequence in (s for numbers in sequences for s in numbers):
                kept.truncate(sequence, c.sequence_length)
            last = first
        next_tokens = [logits.argmax(-1, keepdim=True) for logits in last.logits]
        last = do_step(next_tokens, step)
        yield last
