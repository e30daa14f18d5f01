"""Sizes of the model and of its batches, checked once."""

from __future__ import annotations

from dataclasses import dataclass


class ConfigError(ValueError):
    """A size or option that cannot work; the message says which, and what would."""


@dataclass(frozen=True)
class Config:
    """Sizes, with the symbols of arXiv 2412.19437 sections 2.1 and 4.2 where it has one."""

    name: str
    vocabulary: int = 256  # bytes
    layers: int = 2
    d: int = 256  # hidden size
    heads: int = 4  # n_h
    d_head: int = 48  # d_h, part of a head without position
    d_rope: int = 16  # d_h^R, part of a head with rotary position; its key is shared by the heads
    d_latent: int = 96  # d_c, latent that keys and values are expanded from, and that the cache holds
    experts: int = 8  # N_r
    top_k: int = 2  # K_r
    d_expert: int = 128  # hidden size of an expert
    bias_update_speed: float = 0.001  # gamma
    micro_batches: int = 2
    sequences: int = 1  # in a micro-batch
    sequence_length: int = 128
    decode_sequences: int = 16  # in a micro-batch of decode
    fp8: bool = True  # False: FP32 matrix products and exchange in BF16, to compare with

    def __post_init__(self) -> None:
        sizes = (self.layers, self.d, self.heads, self.d_head, self.d_rope, self.d_latent, self.experts, self.d_expert)
        batches = (self.vocabulary, self.micro_batches, self.sequences, self.sequence_length, self.decode_sequences)
        if min(sizes + batches) < 1:
            raise ConfigError(f"size {self.name!r}: every size must be at least 1")
        if not 1 <= self.top_k <= self.experts:
            raise ConfigError(f"size {self.name!r}: top_k {self.top_k} must lie between 1 and {self.experts} experts")
        if self.d_rope % 2:
            raise ConfigError(f"size {self.name!r}: d_rope {self.d_rope} must be even, rotation turns pairs")

    def local_experts(self, world_size: int) -> int:
        """Experts a rank holds. Raises ConfigError where the ranks do not divide them."""
        if self.experts % world_size:
            fits = [n for n in range(1, self.experts + 1) if self.experts % n == 0]
            raise ConfigError(
                f"{world_size} ranks do not divide {self.experts} experts of size {self.name!r}: use one of {fits}"
            )
        return self.experts // world_size


SIZES = {
    "tiny": Config("tiny"),
    "small": Config("small", layers=6, d=512, heads=8, d_latent=192, experts=16, top_k=4, d_expert=256),
}


def size(name: str) -> Config:
    """The configuration called `name`. Raises ConfigError where there is none."""
    if name not in SIZES:
        raise ConfigError(f"no size {name!r}: choose one of {', '.join(SIZES)}")
    return SIZES[name]
