"""Who arrives last at collectives, what that costs the others, and why, as far as the data tells.

What a rank does between leaving one collective of a group and entering the next is compute, other kernels
(communication elsewhere, copies) or nothing. What the last rank has more of than the median rank is why it is late.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Times, length, union
from moescope.profiler.ranks.clocks import Clocks
from moescope.profiler.ranks.matched import World
from moescope.profiler.ranks.waiting import Taken

Cause: TypeAlias = Literal["compute", "tokens", "clock", "launch", "communication"]

CAUSES: Final[dict[Cause, str]] = {
    "compute": "it computes longer than the median rank before it arrives",
    "tokens": "it computes longer than the median rank before it arrives, and its experts get more tokens",
    "clock": "it computes longer than the median rank before it arrives, and its device's clock is slower",
    "launch": "its device idles longer than the median rank's before it arrives, as its host launches late or waits",
    "communication": "other communication or copies take it longer than the median rank before it arrives",
}

MORE_TOKENS: Final = 1.1
SLOWER_CLOCK: Final = 0.97
_MOSTLY: Final = 0.5
_RECORDED: Final = 0.9
_PARTS: Final = ("compute", "communication", "launch")


@dataclass(frozen=True, slots=True)
class Facts:
    """What else is known of a rank; None where it is not.

    clock_hz: mean of its device's clock; tokens: that its experts got
    """

    clock_hz: float | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Late:
    """One rank that was last.

    last, of: collectives that it was surely last in, and all it was seen in; lead_ns: how much later than any other
    rank it came, as a union over time, the most that being on time could bring; caused_ns: what all other ranks waited
    in these collectives; parts: lead by what the rank did meanwhile, ns; cause: None with the reason where not known
    """

    rank: int
    last: int
    of: int
    lead_ns: int
    caused_ns: int
    parts: Mapping[str, int] = field(default_factory=dict)
    cause: Cause | None = None
    reason: str = ""
    detail: str = ""


def latecomers(world: World, taken: Sequence[Taken], clocks: Clocks, facts: Mapping[int, Facts]) -> tuple[Late, ...]:
    """Ranks that were last, the costliest first."""
    leads: dict[int, list[tuple[Times, Times]]] = {}
    counts: dict[int, list[int]] = {rank: [0, 0, 0] for one in taken for rank in one.of.ranks}
    parts: dict[int, NDArray[np.float64]] = {}
    for one in taken:
        sure = surely_last(one, clocks)
        shares = _parts(world, one)
        waited = one.wait.sum(axis=0)
        for row, rank in enumerate(one.of.ranks):
            counts[rank][1] += int(one.present[row].sum())
            own = np.flatnonzero(sure & (one.last == row))
            if not len(own):
                continue
            counts[rank][0] += len(own)
            counts[rank][2] += int(waited[own].sum())
            leads.setdefault(rank, []).append((one.next_ns[own], one.last_ns[own]))
            lead = one.lead_ns[own].astype(np.float64)
            parts[rank] = parts.get(rank, np.zeros(len(_PARTS))) + (shares[:, own] * lead).sum(axis=1)
    found = []
    for rank, stretches in leads.items():
        alone = length(union(*(np.concatenate(edges) for edges in zip(*stretches, strict=True))))
        told = dict(zip(_PARTS, (int(value) for value in parts[rank]), strict=True))
        late = Late(rank, counts[rank][0], counts[rank][1], alone, counts[rank][2], told)
        found.append(_explained(late, facts))
    return tuple(sorted(found, key=lambda late: (-late.lead_ns, late.rank)))


def surely_last(one: Taken, clocks: Clocks) -> NDArray[np.bool_]:
    """[collectives] whether the last rank comes later than the one before by more than clocks can be off."""
    sure: NDArray[np.bool_] = one.lead_ns > clocks.uncertain_ns(one.of.ranks)
    return sure


def _parts(world: World, one: Taken) -> NDArray[np.float64]:
    """[3, collectives] shares of the last rank's lead by _PARTS; 0 where it cannot be told.

    Against the lower median over the ranks that were seen, the last one included.
    """
    ranks, count = one.present.shape
    spent = np.zeros((len(_PARTS), ranks, count))
    known = np.zeros((ranks, count), np.bool_)
    for row, rank in enumerate(one.of.ranks):
        calls, at = world[rank], one.of.rows[row, one.at]
        both = np.zeros(count, np.bool_)
        both[1:] = one.present[row, 1:] & one.present[row, :-1]
        now, before = at[both], at[np.flatnonzero(both) - 1]
        whole = calls.starts[now] - calls.ends[before]
        compute, busy, seen = (values[0, now] - values[1, before] for values in (calls.compute, calls.busy, calls.seen))
        sound = (whole > 0) & (seen >= _RECORDED * whole)
        spent[:, row, both] = np.maximum(np.stack((compute, busy - compute, whole - busy)), 0)
        known[row, both] = sound
    columns = np.arange(count)
    enough = (known.sum(axis=0) > 1) & known[one.last, columns]
    ordered = np.sort(np.where(known, spent, np.inf), axis=1)
    middle = np.maximum((known.sum(axis=0) - 1) // 2, 0)
    usual = ordered[:, middle, columns]
    excess = np.where(enough, np.maximum(spent[:, one.last, columns] - np.where(enough, usual, 0), 0), 0)
    whole = excess.sum(axis=0)
    shares: NDArray[np.float64] = np.divide(excess, whole, out=np.zeros_like(excess), where=whole > 0)
    return shares


def _explained(late: Late, facts: Mapping[int, Facts]) -> Late:
    """With the cause of most of the lead, where it is known."""
    known = sum(late.parts.values())
    leads = late.parts
    if known < _MOSTLY * late.lead_ns or not known:
        reason = "what the ranks did before these collectives was not recorded, or they did it alike"
        return replace(late, reason=reason)
    most = max(leads, key=lambda part: leads[part])
    if leads[most] <= _MOSTLY * known:
        mixed = ", ".join(f"{part} {leads[part] / known:.0%}" for part in _PARTS)
        return replace(late, reason=f"no one thing makes up most of it: {mixed}")
    if most == "launch":
        return replace(late, cause="launch")
    if most == "communication":
        return replace(late, cause="communication")
    own = facts.get(late.rank, Facts())
    tokens = [fact.tokens for fact in facts.values() if fact.tokens is not None]
    mean = sum(tokens) / len(tokens) if tokens else 0
    if own.tokens is not None and mean and own.tokens >= MORE_TOKENS * mean:
        return replace(late, cause="tokens", detail=f"{own.tokens / mean:.2f} times the mean tokens")
    others = [fact.clock_hz for rank, fact in facts.items() if rank != late.rank and fact.clock_hz is not None]
    if own.clock_hz is not None and others and own.clock_hz <= SLOWER_CLOCK * float(np.median(others)):
        detail = f"{own.clock_hz / 1e6:.0f} MHz against a median of {float(np.median(others)) / 1e6:.0f} MHz"
        return replace(late, cause="clock", detail=detail)
    return replace(late, cause="compute")
