"""Which exchange a run uses, and why."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec

import torch

from moescope.instrumented_model.config import Config
from moescope.instrumented_model.parallel.hop import Hop
from moescope.instrumented_model.parallel.hops import HopExchange
from moescope.instrumented_model.parallel.lane import lane_for
from moescope.instrumented_model.parallel.link import NO_LINK, Link
from moescope.instrumented_model.parallel.mover import mover_for
from moescope.instrumented_model.parallel.placement import Placement
from moescope.instrumented_model.parallel.planned import PlannedExchange
from moescope.instrumented_model.parallel.ranks import Ranks
from moescope.instrumented_model.parallel.two_hop import two_hops
from moescope.instrumented_model.parallel.virtual import VirtualExchange


def described(ranks: Ranks, device: torch.device) -> str:
    """What `open_exchange` takes for tensors on `device` and the reason, for people."""
    if ranks.count == 1:
        return "none, one rank"
    hops = "one hop on one node" if ranks.nodes == 1 else f"two hops over {ranks.nodes} nodes x {ranks.gpus} ranks"
    on_gpu = device.type == "cuda"
    installed = ("has to be opened by hand" if on_gpu else "needs tensors on a GPU") if find_spec("deep_ep") else None
    return f"{'NCCL' if on_gpu else 'gloo'} all-to-all, {hops} (DeepEP {installed or 'is not installed'})"


def open_exchange(
    c: Config, ranks: Ranks, link: Link, intra_link: Link = NO_LINK, timeout_s: float = 120.0
) -> HopExchange:
    """The exchange of this rank; with more than one the process group must be joined, and all call this together.

    link: between ranks where there is one node, else between nodes; intra_link: inside nodes where there are several
    timeout_s: for a rank that does not answer, in groups that are made here
    """
    local = c.local_experts(ranks.count)
    hops = _hops(c.experts, ranks, link, intra_link, timeout_s)
    return HopExchange(hops, _local_of(c.experts, ranks), local, c.d, c.fp8)


def open_virtual(c: Config, ranks: int, device: torch.device) -> tuple[VirtualExchange, str]:
    """Virtual ranks in this process, for a model with the experts of them all, and what to say of them."""
    mover, how = mover_for(device)
    return VirtualExchange(c, ranks, mover, lane_for(device)), f"{ranks} virtual ranks, {how}"


def open_planned(
    c: Config,
    ranks: Ranks,
    placements: Mapping[int, Placement],
    link: Link,
    intra_link: Link = NO_LINK,
    timeout_s: float = 120.0,
) -> PlannedExchange:
    """The same with redundant experts, for inference; placements: by layer, for `place_experts` too."""
    slots = len(next(iter(placements.values())).expert_of)
    hops = _hops(slots, ranks, link, intra_link, timeout_s)
    return PlannedExchange(hops, _local_of(slots, ranks), placements, c.experts, ranks.rank, c.d, c.fp8, timeout_s)


def _hops(slots: int, ranks: Ranks, link: Link, intra_link: Link, timeout_s: float) -> list[Hop]:
    if ranks.nodes > 1:
        return two_hops(slots, ranks, link, intra_link, timeout_s)
    if ranks.count > 1:
        return [Hop("direct", torch.arange(slots) // (slots // ranks.count), ranks.count, ranks.rank, link)]
    return []


def _local_of(slots: int, ranks: Ranks) -> torch.Tensor:
    """Number on this rank of each slot, or how many there are on it where the slot is another's. returns: [slots]"""
    local = slots // ranks.count
    slot = torch.arange(slots)
    return torch.where(slot // local == ranks.rank, slot % local, local)
