"""Findings that rest on what a device's analysis tells: its units, launches, casts, decode steps and clock.

Nothing is computed anew: `seen.devices` are the entries of the answer's `ranks`. Where there are none, as in a view of
a live run, nothing is said.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final

from moescope.profiler.findings.advice import advice, why
from moescope.profiler.findings.aggregates import Aggregates
from moescope.profiler.findings.gains import duration_text, gain
from moescope.profiler.findings.loss import loss
from moescope.profiler.snapshot import Finding, severity_of

MANY_UNITS: Final = 0.2
"""Share of a device's units from which on communication is said to hold many: DeepSeek-V3 gives it 20 of 132."""

OVERLAPPED: Final = 0.05
WANTED: Final = 0.05
CASTS: Final = 0.02
LAYOUT: Final = 0.05
MEMORY_BOUND: Final = 0.3
SLOWER: Final = 0.95
SAMPLES: Final = 6
HELD: Final = 0.05
LAYOUT_OPERATORS: Final = ("routing", "index", "sort")
_NAME: Final = 80


def many_units(seen: Aggregates) -> Iterator[Finding]:
    """Communication that runs beside compute and holds so many units that compute would take more."""
    best: tuple[float, dict[str, Any]] | None = None
    for one in seen.devices:
        units, budget = one["units"], one["sm_budget"]
        if units["kind"] != "sm" or not units["total"] or not units["comm_typical"] or budget is None:
            continue
        share, beside = units["comm_typical"] / units["total"], one["overlapped_us"] / max(one["span_us"], 1e-9)
        if share >= MANY_UNITS and beside >= OVERLAPPED and budget["wanted_more_share"] >= WANTED:
            best = max(best or (0.0, one), (share * beside, one), key=lambda pair: pair[0])
    if best is None:
        return
    high, one = best
    units, budget = one["units"], one["sm_budget"]
    yield loss(
        seen,
        "comm-units-many",
        high,
        what=f"Communication holds {units['comm_typical']} of {units['total']} SMs while compute wants more",
        evidence=f"rank {one['rank']}: {one['overlapped_us'] / one['span_us']:.1%} of the time both run; for "
        f"{budget['wanted_more_share']:.1%} of it launches would take more SMs than there are [{units['evidence']}]",
        condition="if compute beside it runs on all units",
    )


def casts(seen: Aggregates) -> Iterator[Finding]:
    """Quantisation kernels that stand alone before products."""
    span = _sum(seen.devices, "span_us")
    alone = sum(one["casts"]["before_products_us"] for one in seen.devices)
    if not span or alone < CASTS * span:
        return
    count, share = sum(one["casts"]["before_products"] for one in seen.devices), alone / span
    all_us = sum(one["casts"]["us"] for one in seen.devices)
    rows = [kernel for kernel in seen.kernels if kernel.operator == "quantize"]
    longest = sorted(rows, key=lambda kernel: -kernel.total_ns)[:2]
    names = "".join(f"; {_short(kernel.name)}: {duration_text(kernel.total_ns)}" for kernel in longest)
    yield loss(
        seen,
        "casts-unfused",
        share,
        what=f"Casts that stand alone before matrix products take {share:.1%} of the time",
        evidence=f"{count} kernels, {_us(alone)} of {_us(all_us)} that casts take, over all devices; the next kernel "
        f"on their stream is a product [inferred]{names}",
        condition="if every one is part of the kernel before it",
    )


def layout(seen: Aggregates) -> Iterator[Finding]:
    """Kernels that only move rows and elements about on one device."""
    span = seen.shares.span_ns
    rows = [
        kernel
        for kernel in seen.kernels
        if (kernel.operator in LAYOUT_OPERATORS and kernel.kind == "compute") or kernel.operator == "memcpy"
    ]
    total = sum(kernel.total_ns for kernel in rows)
    if span <= 0 or total < LAYOUT * span:
        return
    share = min(total / span, 1.0)
    by_class: dict[str, int] = {}
    for kernel in rows:
        by_class[kernel.operator] = by_class.get(kernel.operator, 0) + kernel.total_ns
    parts = ", ".join(f"{name} {duration_text(ns)}" for name, ns in sorted(by_class.items(), key=lambda one: -one[1]))
    longest = max(rows, key=lambda kernel: kernel.total_ns)
    yield loss(
        seen,
        "layout",
        share,
        what=f"Kernels that order, index or copy rows take {share:.1%} of the time",
        evidence=f"{parts}, summed over kernels and devices; longest: {_short(longest.name)} "
        f"({duration_text(longest.total_ns)} in {longest.calls} calls) [derived]",
        condition="if none of it is needed",
    )


def decode_memory(seen: Aggregates) -> Iterator[Finding]:
    """Decode steps whose products read weights for fewer tokens than the ridge."""
    known = [one for one in seen.devices if one["decode"] is not None]
    if not known:
        return
    one = max(known, key=lambda entry: entry["decode"]["step_us"])
    decode = one["decode"]
    tokens, ridge, bound = decode["tokens_per_expert"], decode["ridge_tokens"], decode["memory_bound_share"]
    if tokens is None or ridge is None or bound is None or tokens >= ridge or bound < MEMORY_BOUND or not tokens:
        return
    reached = ""
    if decode["bandwidth_share"] is not None:
        reached = f"; {decode['bandwidth_share']:.0%} of the bandwidth is reached [{decode['bytes_evidence']}]"
    batch = "" if decode["batch"] is None else f", {decode['batch']:.0f} sequences a step"
    yield Finding(
        id="decode-memory-bound",
        severity="high" if bound >= 2 * MEMORY_BOUND else "medium",
        what=f"Decoding reads weights for {tokens:.1f} tokens an expert, the ridge is {ridge:.0f}",
        evidence=f"rank {one['rank']}: {bound:.0%} of the kernels' time is bound by memory [inferred], tokens "
        f"an expert [{decode['tokens_per_expert_evidence']}], ridge for {decode['ridge_dtype']} "
        f"[modelled]{batch}{reached}",
        advice=advice("decode-memory-bound", seen.stage or "decode"),
        gain=f"no shorter step: its weights would serve up to {ridge / tokens:.0f} times the tokens in it, "
        "while reading the cache grows with the batch",
        why=why("decode-memory-bound"),
    )


def clock_falls(seen: Aggregates) -> Iterator[Finding]:
    """A device whose clock falls while it works."""
    worst: tuple[float, dict[str, Any]] | None = None
    for one in seen.devices:
        clock = one["clock"]
        if clock is None or clock["samples"] < SAMPLES or not clock["first_hz"]:
            continue
        if clock["last_hz"] <= SLOWER * clock["first_hz"]:
            worst = max(worst or (-1.0, one), (1 - clock["mean_hz"] / clock["first_hz"], one), key=lambda pair: pair[0])
    if worst is None:
        return
    slower, one = worst
    clock, computes = one["clock"], one["compute_us"] / max(one["span_us"], 1e-9)
    power = "" if clock["power_w"] is None else f", {clock['power_w']:.0f} W in the mean"
    yield loss(
        seen,
        "clock-falls",
        slower * computes,
        what=f"The clock of rank {one['rank']}'s device falls by {1 - clock['last_hz'] / clock['first_hz']:.0%}",
        evidence=f"{clock['first_hz'] / 1e6:.0f} MHz in the first third of its samples, "
        f"{clock['last_hz'] / 1e6:.0f} MHz in the last; {clock['samples']} samples{power} [measured]",
        condition="if it keeps the clock that it began with",
    )


def clock_held(seen: Aggregates) -> Iterator[Finding]:
    """A device whose clock is held back by power or heat."""
    told = [one for one in seen.devices if one["clock"] is not None and one["clock"]["held_share"] is not None]
    one = max(told, key=lambda entry: entry["clock"]["held_share"], default=None)
    if one is None or one["clock"]["samples"] < SAMPLES or one["clock"]["held_share"] < HELD:
        return
    clock, computes = one["clock"], one["compute_us"] / max(one["span_us"], 1e-9)
    by = ", ".join(f"{word} in {share:.0%}" for word, share in clock["held_by"].items())
    clocks, text, bounds, lost = "", "", None, None
    if clock["held_hz"] and clock["free_hz"] and clock["free_hz"] > clock["held_hz"]:
        lost = computes * clock["held_share"] * (1 - clock["held_hz"] / clock["free_hz"])
        clocks = f"; {clock['held_hz'] / 1e6:.0f} MHz then, {clock['free_hz'] / 1e6:.0f} MHz otherwise"
        text, bounds = gain(seen.shares, seen.step_ns, 0.0, lost, "if nothing holds its clock")
    yield Finding(
        id="clock-held",
        severity=severity_of(clock["held_share"], 0.5, 0.2) if lost is None else severity_of(lost),
        what=f"The clock of rank {one['rank']}'s device is held back in {clock['held_share']:.0%} of its samples",
        evidence=f"{by}{clocks}; {clock['samples']} samples [measured]",
        advice=advice("clock-falls", seen.stage),
        gain=text,
        why=why("clock-falls"),
        lost=lost,
        bounds=bounds,
    )


def short_gaps(seen: Aggregates) -> tuple[float, str]:
    """Share of the idle time in gaps as short as those between launches, and a word on it; only for GPUs."""
    own = [one for one in seen.devices if not one["device"].startswith("cpu")]
    idle = _sum(own, "idle_us")
    if len(own) < len(seen.devices) or not idle:
        return 0.0, ""
    short, count = (sum(one["gaps"][key] for one in own) for key in ("short_us", "short_count"))
    long, longest = sum(one["gaps"]["count"] for one in own) - count, max(one["gaps"]["longest_us"] for one in own)
    return short / idle, (
        f"; {count} gaps of at most 50 µs hold {short / idle:.0%} of it, {long} longer ones the rest, the longest "
        f"{_us(longest)}{_graphs(own)}"
    )


def _graphs(devices: Sequence[dict[str, Any]]) -> str:
    """Of decode steps that replay graphs: whether gaps lie inside these or around them, where the host launches."""
    for one in devices:
        gaps = one["decode"]["gaps"] if one["decode"] is not None else None
        if gaps is not None and gaps["graph_share"]:
            return (
                f"; of a decode step {gaps['idle_in_graph_share']:.1%} is idle inside CUDA graphs, "
                f"{gaps['idle_outside_graph_share']:.1%} around them"
            )
    return ""


def exposed_operators(seen: Aggregates) -> str:
    """Which operators' communication is exposed, over the whole recording."""
    by_class: dict[str, float] = {}
    for one in seen.devices:
        for row in one["operators"]:
            if row.get("exposed_comm_us"):
                by_class[row["class"]] = by_class.get(row["class"], 0.0) + row["exposed_comm_us"]
    whole = sum(by_class.values())
    longest = sorted(by_class.items(), key=lambda item: -item[1])[:3]
    return "; by operator: " + ", ".join(f"{name} {us / whole:.0%}" for name, us in longest) if whole else ""


def _short(name: str) -> str:
    return name if len(name) <= _NAME else name[: _NAME - 1] + "…"


def _sum(devices: Sequence[dict[str, Any]], key: str) -> float:
    return float(sum(one[key] for one in devices))


def _us(us: float) -> str:
    return duration_text(us * 1000)
