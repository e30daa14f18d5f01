"""The model: parameters of a rank, and the chunks of a layer that a schedule puts in order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.layers import routing
from moescope.instrumented_model.layers.attention import LatentAttention, LatentCache
from moescope.instrumented_model.layers.experts import Experts


class Layer(nn.Module):
    """One transformer layer in the chunks of DualPipe: attention with gate | dispatch | mlp | combine, join.

    (arXiv 2412.19437 section 3.2.1.) Dispatch and combine are `dispatch.Exchange`'s.
    """

    bias: torch.Tensor

    def __init__(self, c: Config, ranks: int) -> None:
        super().__init__()
        self.c = c
        self.attention_norm = nn.RMSNorm(c.d)
        self.attention = LatentAttention(c)
        self.mlp_norm = nn.RMSNorm(c.d)
        self.centroids = nn.Parameter(torch.randn(c.experts, c.d) * c.d**-0.5)
        self.register_buffer("bias", torch.zeros(c.experts))
        self.shared = Experts("shared", c.d, c.d_expert, 1, c.fp8)
        self.experts = Experts("mlp", c.d, c.d_expert, c.local_experts(ranks), c.fp8)

    def attend(
        self, h: torch.Tensor, sequences: int, cache: LatentCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """h: [tokens, d]

        returns: residual [tokens, d], input of the experts [tokens, d], gates [tokens, top_k], chosen [tokens, top_k]
        """
        residual = h + self.attention(self.attention_norm(h), sequences, cache)
        x = self.mlp_norm(residual)
        s = routing.affinities(x, self.centroids)
        observe.product(x.shape[0], self.c.experts, self.c.d, dtype=observe.BF16)
        chosen = routing.select(s, self.bias, self.c.top_k)
        return residual, x, routing.gates(s, chosen), chosen

    def mlp(self, x: torch.Tensor, arrived: torch.Tensor, rows: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """x: [tokens, d], own tokens; arrived: [rows, d], tokens for this rank's experts

        returns: shared expert's [tokens, d] and routed experts' [rows, d]
        """
        return self.shared(x, (x.shape[0],)), self.experts(arrived, rows)

    def join(
        self, residual: torch.Tensor, shared: torch.Tensor, gates: torch.Tensor, returned: torch.Tensor
    ) -> tuple[torch.Tensor]:
        """h = residual + shared + sum over k of gate * routed, equation 12. returned: [tokens, top_k, d]"""
        return (residual + shared + (gates.unsqueeze(1) @ returned).squeeze(1),)


class Model(nn.Module):
    """Embedding, layers, head. Expert parameters differ between ranks; all others are replicas.

    Parameters are drawn from `seed` alike on all ranks, experts for all ranks with this rank's kept, so that any number
    of ranks starts from the same model.
    """

    def __init__(self, c: Config, *, rank: int = 0, ranks: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.c, self.rank, self.ranks = c, rank, ranks
        c.local_experts(ranks)
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(c.vocabulary, c.d)
        self.layers = nn.ModuleList(Layer(c, 1) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.d)
        self.head = nn.Linear(c.d, c.vocabulary, bias=False)
        for layer in map(self.layer, range(c.layers)):
            for linear in (layer.experts.gate_up, layer.experts.down):
                linear.weight = nn.Parameter(linear.weight.detach().chunk(ranks)[rank].clone())

    def layer(self, number: int) -> Layer:
        layer = self.layers[number]
        assert isinstance(layer, Layer)
        return layer

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """tokens: [sequences, positions] int64; returns: [sequences * positions, d]"""
        return self.embedding(tokens.reshape(-1))  # type: ignore[no-any-return]

    def logits(self, h: torch.Tensor) -> torch.Tensor:
        """h: [tokens, d]; returns: [tokens, vocabulary]"""
        observe.product(h.shape[0], self.c.vocabulary, self.c.d, dtype=observe.BF16)
        return self.head(self.norm(h))  # type: ignore[no-any-return]

    def loss(self, h: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor]:
        """Mean cross-entropy, nats a byte. h: [tokens, d]; targets: [sequences, positions] int64"""
        return (F.cross_entropy(self.logits(h), targets.reshape(-1)),)

    def expert_parameters(self) -> list[nn.Parameter]:
        """Those that only this rank holds."""
        return [p for n in range(self.c.layers) for p in self.layer(n).experts.parameters()]

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Those that every rank holds, in an order that is the same on all."""
        own = {id(p) for p in self.expert_parameters()}
        return [p for p in self.parameters() if id(p) not in own]
