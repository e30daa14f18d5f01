"""Which experts a token goes to: sigmoid affinities, load balanced by a bias (arXiv 2412.19437 section 2.1.2)."""

from __future__ import annotations

import torch


def affinities(u: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
    """s = sigmoid(u . e), equation 15.

    u: [tokens, d] float32; e: [experts, d] float32, the centroids
    returns: [tokens, experts] float32
    """
    return torch.sigmoid(u @ e.mT)


def select(s: torch.Tensor, bias: torch.Tensor, top_k: int, nodes: int = 1, at_most: int = 1) -> torch.Tensor:
    """The top_k experts by s + bias, equation 16, on at most M nodes (section 2.1.2); the bias steers selection alone.

    A node's score is the sum of its top_k/M highest; the M nodes of highest score are open to a token.

    s: [tokens, experts], node by node; bias: [experts]; nodes: equal parts of the experts; at_most: M
    returns: [tokens, top_k] int64
    """
    biased = s.detach() + bias
    if at_most < nodes:
        by_node = biased.reshape(len(s), nodes, -1)
        counted = min(max(top_k // at_most, 1), by_node.shape[2])
        open_nodes = by_node.topk(counted, dim=-1).values.sum(-1).topk(at_most, dim=-1).indices
        closed = torch.ones(len(s), nodes, dtype=torch.bool, device=s.device).scatter_(1, open_nodes, False)
        biased = by_node.masked_fill(closed.unsqueeze(-1), -torch.inf).reshape(s.shape)
    return torch.topk(biased, top_k, dim=-1).indices


def gates(s: torch.Tensor, chosen: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """Weights of the chosen experts: their unbiased affinities over their sum, equation 13, times `scale`.

    s: [tokens, experts]; chosen: [tokens, top_k] int64
    returns: [tokens, top_k], each row sums to `scale`
    """
    g = s.gather(-1, chosen)
    return g * (scale / g.sum(-1, keepdim=True).clamp_min(1e-20))


def tally(numbers: torch.Tensor, count: int) -> torch.Tensor:
    """How often each number stands there. On a GPU `bincount` would ask for the highest, and wait.

    numbers: [n] int64, from 0 and below `count`; returns: [count] int64
    """
    if numbers.device.type == "cpu":
        return torch.bincount(numbers, minlength=count)
    return numbers.new_zeros(count).index_add_(0, numbers, torch.ones_like(numbers))


def imbalance(s: torch.Tensor, top_k: int, sequences: int) -> torch.Tensor:
    """Sequence-wise balance loss without its weight, the mean over sequences of sum_i f_i P_i: equations 17 to 20.

    f_i = N_r / (K_r T) * (how often expert i is among the top_k affinities), without gradient;
    P_i = mean over the sequence's T tokens of s_i / sum_j s_j. Least, 1, where every expert is as likely.

    s: [sequences * T, experts] float32, unbiased
    returns: [] float32
    """
    experts = s.shape[1]
    by_sequence = s.reshape(sequences, -1, experts)
    top = by_sequence.detach().topk(top_k, dim=-1).indices
    taken = torch.zeros_like(by_sequence).scatter_(2, top, 1.0)
    f = taken.mean(1) * (experts / top_k)
    p = (by_sequence / by_sequence.sum(-1, keepdim=True)).mean(1)
    return (f * p).sum() / sequences


def updated_bias(bias: torch.Tensor, load: torch.Tensor, gamma: float) -> torch.Tensor:
    """Bias after a step: gamma less where the load was above the mean, gamma more where it was below.

    bias: [experts] float32; load: [experts], tokens each expert got over all ranks
    """
    load = load.float()
    return bias + gamma * torch.sign(load.mean() - load)
