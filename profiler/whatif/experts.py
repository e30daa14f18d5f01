"""Experts in balance: every rank computes as long as the mean rank does, by its experts' tokens or by waiting.

Where tokens an expert are recorded (`experts`), what experts take on a rank changes with the tokens that they get, by a
line through the recorded times; experts are spread over the ranks in equal runs. Else, where ranks are compared by
collectives, what a rank computes from leaving one to entering the next one of the group becomes that of the mean rank.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np

from moescope.profiler.whatif.change import Change, Factors, Scenario
from moescope.profiler.whatif.situation import Situation

Place: TypeAlias = tuple[int | None, int | None]
"""Step and layer."""
EVERYWHERE: Final[Place] = (-1, -1)

_FEW: Final = 8
_FLAT: Final = 1000
"""Where time does not grow with tokens its fixed part counts as so many times the most tokens."""

_ID: Final = "balanced-experts"
_WHAT: Final = "experts in balance"
_EXPERT_PHASES: Final = ("mlp", "expert", "moe")


def balanced_experts(now: Situation) -> Scenario:
    """By tokens where they are told, else by compute between collectives."""
    load = _load(now)
    if load is not None:
        return _by_tokens(now, load)
    return _by_collectives(now)


def _load(now: Situation) -> dict[Place, dict[int, int]] | None:
    """By step and layer, and of all of them under EVERYWHERE: tokens of the experts of each rank.

    None where tokens are not told.
    """
    rows = now.source.table("experts").select(["step", "layer", "expert", "tokens"]).to_pylist()
    ranks = sorted(now.source.ranks())
    world = len(ranks)
    rows = [row for row in rows if row["expert"] is not None and row["expert"] >= 0 and (row["tokens"] or 0) > 0]
    if not rows or world < 2 or {lane.rank for lane in now.nodes.lanes} != set(ranks):
        return None
    experts = max(row["expert"] for row in rows) + 1
    if experts < world:
        return None
    sums: dict[Place, dict[int, int]] = {}
    for row in rows:
        owner = ranks[row["expert"] * world // experts]
        for place in ((row["step"], row["layer"]), EVERYWHERE):
            held = sums.setdefault(place, dict.fromkeys(ranks, 0))
            held[owner] += row["tokens"]
    return sums


def _by_tokens(now: Situation, load: dict[Place, dict[int, int]]) -> Scenario:
    ranks = now.nodes.ranks.tolist()
    places = _expert_phases(now)
    surely = (now.nodes.operators == "grouped_gemm") & now.computes
    at_most = surely | (np.array([place is not None for place in places], np.bool_) & now.computes)
    if not at_most.any():
        reason = (
            "tokens an expert are recorded, but no kernel is known to be an expert's (a grouped product, a phase mlp)"
        )
        return Scenario(_ID, _WHAT, None, reason)
    keys = [
        (rank, place if place in load else EVERYWHERE) if held else None
        for rank, place, held in zip(ranks, places, at_most.tolist(), strict=True)
    ]
    spent: dict[tuple[int, Place], int] = {}
    for key, work in zip(keys, now.work.tolist(), strict=True):
        if key is not None:
            spent[key] = spent.get(key, 0) + work
    fixed, fitted = _fixed([(load[place][rank], ns) for (rank, place), ns in spent.items()])
    mean = {place: sum(held.values()) / len(held) for place, held in load.items()}
    share = {
        (rank, place): ((fixed + mean[place]) / (fixed + own), mean[place] / own)
        for (rank, place) in spent
        if (own := load[place][rank])
    }
    pairs = np.array([share.get(key, (1.0, 1.0)) if key is not None else (1.0, 1.0) for key in keys])
    overall = round(max(load[EVERYWHERE].values()) / mean[EVERYWHERE], 4)
    parameters: dict[str, Any] = {"max_over_mean_tokens": overall, "by": "tokens", "fixed_tokens": round(fixed)}
    assumed = (
        "what experts take changes with the tokens of all experts of the rank, in a step and layer where phases tell "
        "them: not at all (least); as a line through the recorded times does, whose fixed part is worth "
        f"{fixed:.0f} tokens{'' if fitted else ', which too few times tell'} (between); in proportion (most)",
        "experts are spread over the ranks in equal runs; their kernels are grouped products and all compute in phases "
        "named mlp, expert or moe",
    )
    return Scenario(_ID, _WHAT, Change(now.ones, pairs[:, 0].copy(), pairs[:, 1].copy(), assumed, parameters))


def _fixed(points: list[tuple[int, int]]) -> tuple[float, bool]:
    """How many tokens the fixed part of experts' time is worth, and whether times tell it; 0 where they do not.

    points: tokens, and ns that they took
    """
    tokens, times = (np.array(values, np.float64) for values in zip(*points, strict=True))
    if len(points) < _FEW or len(np.unique(tokens)) < 2:
        return 0.0, False
    slope, start = np.polyfit(tokens, times, 1)
    most = float(tokens.max()) * _FLAT
    return (min(max(float(start / slope), 0.0), most), True) if slope > 0 else (most, True)


def _expert_phases(now: Situation) -> list[Place | None]:
    """[nodes] step and layer of the phase around the launch where that is named after experts, else None."""
    phases = now.source.table("phases").select(["rank", "id", "name", "step", "layer"]).to_pylist()
    named = {
        (row["rank"], row["id"]): (row["step"], row["layer"])
        for row in phases
        if any(word in (row["name"] or "").lower() for word in _EXPERT_PHASES)
    }
    if not named:
        return [None] * len(now.nodes)
    held = now.source.table("kernels").column("phase_id").fill_null(-1).to_numpy()[now.nodes.rows]
    return [named.get(key) for key in zip(now.nodes.ranks.tolist(), held.tolist(), strict=True)]


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
