"""Latent attention: causal, and decode from the latent cache equals attention over the whole sequence."""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.inference.steps import infer, new_caches  # noqa: E402
from moescope.instrumented_model.layers.attention import LatentAttention, LatentCache  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402

EXACT = replace(size("tiny"), fp8=False, layers=2)


def test_absorbed_decode_equals_expanded_attention_position_by_position() -> None:
    torch.manual_seed(0)
    attention = LatentAttention(EXACT)
    x = torch.randn(3, 9, EXACT.d)
    cache = LatentCache.empty(EXACT, 3, 9)
    with torch.no_grad():
        whole = attention(x.reshape(27, -1), 3).reshape(3, 9, -1)
        first = attention(x[:, :5].reshape(15, -1), 3, cache).reshape(3, 5, -1)
        rest = [attention(x[:, t], 3, cache)[:, None] for t in range(5, 9)]
    torch.testing.assert_close(torch.cat([first, *rest], dim=1), whole, atol=1e-5, rtol=1e-4)


def test_later_tokens_do_not_change_earlier_results() -> None:
    torch.manual_seed(0)
    attention = LatentAttention(EXACT)
    x = torch.randn(6, EXACT.d)
    y = x.clone()
    y[4:] = 0
    with torch.no_grad():
        torch.testing.assert_close(attention(x, 1)[:4], attention(y, 1)[:4])


def test_a_full_cache_is_refused() -> None:
    cache = LatentCache.empty(EXACT, 1, 2)
    with pytest.raises(ValueError, match="full"):
        cache.append(torch.zeros(1, 3, EXACT.d_latent), torch.zeros(1, 3, EXACT.d_rope))


def test_the_model_decodes_what_a_prefill_of_the_longer_prompt_gives() -> None:
    model, exchange = Model(EXACT, seed=1), open_exchange(EXACT, Ranks(0, 1), NO_LINK)
    try:
        tokens = [torch.randint(256, (2, 12)) for _ in range(2)]
        caches = new_caches(model, 2, 12)
        infer(model, exchange, [t[:, :11] for t in tokens], caches, "overlapped", 0)
        decoded = infer(model, exchange, [t[:, 11:] for t in tokens], caches, "overlapped", 1)
        whole = infer(model, exchange, tokens, None, "serial", 2)
    finally:
        exchange.close()
    for a, b in zip(decoded.logits, whole.logits, strict=True):
        torch.testing.assert_close(a, b, atol=2e-2, rtol=1e-2)  # BF16 on the wire
