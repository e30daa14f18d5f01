"""Which exchange a run uses."""

from __future__ import annotations

import torch

from moescope.instrumented_model.config import Config
from moescope.instrumented_model.parallel.hop import Hop
from moescope.instrumented_model.parallel.hops import HopExchange
from moescope.instrumented_model.parallel.link import Link
from moescope.instrumented_model.parallel.ranks import Ranks


def open_exchange(c: Config, ranks: Ranks, link: Link) -> HopExchange:
    """The exchange of this rank; with more than one the process group must be joined."""
    local = c.local_experts(ranks.count)
    slot = torch.arange(c.experts)
    first = ranks.rank * local
    local_of = torch.where((slot >= first) & (slot < first + local), slot - first, local)
    hops = [Hop("direct", slot // local, ranks.count, ranks.rank, link)] if ranks.count > 1 else []
    return HopExchange(hops, local_of, local, c.d, c.fp8)
