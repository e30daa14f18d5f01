"""Which experts stand where, with replicas of hot ones, after EPLB (arXiv 2412.19437 section 3.4.1).

A rank has as many slots as it has experts of its own, and some more. An expert stays on its node, so that the limit of
nodes a token may go to holds whatever replica it takes. A pure function of loads: all ranks get the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from moescope.instrumented_model.config import ConfigError
from moescope.instrumented_model.parallel.ranks import Ranks


@dataclass(frozen=True)
class Placement:
    """expert_of: [slots], the expert that each slot holds, rank by rank in equal parts; ranks: how many"""

    expert_of: tuple[int, ...]
    ranks: int

    @property
    def slots_per_rank(self) -> int:
        """Experts that a rank holds, replicas among them."""
        return len(self.expert_of) // self.ranks

    def slots_of(self) -> list[list[int]]:
        """Slots of each expert, in order: [experts][replicas]"""
        found: list[list[int]] = [[] for _ in range(max(self.expert_of) + 1)]
        for slot, expert in enumerate(self.expert_of):
            found[expert].append(slot)
        return found

    def of_rank(self, rank: int) -> list[int]:
        """Experts in the slots of a rank."""
        return list(self.expert_of[rank * self.slots_per_rank : (rank + 1) * self.slots_per_rank])


def home(experts: int, ranks: int) -> Placement:
    """Every expert once, in order: where there are no replicas."""
    return Placement(tuple(range(experts)), ranks)


def placed(load: torch.Tensor, ranks: Ranks, redundant: int) -> Placement:
    """Replicas go to the experts with most load a replica, then replicas to the rank with least load, hottest first.

    load: [experts] tokens over all ranks, or any measure of it; redundant: slots of a rank beyond its own experts
    raises: ConfigError where the ranks do not divide the experts, or there would be more replicas of one expert than
    ranks on its node
    """
    experts = len(load)
    if experts % ranks.count:
        raise ConfigError(f"{ranks.count} ranks do not divide {experts} experts")
    on_node, loads = experts // ranks.nodes, [float(value) for value in load]
    if redundant < 0 or redundant * ranks.gpus > on_node * (ranks.gpus - 1):
        raise ConfigError(
            f"{redundant} redundant experts a rank: from 0 to {on_node * (ranks.gpus - 1) // ranks.gpus} with "
            f"{on_node} experts on a node of {ranks.gpus} ranks"
        )
    slots: list[int] = []
    for node in range(ranks.nodes):
        mine = range(node * on_node, (node + 1) * on_node)
        copies = _copies({e: loads[e] for e in mine}, redundant * ranks.gpus, ranks.gpus)
        slots += _packed({e: loads[e] for e in mine}, copies, ranks.gpus)
    return Placement(tuple(slots), ranks.count)


def _copies(load: dict[int, float], extra: int, at_most: int) -> dict[int, int]:
    """How many replicas of each expert, at most one a rank."""
    copies = dict.fromkeys(load, 1)
    for _ in range(extra):
        hottest = max((e for e in load if copies[e] < at_most), key=lambda e: (load[e] / copies[e], -e))
        copies[hottest] += 1
    return copies


def _packed(load: dict[int, float], copies: dict[int, int], ranks: int) -> list[int]:
    """Replicas in equal numbers on ranks, no two of an expert on one. returns: experts, rank by rank, sorted in each"""
    room = sum(copies.values()) // ranks
    held: list[list[int]] = [[] for _ in range(ranks)]
    total = [0.0] * ranks
    # Experts with most replicas have fewest ranks to choose from: they go first, so that none is left without.
    for expert in sorted(load, key=lambda e: (-copies[e] if copies[e] > 1 else 0, -load[e] / copies[e], e)):
        by_room = sorted(range(ranks), key=lambda r: (len(held[r]) == room, total[r], len(held[r]), r))
        for rank in by_room[: copies[expert]]:
            held[rank].append(expert)
            total[rank] += load[expert] / copies[expert]
    return [expert for experts in _levelled(held, room) for expert in sorted(experts)]


def _levelled(held: list[list[int]], room: int) -> list[list[int]]:
    """The same with no rank above its room: what is too much moves to a rank that lacks it."""
    for rank, experts in enumerate(held):
        while len(experts) > room:
            to, expert = next(
                (to, e)
                for e in reversed(experts)
                for to in range(len(held))
                if to != rank and len(held[to]) < room and e not in held[to]
            )
            experts.remove(expert)
            held[to].append(expert)
    return held
