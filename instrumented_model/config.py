"""Sizes of the model and of its batches, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass

PRODUCT_DTYPES = ("float32", "bfloat16")


class ConfigError(ValueError):
    """A size or option that cannot work; the message says which, and what would."""


@dataclass(frozen=True)
class Config:
    """Sizes, with the symbols of arXiv 2412.19437 sections 2.1 and 4.2 where it has one."""

    name: str
    vocabulary: int = 256  # bytes
    layers: int = 2
    dense_layers: int = 0  # the first layers, whose feed-forward network is dense
    d: int = 256  # hidden size
    heads: int = 4  # n_h
    d_head: int = 48  # d_h, part of a head without position; a value's size too
    d_rope: int = 16  # d_h^R, part of a head with rotary position; its key is shared by the heads
    d_latent: int = 96  # d_c, latent that keys and values are expanded from, and that the cache holds
    d_query_latent: int = 128  # d_c', latent that queries are expanded from; 0: queries are not compressed
    d_dense: int = 512  # hidden size of a dense layer's feed-forward network
    experts: int = 8  # N_r, routed
    shared_experts: int = 1  # N_s
    top_k: int = 2  # K_r
    nodes_per_token: int = 2  # M, nodes that a token's experts may lie on
    d_expert: int = 128  # hidden size of an expert
    routed_scale: float = 1.0  # factor on the gates after they are normalised
    bias_update_speed: float = 0.001  # gamma
    balance_weight: float = 0.0001  # alpha, of the sequence-wise balance loss
    mtp_depth: int = 0  # D, further tokens that are predicted, each by a module of its own
    mtp_weight: float = 0.3  # lambda, of the loss of these
    micro_batches: int = 2
    sequences: int = 1  # in a micro-batch
    sequence_length: int = 128
    decode_sequences: int = 16  # in a micro-batch of decode
    fp8: bool = True  # False: matrix products and exchange in BF16's place without quantisation, to compare with
    promotion_interval: int = 128  # N_C, elements of k that are added up before promotion to FP32; 0: no bound
    product_dtype: str = "float32"  # that Fprop and Dgrad come out in, or bfloat16; Wgrad stays in FP32

    def __post_init__(self) -> None:
        sizes = (self.layers, self.d, self.heads, self.d_head, self.d_rope, self.d_latent, self.experts, self.d_expert)
        batches = (self.vocabulary, self.micro_batches, self.sequences, self.sequence_length, self.decode_sequences)
        if min(sizes + batches + (self.d_dense, self.nodes_per_token)) < 1:
            raise ConfigError(f"size {self.name!r}: every size must be at least 1")
        if not 1 <= self.top_k <= self.experts:
            raise ConfigError(f"size {self.name!r}: top_k {self.top_k} must lie between 1 and {self.experts} experts")
        if not 0 <= self.dense_layers <= self.layers:
            raise ConfigError(
                f"size {self.name!r}: dense_layers {self.dense_layers} must lie between 0 and {self.layers} layers"
            )
        if min(self.d_query_latent, self.shared_experts, self.mtp_depth) < 0:
            raise ConfigError(f"size {self.name!r}: d_query_latent, shared_experts and mtp_depth cannot be below 0")
        for name in ("routed_scale", "bias_update_speed", "balance_weight", "mtp_weight"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(
                    f"size {self.name!r}: {name} {getattr(self, name)} must be a finite number, 0 or above"
                )
        if self.promotion_interval < 0:
            raise ConfigError(
                f"size {self.name!r}: promotion_interval {self.promotion_interval} must be 0 (no bound) or above"
            )
        if self.product_dtype not in PRODUCT_DTYPES:
            raise ConfigError(
                f"size {self.name!r}: product_dtype {self.product_dtype!r} must be {' or '.join(PRODUCT_DTYPES)}"
            )
        if self.d_rope % 2:
            raise ConfigError(f"size {self.name!r}: d_rope {self.d_rope} must be even, rotation turns pairs")

    def check_nodes(self, nodes: int) -> None:
        """Raises ConfigError where M of this many nodes have not as many experts as a token is to choose."""
        on_node = self.experts // nodes
        if min(self.nodes_per_token, nodes) * on_node < self.top_k:
            raise ConfigError(
                f"{self.nodes_per_token} of {nodes} nodes have fewer than top_k {self.top_k} experts of size "
                f"{self.name!r}: raise nodes_per_token or use fewer nodes"
            )

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
    "lite": Config(
        "lite",
        layers=6,
        dense_layers=1,
        d=512,
        heads=8,
        d_latent=192,
        d_query_latent=256,
        d_dense=1024,
        experts=16,
        top_k=4,
        d_expert=256,
    ),
    "v3": Config(
        "v3",
        vocabulary=129280,
        layers=61,
        dense_layers=3,
        d=7168,
        heads=128,
        d_head=128,
        d_rope=64,
        d_latent=512,
        d_query_latent=1536,
        d_dense=18432,
        experts=256,
        top_k=8,
        nodes_per_token=4,
        d_expert=2048,
        routed_scale=2.5,
        mtp_depth=1,
        sequence_length=4096,
    ),
}
"""tiny runs anywhere, lite where there is a minute; v3 has the report's shapes (section 4.2), taken layer by layer."""


def size(name: str) -> Config:
    """The configuration called `name`. Raises ConfigError where there is none."""
    if name not in SIZES:
        raise ConfigError(f"no size {name!r}: choose one of {', '.join(SIZES)}")
    return SIZES[name]
