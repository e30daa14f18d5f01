"""Multi-head latent attention: keys and values come from one small latent (arXiv 2412.19437 section 2.1.1).

Queries are not compressed here. The core runs in FP32 and stands for BF16; the projections are FP8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.linear import Fp8Linear


@dataclass
class LatentCache:
    """What decode keeps of the past in one layer: d_latent + d_rope values a token.

    latent: [sequences, capacity, d_latent] float32, after its norm; rope: [sequences, capacity, d_rope]
    length: positions filled
    """

    latent: torch.Tensor
    rope: torch.Tensor
    length: int = field(default=0)

    @classmethod
    def empty(cls, c: Config, sequences: int, capacity: int) -> LatentCache:
        return cls(torch.zeros(sequences, capacity, c.d_latent), torch.zeros(sequences, capacity, c.d_rope))

    def append(self, latent: torch.Tensor, rope: torch.Tensor) -> None:
        """latent: [sequences, new, d_latent]; rope: [sequences, new, d_rope]"""
        end = self.length + latent.shape[1]
        if end > self.latent.shape[1]:
            raise ValueError(f"cache of {self.latent.shape[1]} positions is full: {end} needed")
        self.latent[:, self.length : end] = latent
        self.rope[:, self.length : end] = rope
        self.length = end


def rotate(x: torch.Tensor, start: int) -> torch.Tensor:
    """Rotary position. x: [sequences, positions, ..., d_rope] from position `start`; the same shape comes back"""
    positions, half = x.shape[1], x.shape[-1] // 2
    angle = torch.arange(start, start + positions).float()[:, None] * 10000.0 ** (-torch.arange(half) / half)
    angle = angle.reshape(positions, *[1] * (x.dim() - 3), half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()], dim=-1)


class LatentAttention(nn.Module):
    """x [tokens, d] to [tokens, d], causal in each sequence; tokens = sequences * positions."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.query = Fp8Linear("attn.q", c.d, c.heads * (c.d_head + c.d_rope), fp8=c.fp8)
        self.down = Fp8Linear("attn.kv_a", c.d, c.d_latent + c.d_rope, fp8=c.fp8)
        self.norm = nn.RMSNorm(c.d_latent)
        self.up = Fp8Linear("attn.kv_b", c.d_latent, c.heads * 2 * c.d_head, fp8=c.fp8)
        self.out = Fp8Linear("attn.o", c.heads * c.d_head, c.d, fp8=c.fp8)

    def forward(self, x: torch.Tensor, sequences: int, cache: LatentCache | None = None) -> torch.Tensor:
        """x: [tokens, d]. With a cache that holds a past, one new position a sequence (decode); else from the start."""
        c, positions = self.c, x.shape[0] // sequences
        start = cache.length if cache is not None else 0
        q = self.query(x).reshape(sequences, positions, c.heads, c.d_head + c.d_rope)
        latent, key_rope = self.down(x).split([c.d_latent, c.d_rope], dim=-1)
        latent = self.norm(latent)
        q_head, q_rope = q.split([c.d_head, c.d_rope], dim=-1)
        q_rope = rotate(q_rope, start)
        key_rope = rotate(key_rope.reshape(sequences, positions, c.d_rope), start)
        if cache is not None:
            cache.append(latent.reshape(sequences, positions, c.d_latent), key_rope)
        if start:
            assert cache is not None
            o = self._absorbed(q_head, q_rope, cache)
        else:
            o = self._expanded(q_head, q_rope, latent, key_rope)
        return self.out(o.reshape(x.shape[0], c.heads * c.d_head))  # type: ignore[no-any-return]

    def _expanded(
        self, q_head: torch.Tensor, q_rope: torch.Tensor, latent: torch.Tensor, key_rope: torch.Tensor
    ) -> torch.Tensor:
        """Keys and values of every head written out: prefill and training.

        returns: [sequences, positions, heads, d_head]
        """
        c = self.c
        sequences, positions = q_head.shape[:2]
        k, v = self.up(latent).reshape(sequences, positions, c.heads, 2 * c.d_head).split(c.d_head, dim=-1)
        k = torch.cat([k, key_rope[:, :, None].expand(-1, -1, c.heads, -1)], dim=-1)
        q = torch.cat([q_head, q_rope], dim=-1)
        scores = q.transpose(1, 2) @ k.permute(0, 2, 3, 1) * (c.d_head + c.d_rope) ** -0.5
        future = torch.ones(positions, positions, dtype=torch.bool).triu(1)
        o = F.softmax(scores.masked_fill(future, -torch.inf), dim=-1) @ v.transpose(1, 2)
        batch = sequences * c.heads
        observe.product(positions, positions, c.d_head + c.d_rope, dtype=observe.BF16, batch=batch)
        observe.product(positions, c.d_head, positions, dtype=observe.BF16, batch=batch)
        expanded: torch.Tensor = o.transpose(1, 2)
        return expanded

    def _absorbed(self, q_head: torch.Tensor, q_rope: torch.Tensor, cache: LatentCache) -> torch.Tensor:
        """The up-projection absorbed into queries and results, so the cache is read as it is: decode, positions = 1."""
        c, t = self.c, cache.length
        sequences = q_head.shape[0]
        if q_head.shape[1] != 1:
            raise ValueError(f"decode takes one position at a time, got {q_head.shape[1]}")
        w = self.up.dequantised()[0].reshape(c.heads, 2, c.d_head, c.d_latent)
        latent, rope = cache.latent[:, :t], cache.rope[:, :t]
        q_latent = torch.einsum("bhd,hdl->bhl", q_head[:, 0], w[:, 0])
        scores = q_latent @ latent.mT + q_rope[:, 0] @ rope.mT
        p = F.softmax(scores * (c.d_head + c.d_rope) ** -0.5, dim=-1)
        o = torch.einsum("bhl,hdl->bhd", p @ latent, w[:, 1])
        observe.product(sequences, c.d_latent, c.d_head, dtype=observe.BF16, batch=2 * c.heads)
        observe.product(c.heads, t, c.d_latent + c.d_rope, dtype=observe.BF16, batch=sequences)
        observe.product(c.heads, c.d_latent, t, dtype=observe.BF16, batch=sequences)
        absorbed: torch.Tensor = o[:, None]
        return absorbed
