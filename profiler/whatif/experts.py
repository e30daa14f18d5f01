"""Experts in balance: every rank computes as long as the mean rank does, by its experts' tokens or by waiting.

Where tokens an expert are recorded (`experts`), the work of experts on a rank is taken as proportional to the tokens
that its experts get; experts are spread over the ranks in equal runs. Else, where ranks are compared by collectives,
what a rank computes from leaving one to entering the next one of the group becomes that of the mean rank.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final

import numpy as np

from moescope.profiler.whatif.change import Change, Factors, Scenario
from moescope.profiler.whatif.situation import Situation

_ID: Final = "balanced-experts"
_WHAT: Final = "experts in balance"
_EXPERT_PHASES: Final = ("mlp", "expert", "moe")


def balanced_experts(now: Situation) -> Scenario:
    """By tokens where they are told, else by compute between collectives."""
    load = _load(now)
    if load is not None:
        return _by_tokens(now, load)
    return _by_collectives(now)


def _load(now: Situation) -> dict[int, float] | None:
    """By rank, tokens of its experts over those of the mean rank; None where they are not told."""
    table = now.source.table("experts")
    ranks = sorted({lane.rank for lane in now.nodes.lanes})
    world = len(now.source.ranks())
    if not table.num_rows or world < 2 or len(ranks) < world:
        return None
    experts = table.column("expert").to_numpy()
    tokens = table.column("tokens").fill_null(0).to_numpy()
    each = np.bincount(experts, tokens)
    if len(each) < world or not each.sum():
        return None
    owner = np.arange(len(each)) * world // len(each)
    sums = np.bincount(owner, each, minlength=world)
    return {rank: float(sums[place] * world / sums.sum()) for place, rank in enumerate(sorted(now.source.ranks()))}


def _by_tokens(now: Situation, load: dict[int, float]) -> Scenario:
    operators, computes = now.nodes.operators, now.computes
    surely = (operators == "grouped_gemm") & computes
    phased = _in_expert_phases(now) & computes
    at_most = surely | phased
    if not at_most.any():
        reason = (
            "tokens an expert are recorded, but no kernel is known to be an expert's (a grouped product, a phase mlp)"
        )
        return Scenario(_ID, _WHAT, None, reason)
    factor = np.array([1 / load[rank] if load.get(rank) else 1.0 for rank in now.nodes.ranks.tolist()])
    least, most = np.where(surely, factor, 1.0), np.where(at_most, factor, 1.0)
    parameters: dict[str, Any] = {"max_over_mean_tokens": round(max(load.values()), 4), "by": "tokens"}
    assumed = (
        "a rank's experts work in proportion to the tokens of all of them over the run; experts are spread "
        "over the ranks in equal runs",
        "least: grouped products alone; most: all compute in phases named mlp, expert or moe, shared experts among it",
    )
    return Scenario(_ID, _WHAT, Change(least, (least + most) / 2, most, assumed, parameters))


def _in_expert_phases(now: Situation) -> Any:
    """[nodes] whether the phase around the launch is named after experts."""
    phases = now.source.table("phases").select(["rank", "id", "name"]).to_pylist()
    named = {
        (row["rank"], row["id"])
        for row in phases
        if any(word in (row["name"] or "").lower() for word in _EXPERT_PHASES)
    }
    if not named:
        return np.zeros(len(now.nodes), np.bool_)
    held = now.source.table("kernels").column("phase_id").fill_null(-1).to_numpy()[now.nodes.rows]
    keys = zip(now.nodes.ranks.tolist(), held.tolist(), strict=True)
    return np.fromiter((key in named for key in keys), np.bool_, len(now.nodes))


def _by_collectives(now: Situation) -> Scenario:
    nodes = now.nodes
    if not nodes.meetings:
        reason = f"tokens an expert are not told, and ranks cannot be compared: {nodes.reason}"
        return Scenario(_ID, _WHAT, None, reason)
    factors = _even(now)
    if not (factors != 1).any():
        return Scenario(_ID, _WHAT, None, "no compute lies between collectives that all of its ranks were seen in")
    assumed = (
        "tokens an expert are not told: all compute between two collectives of a group becomes that of the mean rank, "
        "whatever made it uneven (most), or half-way there (between), or stays (least)",
    )
    change = Change(now.ones, (1 + factors) / 2, factors, assumed, {"by": "compute between collectives"})
    return Scenario(_ID, _WHAT, change)


def _even(now: Situation) -> Factors:
    """[nodes] mean over ranks / own, of the compute between one collective and the next one of the same ranks."""
    nodes = now.nodes
    ranks, segments = nodes.ranks, nodes.segments
    factors = now.ones.copy()
    taken = np.zeros(len(nodes), np.bool_)
    groups: dict[tuple[int, ...], list[Any]] = {}
    for meeting in nodes.meetings:
        ordered = meeting[np.argsort(ranks[meeting])]
        groups.setdefault((int(segments[ordered[0]]), *ranks[ordered].tolist()), []).append(ordered)
    computing = np.flatnonzero(now.computes)
    by_rank = {}
    for rank in np.unique(ranks).tolist():
        own = computing[ranks[computing] == rank]
        by_rank[rank] = own[np.argsort(nodes.starts[own], kind="stable")]
    # The largest groups first: what lies between their collectives concerns most ranks.
    for (_, *members), meetings in sorted(groups.items(), key=lambda one: -len(one[0])):
        meetings.sort(key=lambda meeting: int(nodes.starts[meeting].max()))
        for before, after in pairwise(meetings):
            between = []
            for rank, left, entered in zip(members, before.tolist(), after.tolist(), strict=True):
                own = by_rank[rank]
                low, high = np.searchsorted(nodes.starts[own], (nodes.ends[left], nodes.starts[entered]))
                between.append(own[low:high][~taken[own[low:high]]])
            sums = np.array([float(now.work[part].sum()) for part in between])
            for part, total in zip(between, sums.tolist(), strict=True):
                taken[part] = True
                if total > 0:
                    factors[part] = sums.mean() / total
    return factors
