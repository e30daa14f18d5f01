"""Lines of the text summary about the machine: units and their budget."""

from __future__ import annotations

from typing import Any


def machine_notes(ranks: list[dict[str, Any]]) -> list[str]:
    """Lines about the entries of the answer's `ranks`; none where nothing is known or there is nothing to share."""
    lines = []
    budgets = [rank for rank in ranks if rank["sm_budget"] is not None and rank["units"]["comm_peak"]]
    if budgets:
        lines.append(_budget_line(max(budgets, key=lambda rank: rank["sm_budget"]["both_share"]), len(ranks)))
    return lines


def _budget_line(rank: dict[str, Any], ranks: int) -> str:
    """The rank that shares its units longest."""
    units, budget = rank["units"], rank["sm_budget"]
    noun = "cores" if units["kind"] == "core" else "SMs"
    who = f" of rank {rank['rank']}" if ranks > 1 else ""
    text = (
        f"Units{who}: communication holds {_count(units, 'comm')} of {units['total']} {noun}, "
        f"compute {_count(units, 'compute')}"
    )
    if budget["together"]:
        split = budget["together"][0]
        text += (
            f"; both hold some {budget['both_share']:.1%} of the time, mostly {split['comm']} + {split['compute']} "
            f"({split['share']:.1%})"
        )
    return f"{text}; all are held {budget['full_share']:.1%} of the time [{budget['evidence']}]."


def _count(units: dict[str, Any], role: str) -> str:
    typical, most = units[f"{role}_typical"], units[f"{role}_at_most"]
    return f"{typical}" if most in (None, typical) else f"{typical} to {most}"
