"""Multi-token prediction: D modules in a chain, each predicts one token further (arXiv 2412.19437 section 2.2)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config, ConfigError
from moescope.instrumented_model.gemm.arithmetic import Arithmetic
from moescope.instrumented_model.gemm.linear import Fp8Linear

if TYPE_CHECKING:
    from moescope.instrumented_model.layers.model import MoELayer


class MtpModule(nn.Module):
    """Module k: `merge`, the block TRM_k, `loss`. Embedding and output head are the model's own.

    k: 1 to D; layer: TRM_k, a layer with experts, which goes through the exchange as all do
    """

    def __init__(self, c: Config, k: int, layer: MoELayer) -> None:
        super().__init__()
        if c.sequence_length <= c.mtp_depth:
            raise ConfigError(
                f"mtp_depth {c.mtp_depth} leaves no token of sequence_length {c.sequence_length} to predict: lower it"
            )
        self.c, self.k = c, k
        self.hidden_norm = nn.RMSNorm(c.d)
        self.embedding_norm = nn.RMSNorm(c.d)
        self.projection = Fp8Linear("mtp.merge", 2 * c.d, c.d, arithmetic=Arithmetic.of(c))  # M_k
        self.layer = layer
        self.norm = nn.RMSNorm(c.d)

    def merge(self, h: torch.Tensor, following: torch.Tensor, sequences: int) -> tuple[torch.Tensor]:
        """h'^k_i = M_k [RMSNorm(h^(k-1)_i); RMSNorm(Emb(t_(i+k)))] for i = 1 to T - k, equation 21.

        h: [sequences * (T - k + 1), d], h^(k-1); following: [sequences * T, d], embeddings of t_2 to t_(T+1)
        returns: [sequences * (T - k), d]
        """
        d = h.shape[-1]
        before = h.reshape(sequences, -1, d)[:, :-1]
        token = following.reshape(sequences, -1, d)[:, self.k - 1 : -1]
        both = torch.cat([self.hidden_norm(before), self.embedding_norm(token)], dim=-1)
        return (self.projection(both.reshape(-1, 2 * d)),)

    def loss(self, h: torch.Tensor, targets: torch.Tensor, head: nn.Module) -> tuple[torch.Tensor]:
        """-1/T sum over i = 2 + k to T + 1 of log P^k_i[t_i], equation 24, the mean over sequences.

        h: [sequences * (T - k), d], h^k; targets: [sequences, T] int64, t_2 to t_(T+1); head: the model's
        """
        observe.product(h.shape[0], self.c.vocabulary, self.c.d, dtype=observe.BF16)
        wanted = targets[:, self.k :].reshape(-1)
        return (F.cross_entropy(head(self.norm(h)), wanted, reduction="sum") / targets.numel(),)
