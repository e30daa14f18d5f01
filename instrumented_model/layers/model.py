"""The model: parameters of a rank, and the chunks of a layer that a schedule puts in order."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.backend import Counts
from moescope.instrumented_model.gemm.beside import WireGradient
from moescope.instrumented_model.layers import routing
from moescope.instrumented_model.layers.attention import LatentAttention
from moescope.instrumented_model.layers.cache import LayerCache
from moescope.instrumented_model.layers.experts import Experts
from moescope.instrumented_model.layers.mtp import MtpModule
from moescope.instrumented_model.numerics.quantise import Quantised


class Layer(nn.Module):
    """A transformer layer without its feed-forward network; `DenseLayer` and `MoELayer` have one.

    Layers come in the chunks of DualPipe (arXiv 2412.19437 section 3.2.1), functions of tensors that a schedule puts
    in order: `attend`, then `mlp`; what routed experts made is added by the chain. Between them is an `Exchange`.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.attention_norm = nn.RMSNorm(c.d)
        self.attention = LatentAttention(c)
        self.mlp_norm = nn.RMSNorm(c.d)

    def attended(self, h: torch.Tensor, sequences: int, cache: LayerCache | None) -> tuple[torch.Tensor, torch.Tensor]:
        """h: [tokens, d]; returns: residual and input of the feed-forward network, both [tokens, d]"""
        residual = h + self.attention(self.attention_norm(h), sequences, cache)
        return residual, self.mlp_norm(residual)


class DenseLayer(Layer):
    """A layer whose feed-forward network every token goes through."""

    def __init__(self, c: Config) -> None:
        super().__init__(c)
        self.dense = Experts("dense", c.d, c.d_dense, 1, Arithmetic.of(c))

    def mlp(self, residual: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor]:
        """returns: h [tokens, d]"""
        return (residual + self.dense(x),)


class MoELayer(Layer):
    """A layer of routed experts, this rank's, and shared ones.

    bias: [experts] float32, steers selection; moved after each step, not learnt
    nodes: that all experts lie on, in equal parts; 1 sets no limit on what a token may choose
    """

    bias: torch.Tensor

    def __init__(self, c: Config, local_experts: int, nodes: int) -> None:
        super().__init__(c)
        self.nodes = nodes
        self.centroids = nn.Parameter(torch.randn(c.experts, c.d) * c.d**-0.5)
        self.register_buffer("bias", torch.zeros(c.experts))
        # N_s shared experts of equal width, added up, are one of N_s times the width.
        how, width = Arithmetic.of(c), c.d_expert * c.shared_experts
        self.shared = Experts("shared", c.d, width, 1, how) if c.shared_experts else None
        self.experts = Experts("mlp", c.d, c.d_expert, local_experts, how)

    def attend(
        self, h: torch.Tensor, sequences: int, cache: LayerCache | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """h: [tokens, d]

        returns: residual [tokens, d], input of the experts [tokens, d], gates [tokens, top_k], the balance loss []
        (0 where no gradients are wanted), chosen [tokens, top_k] int64
        """
        c = self.c
        residual, x = self.attended(h, sequences, cache)
        s = routing.affinities(x, self.centroids)
        observe.product(x.shape[0], c.experts, c.d, dtype=observe.BF16)
        chosen = routing.select(s, self.bias, c.top_k, self.nodes, c.nodes_per_token)
        if torch.is_grad_enabled() and c.balance_weight:
            balance = c.balance_weight * routing.imbalance(s, c.top_k, sequences)
        else:
            balance = s.new_zeros(())
        return residual, x, routing.gates(s, chosen, c.routed_scale), balance, chosen

    def mlp(
        self,
        x: torch.Tensor,
        arrived: torch.Tensor,
        gates: torch.Tensor,
        rows: Counts,
        wire: Quantised | None = None,
        gradient: WireGradient | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """x: [tokens, d], own tokens; arrived: [rows, d], tokens for this rank's experts; gates: [rows]
        rows: [local experts], how many each has; wire, gradient: as `Experts` takes them

        returns: gated rows of the routed experts [rows, d]; what the shared experts add [tokens, d], if there are any
        """
        routed = self.experts(arrived, rows, gates, wire=wire, gradient=gradient)
        return (routed,) if self.shared is None else (routed, self.shared(x))


class Model(nn.Module):
    """Embedding, layers, head. Expert parameters differ between ranks; all others are replicas.

    Parameters are drawn from `seed` alike on all ranks, experts for all ranks with this rank's kept, so that any number
    of ranks starts from the same model.
    """

    def __init__(self, c: Config, *, rank: int = 0, ranks: int = 1, nodes: int = 1, seed: int = 0) -> None:
        super().__init__()
        self.c, self.rank, self.ranks = c, rank, ranks
        c.local_experts(ranks)
        c.check_nodes(nodes)
        torch.manual_seed(seed)
        self.embedding = nn.Embedding(c.vocabulary, c.d)
        self.layers = nn.ModuleList(
            DenseLayer(c) if n < c.dense_layers else MoELayer(c, c.experts, nodes) for n in range(c.layers)
        )
        self.norm = nn.RMSNorm(c.d)
        self.head = nn.Linear(c.d, c.vocabulary, bias=False)
        self.mtp = nn.ModuleList(MtpModule(c, k + 1, MoELayer(c, c.experts, nodes)) for k in range(c.mtp_depth))
        for layer in self.moe_layers().values():
            for linear in (layer.experts.gate_up, layer.experts.down):
                linear.weight = nn.Parameter(linear.weight.detach().chunk(ranks)[rank].clone())

    @property
    def device(self) -> torch.device:
        """Where all of it lies."""
        return self.embedding.weight.device

    def layer(self, number: int) -> DenseLayer | MoELayer:
        """Those of multi-token prediction come after the last."""
        if number >= self.c.layers:
            return self.mtp_module(number - self.c.layers + 1).layer
        layer = self.layers[number]
        assert isinstance(layer, DenseLayer | MoELayer)
        return layer

    def mtp_module(self, k: int) -> MtpModule:
        """k: 1 to D"""
        module = self.mtp[k - 1]
        assert isinstance(module, MtpModule)
        return module

    def moe_layers(self) -> dict[int, MoELayer]:
        """Those with routed experts, by number, in order; those of multi-token prediction last."""
        layers = ((n, self.layer(n)) for n in range(self.c.layers + self.c.mtp_depth))
        return {n: layer for n, layer in layers if isinstance(layer, MoELayer)}

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
        return [p for layer in self.moe_layers().values() for p in layer.experts.parameters()]

    def replicated_parameters(self) -> list[nn.Parameter]:
        """Those that every rank holds, in an order that is the same on all."""
        own = {id(p) for p in self.expert_parameters()}
        return [p for p in self.parameters() if id(p) not in own]
