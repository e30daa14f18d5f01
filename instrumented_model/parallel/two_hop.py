"""Two hops for ranks laid out as nodes x gpus (arXiv 2412.19437 section 3.2.2).

Hop 1, between nodes: one copy of a token for each node with a chosen expert, to the rank with the same index there.
Hop 2, inside the node: that forwarder sends one copy to each rank with a chosen expert. Combine goes back the same way
and adds up at the forwarder, so between nodes there is one sum for each pair of token and node.
"""

from __future__ import annotations

from datetime import timedelta

import torch
import torch.distributed as dist

from moescope.instrumented_model.parallel.hop import Hop
from moescope.instrumented_model.parallel.link import Link
from moescope.instrumented_model.parallel.ranks import Ranks


def two_hops(slots: int, ranks: Ranks, inter_link: Link, intra_link: Link, timeout_s: float) -> list[Hop]:
    """The hops of this rank; a hop that would have one rank is left out. All ranks must call this together.

    slots: over all ranks, rank by rank in equal parts
    """
    rank_of = torch.arange(slots) // (slots // ranks.count)
    node_of, index_of = rank_of // ranks.gpus, rank_of % ranks.gpus
    across = [[node * ranks.gpus + index for node in range(ranks.nodes)] for index in range(ranks.gpus)]
    inside = [[node * ranks.gpus + index for index in range(ranks.gpus)] for node in range(ranks.nodes)]
    hops = []
    if ranks.nodes > 1:
        group = own_group("internode", across, ranks.index, timeout_s)
        hops.append(Hop("internode", node_of, ranks.nodes, ranks.node, inter_link, group))
    if ranks.gpus > 1:
        group = own_group("intranode", inside, ranks.node, timeout_s)
        here = torch.where(node_of == ranks.node, index_of, ranks.gpus)
        hops.append(Hop("intranode", here, ranks.gpus, ranks.index, intra_link, group))
    return hops


def own_group(purpose: str, groups: list[list[int]], mine: int, timeout_s: float) -> dist.ProcessGroup:
    """Every rank makes every group, as `torch.distributed` asks; what a group is for is told to a profiler by name."""
    made = [dist.new_group(members, timeout=timedelta(seconds=timeout_s), group_desc=purpose) for members in groups]
    own: dist.ProcessGroup = made[mine]
    return own
