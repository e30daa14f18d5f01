"""Which exchange a run uses."""

from __future__ import annotations

import torch

from moescope.instrumented_model.config import Config
from moescope.instrumented_model.parallel.hop import Hop
from moescope.instrumented_model.parallel.hops import HopExchange
from moescope.instrumented_model.parallel.link import NO_LINK, Link
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.parallel.two_hop import two_hops


def described(ranks: Ranks) -> str:
    """The choice of `open_exchange` and its reason, for people."""
    if ranks.count == 1:
        return "none, one rank"
    if ranks.nodes == 1:
        return "gloo all-to-all, one hop on one node"
    return f"gloo all-to-all, two hops over {ranks.nodes} nodes x {ranks.gpus} ranks"


def open_exchange(
    c: Config, ranks: Ranks, link: Link, intra_link: Link = NO_LINK, timeout_s: float = 120.0
) -> HopExchange:
    """The exchange of this rank; with more than one the process group must be joined, and all call this together.

    link: between ranks where there is one node, else between nodes; intra_link: inside nodes where there are several
    timeout_s: for a rank that does not answer, in groups that are made here
    """
    local = c.local_experts(ranks.count)
    slot = torch.arange(c.experts)
    first = ranks.rank * local
    local_of = torch.where((slot >= first) & (slot < first + local), slot - first, local)
    if ranks.nodes > 1:
        hops = two_hops(c.experts, ranks, link, intra_link, timeout_s)
    elif ranks.count > 1:
        hops = [Hop("direct", slot // local, ranks.count, ranks.rank, link)]
    else:
        hops = []
    return HopExchange(hops, local_of, local, c.d, c.fp8)
