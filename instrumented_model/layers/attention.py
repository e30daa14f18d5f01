"""Multi-head latent attention: keys and values come from one small latent (arXiv 2412.19437 section 2.1.1).

Projections are FP8; the core, norms and rotation are not (section 3.3.1): they run in FP32 and stand for BF16.
Two forms of the same: expanded (keys and values of every head written out) where many positions share the work, and
absorbed (the up-projection moved to queries and results) where one position reads a long past.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.linear import Fp8Linear
from moescope.instrumented_model.layers.cache import LayerCache, Places, Spans
from moescope.instrumented_model.layers.rope import angles, rotate


@lru_cache(maxsize=8)
def _future(new: int, positions: int, device: torch.device) -> torch.Tensor:
    """Added to the scores of the last `new` positions. returns: [new, positions], -inf where a key is yet to come"""
    return torch.full((new, positions), -torch.inf, device=device).triu(1 + positions - new)


class LatentAttention(nn.Module):
    """x [tokens, d] to [tokens, d], causal in each sequence.

    query_down: W^DQ, absent where queries are not compressed; query: W^UQ and W^QR, a head's rows side by side
    down: W^DKV and W^KR in one, d_c + d_h^R wide, which need not be a multiple of a block; up: W^UK and W^UV, a head's
    rows side by side; out: W^O. Equations 1 to 11; latents are normed before they are expanded (section 4.2).
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        how, width = Arithmetic.of(c), c.heads * (c.d_head + c.d_rope)
        if c.d_query_latent:
            self.query_down = Fp8Linear("attn.q_a", c.d, c.d_query_latent, arithmetic=how)
            self.query_norm = nn.RMSNorm(c.d_query_latent)
            self.query = Fp8Linear("attn.q_b", c.d_query_latent, width, arithmetic=how)
        else:
            self.query = Fp8Linear("attn.q", c.d, width, arithmetic=how)
        self.down = Fp8Linear("attn.kv_a", c.d, c.d_latent + c.d_rope, arithmetic=how)
        self.norm = nn.RMSNorm(c.d_latent)
        self.up = Fp8Linear("attn.kv_b", c.d_latent, c.heads * 2 * c.d_head, arithmetic=how)
        self.out = Fp8Linear("attn.o", c.heads * c.d_head, c.d, arithmetic=how, power_of_2_x=True, keep="e5m6")

    def forward(self, x: torch.Tensor, sequences: int, cache: LayerCache | None = None) -> torch.Tensor:
        """x: [tokens, d] float32, sequence after sequence: of one length without a cache, else as its spans tell

        Where a cache holds a past, attention goes on after it: one position a sequence in the absorbed form, several
        (a further chunk of a prompt) in the expanded one.
        """
        c = self.c
        if cache is not None:
            places = cache.places
        else:
            places = Places.uncached(sequences, x.shape[0] // max(sequences, 1), x.device)
        cos, sin = angles(places.positions, places.longest, c.d_rope)
        q_head, q_rope = torch.split(self._queries(x), [c.d_head, c.d_rope], dim=-1)
        latent, key_rope = self.down(x).split([c.d_latent, c.d_rope], dim=-1)
        latent, key_rope, q_rope = self.norm(latent), rotate(key_rope, cos, sin), rotate(q_rope, cos, sin)
        if cache is not None:
            cache.write(latent, key_rope)
        o = self._attend(q_head, q_rope, latent, key_rope, places.spans, cache)
        return self.out(o.reshape(x.shape[0], c.heads * c.d_head))  # type: ignore[no-any-return]

    def _queries(self, x: torch.Tensor) -> torch.Tensor:
        """returns: [tokens, heads, d_head + d_rope]"""
        c = self.c
        if c.d_query_latent:
            x = self.query_norm(self.query_down(x))
        return self.query(x).reshape(x.shape[0], c.heads, c.d_head + c.d_rope)  # type: ignore[no-any-return]

    def _attend(
        self,
        q_head: torch.Tensor,
        q_rope: torch.Tensor,
        latent: torch.Tensor,
        key_rope: torch.Tensor,
        spans: Spans,
        cache: LayerCache | None,
    ) -> torch.Tensor:
        """Choose the form. returns: [tokens, heads, d_head]"""
        if not spans.new:
            return q_head
        if cache is not None and set(spans.new) == {1}:
            return self._absorbed(q_head, q_rope, cache.read(), spans.ends, cache.places.beyond)
        if not any(spans.starts):
            past = torch.cat([latent, key_rope], dim=-1)
            if spans.even:
                return self._expanded(q_head, q_rope, past.reshape(len(spans.new), spans.new[0], -1))
            parts = zip(*(torch.split(t, list(spans.new)) for t in (q_head, q_rope, past)), strict=True)
            return torch.cat([self._expanded(q, r, p[None]) for q, r, p in parts])
        assert cache is not None
        if spans.even:
            return self._expanded(q_head, q_rope, cache.read())
        results = []
        queries = zip(*(torch.split(t, list(spans.new)) for t in (q_head, q_rope)), strict=True)
        for (q, r), past, end in zip(queries, cache.read(), spans.ends, strict=True):
            one = past[None, :end]
            results.append(self._absorbed(q, r, one, (end,), None) if len(q) == 1 else self._expanded(q, r, one))
        return torch.cat(results)

    def _expanded(self, q_head: torch.Tensor, q_rope: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        """Keys and values of every head written out: training, prefill and its chunks.

        q_head, q_rope: [sequences * new, heads, ...], the last positions; past: [sequences, positions, d_c + d_h^R]
        returns: [sequences * new, heads, d_head]
        """
        c, (sequences, positions, _) = self.c, past.shape
        new = q_head.shape[0] // sequences
        latent, key_rope = torch.split(past, [c.d_latent, c.d_rope], dim=-1)
        kv = self.up(latent.reshape(sequences * positions, c.d_latent))
        k, v = kv.reshape(sequences, positions, c.heads, 2 * c.d_head).split(c.d_head, dim=-1)
        k = torch.cat([k, key_rope[:, :, None].expand(-1, -1, c.heads, -1)], dim=-1)
        q = torch.cat([q_head, q_rope], dim=-1).reshape(sequences, new, c.heads, c.d_head + c.d_rope)
        scores = (q * (c.d_head + c.d_rope) ** -0.5).transpose(1, 2) @ k.permute(0, 2, 3, 1)
        o = F.softmax(scores + _future(new, positions, scores.device), dim=-1) @ v.transpose(1, 2)
        batch = sequences * c.heads
        observe.product(new, positions, c.d_head + c.d_rope, dtype=observe.BF16, batch=batch)
        observe.product(new, c.d_head, positions, dtype=observe.BF16, batch=batch)
        expanded: torch.Tensor = o.transpose(1, 2).reshape(sequences * new, c.heads, c.d_head)
        return expanded

    def _absorbed(
        self,
        q_head: torch.Tensor,
        q_rope: torch.Tensor,
        past: torch.Tensor,
        ends: tuple[int, ...],
        beyond: torch.Tensor | None,
    ) -> torch.Tensor:
        """W^UK absorbed into queries, W^UV into results, so the cache is read as it is: decode, one position each.

        q_head, q_rope: [sequences, heads, ...]; past: [sequences, longest, d_c + d_h^R]; ends: [sequences]
        beyond: [sequences, longest] bool, past a sequence's end, None where all are of one length
        returns: [sequences, heads, d_head]
        """
        c, sequences = self.c, len(past)
        w = self.up.dequantised()[0].reshape(c.heads, 2, c.d_head, c.d_latent)
        q_latent = torch.einsum("bhd,hdl->bhl", q_head, w[:, 0])
        scores = torch.cat([q_latent, q_rope], dim=-1) @ past.mT * (c.d_head + c.d_rope) ** -0.5
        if beyond is not None:
            scores = scores.masked_fill(beyond[:, None], -torch.inf)
        p = F.softmax(scores, dim=-1)
        o = torch.einsum("bhl,hdl->bhd", p @ past[..., : c.d_latent], w[:, 1])
        observe.product(sequences, c.d_latent, c.d_head, dtype=observe.BF16, batch=2 * c.heads)
        for t in ends:
            observe.product(c.heads, t, c.d_latent + c.d_rope, dtype=observe.BF16)
            observe.product(c.heads, c.d_latent, t, dtype=observe.BF16)
        return o
