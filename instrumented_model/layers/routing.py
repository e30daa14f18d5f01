"""Which experts a token goes to: sigmoid affinities, load balanced by a bias (arXiv 2412.19437 section 2.1.2)."""

from __future__ import annotations

import torch


def affinities(u: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """s = sigmoid(u . e), equation 15.

    u: [tokens, d] float32; e: [experts, d] float32, the centroids
    returns: [tokens, experts] float32
    """
    return torch.sigmoid(u @ e.mT)


def select(s: torch.Tensor, bias: torch.Tensor, top_k: int) -> torch.Tensor:
    """The top_k experts by s + bias, equation 16; the bias steers selection alone.

    s: [tokens, experts]; bias: [experts]
    returns: [tokens, top_k] int64
    """
    return torch.topk(s.detach() + bias, top_k, dim=-1).indices


def gates(s: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Weights of the chosen experts: their unbiased affinities over their sum, equation 13.

    s: [tokens, experts]; chosen: [tokens, top_k] int64
    returns: [tokens, top_k], each row sums to 1
    """
    g = s.gather(-1, chosen)
    return g / g.sum(-1, keepdim=True).clamp_min(1e-20)


def updated_bias(bias: torch.Tensor, load: torch.Tensor, gamma: float) -> torch.Tensor:
    """Bias after a step: gamma less where the load was above the mean, gamma more where it was below.

    bias: [experts] float32; load: [experts], tokens each expert got over all ranks
    """
    load = load.float()
    return bias + gamma * torch.sign(load.mean() - load)
