"""Lines of the text summary about the machine: units and their budget."""

from __future__ import annotations

from typing import Any


def machine_notes(ranks: list[dict[str, Any]]) -> list[str]:
    """Lines about the entries of the answer's `ranks`."""
    lines = [_matrix_line(ranks)]
    budgets = [rank for rank in ranks if rank["sm_budget"] is not None and rank["units"]["comm_peak"]]
    if budgets:
        lines.append(_budget_line(max(budgets, key=lambda rank: rank["sm_budget"]["both_share"]), len(ranks)))
    return [*lines, *_bound_lines(ranks), *decode_notes(ranks)]


def bound_of(ranks: list[dict[str, Any]], operator: str, kind: str) -> str | None:
    """What bounds most of a class's time over all ranks; None where nothing is known to."""
    lasting: dict[str, float] = {}
    for rank in ranks:
        for row in rank["operators"]:
            if (row["class"], row["kind"]) == (operator, kind):
                for bound, share in row["bound_shares"].items():
                    lasting[bound] = lasting.get(bound, 0.0) + share * row["total_us"]
    most = max(lasting, key=lambda bound: lasting[bound], default="unknown")
    return most if most != "unknown" and lasting[most] * 2 > sum(lasting.values()) else None


def _matrix_line(ranks: list[dict[str, Any]]) -> str:
    """Use of the matrix units, rank by rank, or why it is not known."""
    uses = [rank["matrix_use"] for rank in ranks]
    known = [use for use in uses if use["achieved"] is not None]
    counters = [use["counter"] for use in uses if use["counter"] is not None]
    counter = f" Their counter: {_span(counters)} of the time [measured]." if counters else ""
    if not known:
        return f"Matrix units: –, {uses[0]['achieved_reason']}.{counter}"
    text = f"Matrix units: {_span([use['achieved'] for use in known])} of peak over the recorded time [derived]"
    share = min(use["flops_known_share"] for use in known)
    least = f", at least: operations are known for {share:.0%} of the products' time" if share < 0.995 else ""
    return f"{text}{least}.{counter}"


def _span(values: list[float]) -> str:
    low, high = _percent(min(values)), _percent(max(values))
    return low if len(values) == 1 else f"{low} to {high}, by rank,"


def _percent(value: float) -> str:
    if value >= 0.001 or value == 0:
        return f"{value:.1%}"
    return f"{value:.2%}" if value >= 0.0001 else "<0.01%"


def _bound_lines(ranks: list[dict[str, Any]]) -> list[str]:
    """How kernel time divides by what bounds it, over all ranks with a roofline."""
    known = [rank["roofline"] for rank in ranks if rank["roofline"] is not None]
    if not known:
        return []
    weights = [sum(one["total_us"] for one in roofline["classes"]) for roofline in known]
    whole = sum(weights)
    if not whole or all(roofline["bounds"]["unknown"] == 1 for roofline in known):
        return []
    parts = []
    for bound, what in (
        ("tensor", "matrix units"), ("memory", "memory"), ("latency", "latency"), ("link", "links"),
        ("unknown", "– not known"),
    ):  # fmt: skip
        share = sum(roofline["bounds"][bound] * weight for roofline, weight in zip(known, weights, strict=True)) / whole
        if share >= 0.0005:
            parts.append(f"{what} {share:.1%}")
    return [f"Kernel time is bound by: {', '.join(parts)} [derived, inferred] ({known[0]['device']})."]


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


def decode_notes(ranks: list[dict[str, Any]]) -> list[str]:
    """Why decoding takes as long as it does, on the rank whose steps take longest; nothing without decode steps."""
    known = [rank for rank in ranks if rank["decode"] is not None]
    if not known:
        return []
    slowest = max(known, key=lambda rank: rank["decode"]["step_us"])
    decode = slowest["decode"]
    who = f" of rank {slowest['rank']}" if len(ranks) > 1 else ""
    return [_steps_line(decode, who), *_time_lines(decode), _ridge_line(decode), _bytes_line(decode)]


def _steps_line(decode: dict[str, Any], who: str) -> str:
    count = decode["steps"]
    text = f"Decode{who}: {count} step{'s' if count != 1 else ''}, median {decode['step_us'] / 1000:.2f} ms"
    if decode["batch"] is not None:
        text += f", {decode['batch']:.0f} sequences"
    if decode["tokens_per_s"] is not None:
        text += f", {decode['tokens_per_s']:,.0f} tokens/s"
    return f"{text} [{decode['evidence']}: {decode['how']}]."


def _time_lines(decode: dict[str, Any]) -> list[str]:
    if decode["gaps"] is None:
        return [f"  Where its steps' time goes: –, {decode['gaps_reason']}."]
    gaps = decode["gaps"]
    text = f"  No kernel runs for {_percent(decode['idle_share'])} of a step"
    if gaps["longest_us"] is not None:
        text += f": {gaps['count_per_step']:.0f} gaps, median {gaps['median_us']:.1f} µs"
        text += f", longest {gaps['longest_us']:.0f} µs"
    if gaps["graph_share"] and gaps["longest_us"] is not None:
        text += (
            f"; {_percent(gaps['idle_in_graph_share'])} inside CUDA graphs, "
            f"{_percent(gaps['idle_outside_graph_share'])} around them, where the host launches"
        )
    bounds = ", ".join(f"{name} {_percent(share)}" for name, share in decode["bounds"].items() if share >= 0.0005)
    longest = ", ".join(
        f"{one['class']} {_percent(one['share'])} ({one['bound'] or '– not known'})" for one in decode["classes"][:3]
    )
    return [f"{text} [derived].", f"  Its kernel time is bound by: {bounds}; longest: {longest} [derived, inferred]."]


def _ridge_line(decode: dict[str, Any]) -> str:
    tokens, ridge = decode["tokens_per_expert"], decode["ridge_tokens"]
    if tokens is None:
        return f"  Tokens an expert: –, {decode['tokens_per_expert_reason']}."
    text = f"  Tokens an expert: {tokens:.1f} [{decode['tokens_per_expert_evidence']}]"
    if ridge is None:
        return f"{text}; ridge –, {decode['ridge_tokens_reason']}."
    side = "under it reading weights takes the time" if tokens < ridge else "over it multiplying takes the time"
    return f"{text}, ridge T* {ridge:.0f} ({decode['ridge_dtype']}): {side}."


def _bytes_line(decode: dict[str, Any]) -> str:
    if decode["bytes_per_step"] is None:
        least = decode.get("bytes_at_least")
        told = f", at least {least / 1e6:.0f} MB [inferred]" if least else ""
        return f"  Bytes of a step: –, {decode['bytes_per_step_reason']}{told}."
    text = f"  Bytes of a step: {decode['bytes_per_step'] / 1e6:.1f} MB, {decode['bytes_per_s'] / 1e9:.1f} GB/s"
    if decode["bandwidth_share"] is not None:
        text += f", {_percent(decode['bandwidth_share'])} of the bandwidth"
    text += f" [{decode['bytes_evidence']}: {decode['bytes_how']}]"
    if decode["roofline_share"] is not None:
        text += f"; {_percent(decode['roofline_share'])} of the model's roofline [modelled]"
    return f"{text}."
