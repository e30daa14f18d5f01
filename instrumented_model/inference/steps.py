"""Prefill and decode: two micro-batches, one's attention and mlp against the other's exchanges (section 3.4)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.layers.cache import ContiguousCache, LayerCache
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.chain import MicroBatch, forward
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training import data
from moescope.instrumented_model.training.train import SAMPLE_EVERY, report_routing, routed

DECODE_WINDOW = 64
"""Positions decoded after a prompt before the same prompt starts over, which bounds the caches."""


@dataclass(frozen=True)
class InferenceStep:
    """logits: a micro-batch each, of the last position [sequences, vocabulary]; tokens: processed by this rank"""

    step: int
    dur_ns: int
    tokens: int
    logits: tuple[torch.Tensor, ...]


def infer(
    model: Model,
    exchange: Exchange,
    tokens: list[torch.Tensor],
    caches: list[list[LayerCache]] | None,
    schedule: Schedule,
    step: int,
) -> InferenceStep:
    """One pass of all micro-batches.

    tokens: a micro-batch each, [sequences, positions] int64; caches: a micro-batch each, [layers], filled further
    """
    start_ns = emit.clock_ns()
    with emit.step(step):
        observe.sample(step % SAMPLE_EVERY == 0)
        micro_batches = [MicroBatch(m, t, caches=None if caches is None else caches[m]) for m, t in enumerate(tokens)]
        SCHEDULES[schedule]([forward(model, exchange, mb) for mb in micro_batches])
        report_routing(model, routed(micro_batches))
    logits = tuple(mb.result for mb in micro_batches if mb.result is not None)
    return InferenceStep(step, emit.clock_ns() - start_ns, sum(t.numel() for t in tokens), logits)


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
        )[0]
        for m in range(c.micro_batches)
    ]


def new_cache(model: Model, sequences: int, capacity: int) -> tuple[ContiguousCache, list[list[int]]]:
    """A cache for all micro-batches. returns: it, and the numbers of its sequences [micro-batches][sequences]"""
    c = model.c
    cache = ContiguousCache(c, c.micro_batches * sequences, capacity)
    return cache, [[cache.add() for _ in range(sequences)] for _ in range(c.micro_batches)]


def opened(cache: ContiguousCache, sequences: list[list[int]], tokens: list[torch.Tensor]) -> list[list[LayerCache]]:
    """The layers of the cache for one pass of `tokens`. returns: [micro-batches][layers]"""
    return [cache.open(s, [t.shape[1]] * len(s)) for s, t in zip(sequences, tokens, strict=True)]


def prefill(model: Model, exchange: Exchange, *, steps: int, schedule: Schedule, seed: int) -> Iterator[InferenceStep]:
    """`steps` prefills of new prompts, each into caches of its own."""
    text = data.corpus()
    emit.stage("prefill")
    for step in range(steps):
        tokens = prompts(model, text, step=step, sequences=model.c.sequences, seed=seed)
        cache, sequences = new_cache(model, model.c.sequences, model.c.sequence_length)
        yield infer(model, exchange, tokens, opened(cache, sequences, tokens), schedule, step)


def decode(model: Model, exchange: Exchange, *, steps: int, schedule: Schedule, seed: int) -> Iterator[InferenceStep]:
    """Prefill one prompt, then `steps` greedy steps of one token a sequence from the latent cache."""
    c, text = model.c, data.corpus()
    emit.stage("prefill")
    cache, sequences = new_cache(model, c.decode_sequences, c.sequence_length + DECODE_WINDOW)
    tokens = prompts(model, text, step=0, sequences=c.decode_sequences, seed=seed)
    first = infer(model, exchange, tokens, opened(cache, sequences, tokens), schedule, 0)
    emit.stage("decode")
    last = first
    for step in range(steps):
        if step and step % DECODE_WINDOW == 0:
            for sequence in (s for numbers in sequences for s in numbers):
                cache.truncate(sequence, c.sequence_length)
            last = first
        next_tokens = [logits.argmax(-1, keepdim=True) for logits in last.logits]
        last = infer(model, exchange, next_tokens, opened(cache, sequences, next_tokens), schedule, step)
        yield replace(last, step=step)
