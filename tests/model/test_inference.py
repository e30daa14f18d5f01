"""Prefill and decode of the whole model."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.inference.steps import infer, new_cache, opened  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402

EXACT = replace(size("tiny"), fp8=False, layers=2)


def test_the_model_decodes_what_a_prefill_of_the_longer_prompt_gives() -> None:
    model, exchange = Model(EXACT, seed=1), open_exchange(EXACT, Ranks(0, 1), NO_LINK)
    try:
        tokens = [torch.randint(256, (2, 12)) for _ in range(2)]
        cache, sequences = new_cache(EXACT, 2, 12)
        for start, end in ((0, 6), (6, 11), (11, 12)):
            part = [t[:, start:end] for t in tokens]
            decoded = infer(model, exchange, part, opened(cache, sequences, part), "overlapped", 0)
        whole = infer(model, exchange, tokens, None, "serial", 2)
    finally:
        exchange.close()
    for a, b in zip(decoded.logits, whole.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=1e-2)  # BF16 on the wire and in the cache
