"""Latent attention against the equations written out, in every form; both caches alike, with any mix of lengths."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, size  # noqa: E402
from moescope.instrumented_model.layers.attention import LatentAttention  # noqa: E402
from moescope.instrumented_model.layers.cache import CacheFull, ContiguousCache, PagedCache  # noqa: E402

EXACT = replace(size("tiny"), fp8=False, d=48, heads=3, d_head=10, d_rope=6, d_latent=20, d_query_latent=28)
FORMS = [EXACT, replace(EXACT, d_query_latent=0)]


def naive(a: LatentAttention, h: torch.Tensor) -> torch.Tensor:
    """Equations 1 to 11 of arXiv 2412.19437, a head and a query at a time, in float64.

    h: [positions, d]; returns: [positions, d]
    """
    c = a.c

    def weight(linear: torch.nn.Module) -> torch.Tensor:
        return linear.weight.detach()[0].double()

    def normed(x: torch.Tensor, norm: torch.nn.RMSNorm) -> torch.Tensor:
        eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
        return x / (x.square().mean() + eps).sqrt() * norm.weight.detach().double()

    def rope(x: torch.Tensor, t: int) -> torch.Tensor:
        half = len(x) // 2
        turned = x.clone()
        for i in range(half):
            phi = torch.tensor(t * 10000.0 ** (-i / half), dtype=torch.float64)
            turned[i] = x[i] * phi.cos() - x[half + i] * phi.sin()
            turned[half + i] = x[i] * phi.sin() + x[half + i] * phi.cos()
        return turned

    rows = h.double()
    w_dkv, w_kr = weight(a.down)[: c.d_latent], weight(a.down)[c.d_latent :]
    w_uk = weight(a.up).reshape(c.heads, 2, c.d_head, c.d_latent)[:, 0]
    w_uv = weight(a.up).reshape(c.heads, 2, c.d_head, c.d_latent)[:, 1]
    w_q = weight(a.query).reshape(c.heads, c.d_head + c.d_rope, -1)
    latents = [normed(w_dkv @ x, a.norm) for x in rows]
    shared_keys = [rope(w_kr @ x, t) for t, x in enumerate(rows)]
    results = []
    for t, x in enumerate(rows):
        source = normed(weight(a.query_down) @ x, a.query_norm) if c.d_query_latent else x
        outputs = []
        for i in range(c.heads):
            q_c, q_r = w_q[i, : c.d_head] @ source, rope(w_q[i, c.d_head :] @ source, t)
            scores = torch.stack([q_c @ (w_uk[i] @ latents[j]) + q_r @ shared_keys[j] for j in range(t + 1)])
            p = torch.softmax(scores / (c.d_head + c.d_rope) ** 0.5, 0)
            outputs.append(sum(p[j] * (w_uv[i] @ latents[j]) for j in range(t + 1)))
        results.append(weight(a.out) @ torch.cat(outputs))
    return torch.stack(results).float()


def attention_of(c: Config, seed: int = 0) -> LatentAttention:
    torch.manual_seed(seed)
    a = LatentAttention(c)
    for name, parameter in a.named_parameters():
        if "norm" in name:
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    return a


@pytest.mark.parametrize("c", FORMS, ids=["compressed queries", "plain queries"])
def test_every_form_equals_the_equations(c: Config) -> None:
    a, x = attention_of(c), torch.randn(2, 9, c.d)
    want = torch.stack([naive(a, rows) for rows in x])
    cache = ContiguousCache(c, 2, 9, torch.float32)
    both = [cache.add(), cache.add()]
    found = []
    with torch.no_grad():
        whole = a(x.reshape(18, -1), 2).reshape(2, 9, -1)
        # A prompt, a further chunk of it, then position by position.
        for start, new in ((0, 4), (4, 2), (6, 1), (7, 1), (8, 1)):
            rows = x[:, start : start + new].reshape(2 * new, -1)
            found.append(a(rows, 2, cache.open(both, [new, new])[0]).reshape(2, new, -1))
    torch.testing.assert_close(whole, want, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(torch.cat(found, dim=1), want, atol=2e-5, rtol=1e-4)


@settings(max_examples=15, deadline=None)
@given(chunks=st.lists(st.lists(st.integers(0, 5), min_size=3, max_size=3), min_size=1, max_size=5))
def test_sequences_of_any_lengths_in_any_chunks_give_what_each_gives_alone(chunks: list[list[int]]) -> None:
    """Three sequences; a chunk of 0 leaves a sequence out of that pass."""
    c = FORMS[0]
    a = attention_of(c)
    x = torch.randn(3, 25, c.d, generator=torch.Generator().manual_seed(1))
    for cache in (ContiguousCache(c, 3, 25, torch.float32), PagedCache(c, 3 * 25, 1 + sum(chunks[0]), torch.float32)):
        numbers = [cache.add() for _ in range(3)]
        found: list[list[torch.Tensor]] = [[], [], []]
        for chunk in chunks:
            here = [s for s in range(3) if chunk[s]]
            starts = [cache.length(numbers[s]) for s in here]
            rows = [x[s, start : start + chunk[s]] for s, start in zip(here, starts, strict=True)]
            layers = cache.open([numbers[s] for s in here], [chunk[s] for s in here])
            with torch.no_grad():
                y = a(torch.cat([*rows, torch.empty(0, c.d)]), len(here), layers[0])
            for s, part in zip(here, y.split([chunk[s] for s in here]), strict=True):
                found[s].append(part)
        for s, parts in enumerate(found):
            if parts:
                with torch.no_grad():
                    alone = a(x[s, : cache.length(numbers[s])], 1)
                torch.testing.assert_close(torch.cat(parts), alone, atol=2e-5, rtol=1e-4)


def test_paged_and_contiguous_caches_give_the_same_bits() -> None:
    c = EXACT
    a, x = attention_of(c), torch.randn(3, 12, c.d)
    caches = [ContiguousCache(c, 4, 12), PagedCache(c, 12, 4)]
    for cache in caches:
        for _ in range(4):
            cache.add()
        cache.open([1], [12])  # blocks between those of the others
        cache.remove(1)
    results = []
    for cache in caches:
        parts = []
        with torch.no_grad():
            for new in ([5, 1, 7], [1, 1, 1], [3, 4, 1], [1, 1, 1]):
                starts = [cache.length(s) for s in (0, 2, 3)]
                rows = torch.cat([x[i, s : s + n] for i, (s, n) in enumerate(zip(starts, new, strict=True))])
                parts.append(a(rows, 3, cache.open([0, 2, 3], new)[0]))
        results.append(torch.cat(parts))
    assert torch.equal(*results)


def test_later_tokens_do_not_change_earlier_results() -> None:
    a, x = attention_of(EXACT), torch.randn(6, EXACT.d)
    y = x.clone()
    y[4:] = 0
    with torch.no_grad():
        torch.testing.assert_close(a(x, 1)[:4], a(y, 1)[:4])


def test_nothing_of_a_removed_sequence_is_seen_by_its_successor() -> None:
    a, x = attention_of(EXACT), torch.randn(5, EXACT.d)
    for cache in (ContiguousCache(EXACT, 2, 8), PagedCache(EXACT, 4, 4)):
        old = [cache.add(), cache.add()]
        for layer in cache.open(old, [8, 8]):
            layer.write(torch.full((16, EXACT.d_latent), torch.nan), torch.full((16, EXACT.d_rope), torch.nan))
        for sequence in old:
            cache.remove(sequence)
        new = [cache.add(), cache.add()]
        with torch.no_grad():
            a(x[:4], 2, cache.open(new, [1, 3])[0])
            y = a(x[:2], 2, cache.open(new, [1, 1])[0])
        assert torch.isfinite(y).all()


def test_a_full_cache_is_refused_and_left_as_it_was() -> None:
    contiguous, paged = ContiguousCache(EXACT, 2, 8), PagedCache(EXACT, 4, 4)
    wanted = "13 positions needed, 8 a sequence", "5 blocks of 4 positions needed, 2 of 4 free"
    for cache, words in zip((contiguous, paged), wanted, strict=True):
        a, b = cache.add(), cache.add()
        cache.open([a, b], [3, 4])
        used = cache.used_bytes
        with pytest.raises(CacheFull, match=words):
            cache.open([a, b], [6, 9])
        assert (cache.length(a), cache.length(b), cache.used_bytes) == (3, 4, used)
        cache.remove(a)
        cache.open([b], [4])
    with pytest.raises(CacheFull, match="all 2 sequences"):
        [contiguous.add() for _ in range(2)]
    assert paged.free_blocks == 2
    paged.truncate(b, 4)
    assert (paged.free_blocks, paged.length(b)) == (3, 4)


def test_a_position_takes_d_c_and_d_h_r_values_a_layer() -> None:
    v3 = replace(size("v3"), layers=2, dense_layers=0)
    cache = PagedCache(v3, 8, 64)
    assert cache.bytes_per_position == 2 * (512 + 64) * 2
    assert cache.capacity_bytes == 8 * 64 * cache.bytes_per_position
    cache.open([cache.add(), cache.add()], [65, 1])
    assert cache.used_bytes == 66 * cache.bytes_per_position
    assert cache.free_blocks == 5
