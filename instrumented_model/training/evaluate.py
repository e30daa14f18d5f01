"""The loss on text that was held out."""

from __future__ import annotations

import torch
import torch.distributed as dist

from moescope.collectors import emit
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Exchange
from moescope.instrumented_model.schedules.chain import MicroBatch, forward
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training import data


def held_out_loss(
    model: Model,
    exchange: Exchange,
    *,
    groups: int = 4,
    schedule: Schedule = "overlapped",
    text: torch.Tensor | None = None,
) -> float:
    """Mean over the same evenly spread held-out passages each time, of all ranks; nats a byte. Nothing is changed.

    groups: of the configuration's micro-batches, on each rank
    text: [bytes] uint8, the held-out split where none is given
    returns: the same number on all ranks
    """
    c = model.c
    text = data.corpus_for(c.vocabulary, "held out") if text is None else text
    each = c.micro_batches * c.sequences
    count = groups * each * model.ranks
    total = torch.zeros((), dtype=torch.float64)
    for group in range(groups):
        first = (group * model.ranks + model.rank) * each
        passages = data.windows(text, first=first, sequences=each, positions=c.sequence_length, count=count)
        micro_batches = [
            MicroBatch(m, tokens.to(model.device), targets.to(model.device), record=False)
            for m, (tokens, targets) in enumerate(zip(*(t.chunk(c.micro_batches) for t in passages), strict=True))
        ]
        SCHEDULES[schedule]([forward(model, exchange, mb) for mb in micro_batches])
        for mb in micro_batches:
            assert mb.result is not None
            total += mb.result.double().cpu() / (groups * c.micro_batches * model.ranks)
    if model.ranks > 1:

        def job() -> None:
            with emit.phase("loss_sync"):
                dist.all_reduce(total)

        exchange.run(job).result()
    return float(total)
