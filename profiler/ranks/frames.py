"""The comparison of ranks as columns, for DataFrames."""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from moescope.profiler.ranks.across import Across
from moescope.profiler.ranks.lateness import CAUSES

_EMPTY: Final = {
    "group": np.empty(0, object), "number": np.empty(0, np.int64), "op": np.empty(0, object),
    "rank": np.empty(0, np.int64), "arrival_ns": np.empty(0, np.int64), "wait_us": np.empty(0),
    "moving_us": np.empty(0), "transfer_us": np.empty(0), "last": np.empty(0, np.bool_), "lead_us": np.empty(0),
}  # fmt: skip


def collective_columns(found: Across) -> dict[str, Any]:
    """[rank x collective] a value each: group, number, op, rank, arrival_ns, wait_us, moving_us, transfer_us, last,
    lead_us; by group, collective and rank"""
    parts: list[dict[str, Any]] = [_EMPTY]
    for one in found.taken:
        # Collectives one after the other, the ranks of each together.
        place, row = np.nonzero(one.present.T)
        members = np.array(one.of.ranks, np.int64)
        parts.append(
            {
                "group": np.full(len(place), f"{one.of.group.name} ({one.of.group.members})", object),
                "number": one.at[place],
                "op": one.ops[place],
                "rank": members[row],
                "arrival_ns": one.arrivals[row, place],
                "wait_us": one.wait[row, place] / 1000,
                "moving_us": one.moving[row, place] / 1000,
                "transfer_us": one.transfer[place] / 1000,
                "last": one.last[place] == row,
                "lead_us": one.lead_ns[place] / 1000,
            }
        )
    return {name: np.concatenate([part[name] for part in parts]) for name in _EMPTY}


def clock_columns(found: Across) -> dict[str, list[Any]]:
    """[ranks] a value each: rank, offset_us, drift_ppm, residual_us (None where not known), collectives, reason"""
    clocks = sorted(found.clocks.by_rank.items())
    return {
        "rank": [rank for rank, _ in clocks],
        "offset_us": [None if one.offset_ns is None else one.offset_ns / 1000 for _, one in clocks],
        "drift_ppm": [None if one.offset_ns is None else one.drift * 1e6 for _, one in clocks],
        "residual_us": [None if one.residual_ns is None else one.residual_ns / 1000 for _, one in clocks],
        "collectives": [one.collectives for _, one in clocks],
        "reason": [one.reason for _, one in clocks],
    }


def late_columns(found: Across) -> dict[str, list[Any]]:
    """[ranks that were last] a value each: rank, last, collectives, lead_us, others_waited_us, cause (None where not
    known), why"""
    return {
        "rank": [one.rank for one in found.late],
        "last": [one.last for one in found.late],
        "collectives": [one.of for one in found.late],
        "lead_us": [one.lead_ns / 1000 for one in found.late],
        "others_waited_us": [one.caused_ns / 1000 for one in found.late],
        "cause": [one.cause for one in found.late],
        "why": [CAUSES[one.cause] if one.cause else one.reason for one in found.late],
    }
