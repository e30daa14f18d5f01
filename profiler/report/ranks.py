"""Lines of the text summary that compare ranks: clocks, waiting and transfer, who is late."""

from __future__ import annotations

from typing import Any, Final

from moescope.profiler.report.amounts import time_text

ROWS: Final = 32
"""Ranks that are listed; of more, those with the most exposed communication."""


def listed(ranks: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The devices to list, and a word on those that are left out."""
    if len(ranks) <= ROWS:
        return ranks, ""
    chosen = sorted(range(len(ranks)), key=lambda at: (-ranks[at]["exposed_comm_us"], at))[:ROWS]
    left = len(ranks) - ROWS
    return [ranks[at] for at in sorted(chosen)], f"… {left} more with less exposed communication: see --json."


def collective_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row an operation: name, count, wait and transfer summed, median transfer, bandwidth, who was last how often."""
    found = summary["collectives"]
    if found is None or found["wait_us"] is None:
        return []
    return [
        (
            op["op"],
            str(op["collectives"]),
            time_text(op["wait_us"]),
            time_text(op["transfer_us"]),
            time_text(op["median_transfer_us"]),
            _rate(op["bus_bytes_per_s"]),
            ", ".join(f"{last['rank']}: {last['collectives']}" for last in op["last"][:3]) or "–",
        )
        for op in found["ops"]
        if op["collectives"]
    ]


def rank_notes(summary: dict[str, Any]) -> list[str]:
    """Lines below the tables."""
    return [*_clock_line(summary["clock_alignment"]), *_wait_lines(summary["collectives"])]


def _clock_line(clocks: dict[str, Any] | None) -> list[str]:
    if clocks is None:
        return []
    unknown = [str(rank["rank"]) for rank in clocks["ranks"] if rank["offset_us"] is None]
    lost = f" WARNING: not rank {', '.join(unknown[:8])}{' …' if len(unknown) > 8 else ''}." if unknown else ""
    if clocks["clocks"] == 1:
        return [f"Clocks: one for all ranks.{lost}"]
    if clocks["residual_us"] is None:
        return [f"Clocks: not aligned, {clocks['residual_us_reason']}.{lost}"]
    widest = max(abs(rank["offset_us"]) for rank in clocks["ranks"] if rank["offset_us"] is not None)
    return [
        f"Clocks: aligned on {clocks['collectives']} collectives, up to {time_text(widest)} apart; 95 % of ends "
        f"then agree within {time_text(clocks['residual_us'])} [derived].{lost}"
    ]


def _wait_lines(found: dict[str, Any] | None) -> list[str]:
    if found is None:
        return []
    lines = []
    if found["wait_share"] is not None:
        how = " and ".join(found["matched_by"])
        lines.append(
            f"Collectives: {found['wait_share']:.1%} of the time in them is waiting for the last rank "
            f"[{found['evidence']}]; matched by {how}, {found['matched_share']:.1%} of the calls."
        )
        if found["groups_lacking_ranks"]:
            lines.append(
                f"WARNING: of {found['groups_lacking_ranks']} groups not all ranks are in the source: "
                "waiting is at least, transfer at most what is shown."
            )
    elif found["calls"]:
        lines.append(f"Collectives: waiting and transfer cannot be told apart: {found['wait_share_reason']}.")
    if some := found["calls_of_windows"]:
        lines.append(f"Collectives: {some} of the calls were issued by C++, as by DDP: of such those in windows alone.")
    if found["wait_share"] is not None and found["unmatched"]:
        lost = sum(one["calls"] for one in found["unmatched"])
        lines.append(f"Collectives: {lost} calls found no counterpart: {found['unmatched'][0]['reason']}.")
    return lines


def _rate(bytes_per_s: float | None) -> str:
    if bytes_per_s is None:
        return "–"
    for unit, size in (("TB/s", 1e12), ("GB/s", 1e9), ("MB/s", 1e6)):
        if bytes_per_s >= size:
            return f"{bytes_per_s / size:.3g} {unit}"
    return f"{bytes_per_s / 1e3:.3g} kB/s"
