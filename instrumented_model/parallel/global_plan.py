"""The plan of one layer that every rank computes alike before the all-to-all (arXiv 2412.19437 section 3.4.2).

All ranks know how many tokens each of them has for each expert, and decide from that which replica each (source rank,
expert) uses. Nothing but the counts is communicated: same counts, same plan.
"""

from __future__ import annotations

import hashlib

import torch

from moescope.instrumented_model.parallel.placement import Placement


def planned(counts: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Which slot each rank sends its tokens for each expert to.

    Experts of one replica have no choice. The others' tokens go, most first, to the replica whose rank has least to do;
    among equals to the source's own rank, then to the first.

    counts: [ranks, experts] int64, tokens of each rank for each expert
    returns: [ranks, experts] int64
    """
    slots_of, per_rank = placement.slots_of(), placement.slots_per_rank
    slot = torch.tensor([slots[0] for slots in slots_of])
    several = [e for e, slots in enumerate(slots_of) if len(slots) > 1]
    alone = counts.sum(0)
    alone[several] = 0
    load = torch.zeros(placement.ranks, dtype=torch.int64).index_add_(0, slot // per_rank, alone).tolist()
    plan = slot.repeat(placement.ranks, 1)
    parts = [(-n, e, r) for e, column in zip(several, counts[:, several].mT.tolist(), strict=True)
             for r, n in enumerate(column) if n]  # fmt: skip
    if not parts:
        return plan
    chosen = []
    for less, expert, source in sorted(parts):
        best = min(slots_of[expert], key=lambda s: (load[s // per_rank], s // per_rank != source, s))
        load[best // per_rank] -= less
        chosen.append((source, expert, best))
    sources, experts, slots = torch.tensor(chosen).unbind(1)
    plan[sources, experts] = slots
    return plan


def rank_loads(counts: torch.Tensor, plan: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Rows that each rank's experts get under `plan`. counts, plan: [ranks, experts]; returns: [ranks] int64"""
    load = torch.zeros(placement.ranks, dtype=torch.int64)
    return load.index_add_(0, (plan // placement.slots_per_rank).reshape(-1), counts.reshape(-1))


def digest(plan: torch.Tensor) -> str:
    """What two ranks compare to know that they have the same plan.

    plan: [...] integers; returns: SHA-256, 64 hex digits
    """
    return hashlib.sha256(plan.contiguous().numpy().tobytes()).hexdigest()
