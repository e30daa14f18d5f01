"""The keys of `summary --json` that compare ranks: `clock_alignment`, `collectives`, `stragglers`.

Times in µs, bytes a second as numbers; every null has its reason beside it.
"""

from __future__ import annotations

from typing import Any, Final

from moescope.profiler.ranks.across import Across, OpUse, matched_by
from moescope.profiler.ranks.clocks import RankClock
from moescope.profiler.ranks.lateness import CAUSES, Late
from moescope.profiler.ranks.part import Part

LISTED: Final = 64
"""Entries of a list that grows with the number of ranks or groups; how many there are in all stands beside it."""

ALONE: Final = "the source holds one rank alone"
NO_CALLS: Final = "no communication calls"
NO_BYTES: Final = "the source does not tell how many bytes it moves, or in a group of how many ranks"
METHOD: Final = "all ranks leave a collective together: median over collectives of the ends' differences"


def told_across(found: Across, part: Part) -> dict[str, Any]:
    """The keys and their values."""
    return {
        **_or_reason("clock_alignment", *_clocks(found, part)),
        **_or_reason("collectives", *_collectives(found, part)),
        **_or_reason("stragglers", *_stragglers(found, part)),
    }


def _or_reason(key: str, value: Any, reason: str) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def _us(ns: float) -> float | int:
    whole = round(ns)
    return whole // 1000 if whole % 1000 == 0 else whole / 1000


def _why_alone(found: Across, part: Part) -> str:
    return ALONE if len(part.ranks) < 2 else NO_CALLS if not found.world else "only one rank communicates"


def _clocks(found: Across, part: Part) -> tuple[dict[str, Any] | None, str]:
    if len(found.world) < 2:
        return None, _why_alone(found, part)
    clocks = found.clocks
    answer: dict[str, Any] = {
        "method": METHOD,
        "reference_rank": clocks.reference,
        "clocks": len(set(clocks.clock_of.values())),
        "collectives": clocks.collectives,
        "ranks": [_clock(rank, clock) for rank, clock in sorted(clocks.by_rank.items())],
        "evidence": "derived",
    }
    for key, value in (("residual_us", clocks.residual_ns), ("worst_us", clocks.worst_ns)):
        answer |= _or_reason(key, None if value is None else _us(value), clocks.reason)
    return answer, ""


def _clock(rank: int, clock: RankClock) -> dict[str, Any]:
    known = clock.offset_ns is not None
    told = {
        "offset_us": _us(clock.offset_ns or 0) if known else None,
        "drift_ppm": clock.drift * 1e6 if known else None,
        "residual_us": None if clock.residual_ns is None else _us(clock.residual_ns),
    }
    answer: dict[str, Any] = {"rank": rank, "collectives": clock.collectives}
    for key, value in told.items():
        answer |= _or_reason(key, value, clock.reason or "its collectives were not matched; it shares a host's clock")
    return answer


def _collectives(found: Across, part: Part) -> tuple[dict[str, Any] | None, str]:
    if not found.world:
        return None, NO_CALLS
    wait, moving = sum(op.wait_ns for op in found.ops), sum(op.moving_ns for op in found.ops)
    lacking, untold = found.partial
    why = _why_not(found)
    answer: dict[str, Any] = {
        "calls": found.matching.calls,
        "matched": found.matching.matched,
        "matched_share": found.matching.matched / found.matching.calls if found.matching.calls else 0.0,
        "matched_by": matched_by(found),
        "unmatched": [
            {"group": one.group.name, "ranks": one.group.members, "calls": one.calls, "reason": one.reason}
            for one in found.left[:LISTED]
        ],
        "unmatched_groups": len(found.left),
        "peer_to_peer_calls": sum(calls.peer_to_peer for calls in found.world.values()),
        "calls_of_windows": sum(int((calls.sequence >= 0).sum()) for calls in found.world.values()),
        "groups_lacking_ranks": lacking,
        "groups_of_unknown_ranks": untold,
        **_or_reason("wait_us", _us(wait) if found.taken else None, why),
        **_or_reason("transfer_us", _us(sum(op.transfer_ns for op in found.ops)) if found.taken else None, why),
        **_or_reason("wait_share", wait / (wait + moving) if wait + moving else None, why),
        "ops": [_op(op, why) for op in found.ops],
        "slow_groups": [
            {
                "op": slow.op,
                "ranks": list(slow.ranks),
                "bytes": slow.moved,
                "collectives": slow.count,
                "transfer_us": _us(slow.transfer_ns),
                "usual_us": _us(slow.usual_ns),
                "groups": slow.groups,
            }
            for slow in found.slow[:LISTED]
        ],
        **_traffic(part),
        "evidence": "inferred" if any(one.of.inferred for one in found.taken) else "derived",
    }
    return answer, ""


def _why_not(found: Across) -> str:
    return found.left[0].reason if found.left else "no collective was matched across ranks"


def _op(op: OpUse, why: str) -> dict[str, Any]:
    seen = op.collectives > 0
    answer: dict[str, Any] = {"op": op.op, "calls": op.calls, "collectives": op.collectives, "groups": op.groups}
    for key, value in (
        ("wait_us", op.wait_ns),
        ("moving_us", op.moving_ns),
        ("transfer_us", op.transfer_ns),
        ("median_transfer_us", op.median_transfer_ns),
    ):
        answer |= _or_reason(key, _us(value) if seen else None, why)
    for key, amount, elapsed in (
        ("bus_bytes_per_s", op.moved, op.moved_ns),
        ("algorithm_bytes_per_s", op.buffer, op.buffer_ns),
    ):
        answer |= _or_reason(key, amount / elapsed * 1e9 if elapsed else None, NO_BYTES if seen else why)
    at_least = op.told / op.told_ns * 1e9 if op.told_ns else None
    answer |= _or_reason("bus_bytes_per_s_at_least", at_least, NO_BYTES)
    answer["last"] = [{"rank": rank, "collectives": count} for rank, count in op.last[:8]]
    return answer


def _traffic(part: Part) -> dict[str, Any]:
    pairs = sorted(part.totals.traffic.items(), key=lambda one: (-one[1][1], one[0]))
    listed = [
        {"src": src, "dst": dst, "hop": hop, "transfers": count, "bytes": size}
        for (src, dst, hop), (count, size) in pairs[:LISTED]
    ]
    return {
        **_or_reason("traffic", listed if listed else None, "the source does not tell bytes by sender and receiver"),
        "traffic_pairs": len(pairs),
        "traffic_bytes": sum(size for _, (_, size) in pairs),
    }


def _stragglers(found: Across, part: Part) -> tuple[list[dict[str, Any]] | None, str]:
    if len(found.world) < 2:
        return None, _why_alone(found, part)
    if not found.taken:
        return None, _why_not(found)
    return [_late(late) for late in found.late[:LISTED]], ""


def _late(late: Late) -> dict[str, Any]:
    return {
        "rank": late.rank,
        "last": late.last,
        "collectives": late.of,
        "lead_us": _us(late.lead_ns),
        "others_waited_us": _us(late.caused_ns),
        "lead_by": {f"{part}_us": _us(ns) for part, ns in late.parts.items()},
        **_or_reason("cause", late.cause, late.reason),
        "why": "; ".join(filter(None, (CAUSES[late.cause], late.detail))) if late.cause else late.reason,
        "evidence": "derived",
    }
