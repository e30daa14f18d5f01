"""`steps` of `summary --json`: the figures of the stage that takes most of the time, and what a typical step holds.

A figure of a typical step is the median over the steps that were recorded whole, with its quartiles; where too few
were, it is its share of the recorded time times the median step, without a spread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.findings.aggregates import Aggregates
from moescope.profiler.overlap.intervals import Times
from moescope.profiler.ranks.part import Part
from moescope.profiler.steps.amounts import FIGURES, StageAmounts, StepAmounts, What
from moescope.profiler.steps.durations import quantile_step
from moescope.profiler.steps.scatter import FEWEST, Sums, share, width

LONG: Final = 10
"""A step that takes more than this many times the median is told apart."""

MEDIAN: Final = "median over the steps that were recorded whole"
SHARE: Final = "share of the recorded time, times the median step"

NO_COMM: Final = "no communication kernels"
_NS_PER_US: Final = 1000


def steps_answer(part: Part, seen: Aggregates) -> dict[str, Any]:
    """Figures between each rank's first step's start and its last one's end, without what lies around them, and without
    a warm-up.

    Of the stage that takes most of the time; `findings` are of this time where there is one.
    """
    steps = seen.steps
    median = quantile_step(steps.durations_ns)
    if median is None or not seen.shares.span_ns:
        known = any(rank.steps for rank in part.ranks.values())
        reason = "nothing was recorded inside steps" if known else "neither the run nor an optimizer names a step"
        return {"steps": None, "steps_reason": reason}
    shares = seen.shares
    comm = shares.overlapped_ns + shares.exposed_ns
    low, high = (quantile_step(steps.durations_ns, share) or 0 for share in (0.25, 0.75))
    amounts = [part.ranks[key].amounts for key in sorted(part.ranks)]
    steps_alone = {
        "stage": steps.stage or None,
        **({} if steps.stage else {"stage_reason": "neither the run nor an optimizer names it"}),
        "count": len(steps.durations_ns),
        "median_us": us(median),
        "q1_us": us(low),
        "q3_us": us(high),
        "long": _long(steps.durations_ns, median),
        "others": [{"stage": stage, "count": count} for stage, count in steps.others],
        "warm_up": {"count": len(steps.warm_up_ns), "us": us(sum(steps.warm_up_ns))} if steps.warm_up_ns else None,
        **({} if steps.warm_up_ns else {"warm_up_reason": "no step at the start takes much longer than the rest"}),
        "span_us": us(shares.span_ns),
        "compute_us": us(shares.compute_only_ns + shares.overlapped_ns),
        "comm_us": us(comm),
        "overlapped_us": us(shares.overlapped_ns),
        "exposed_comm_us": us(shares.exposed_ns),
        "idle_us": us(shares.idle_ns),
        **fraction(shares.overlapped_ns, comm),
        "coverage": seen.coverage,
        **_errors(amounts, steps.stage, seen.coverage),
        **_typical(amounts, steps.stage, median),
        "evidence": "derived",
    }
    return {"steps": steps_alone}


def _long(durations_ns: Sequence[int], median_ns: int) -> dict[str, Any]:
    """Steps that take much longer than the rest: with a checkpoint, or an evaluation between two of an optimizer's."""
    long = [duration for duration in durations_ns if duration > LONG * median_ns]
    return {"count": len(long), "us": us(sum(long)), "times": LONG}


def us(ns: int) -> float | int:
    """Nanoseconds as µs, a whole number where it is one."""
    return ns // _NS_PER_US if ns % _NS_PER_US == 0 else ns / _NS_PER_US


def fraction(overlapped: float, comm: float) -> dict[str, Any]:
    """`overlap_fraction`, null with its reason where nothing communicates."""
    if comm:
        return {"overlap_fraction": overlapped / comm}
    return {"overlap_fraction": None, "overlap_fraction_reason": NO_COMM}


def _errors(ranks: Sequence[StepAmounts], stage: str, coverage: float) -> dict[str, Any]:
    """`errors`: how far shares of what was recorded may be from those of all of these steps, or null with the reason.

    Half the width of an interval that holds them about 95 % of the time.
    """
    held, odd = _held(ranks, stage)
    own = [] if odd else [one.stages[stage] for one in held]
    steps = max((one.seen for one in own), default=0)
    if steps < FEWEST:
        return {"errors": None, "errors_reason": odd or f"fewer than {FEWEST} steps were recorded"}
    times = width(steps, coverage)
    found = {name: (_share(own, (of,))[1] or 0.0) * times for name, of in _SAID.items()}
    return {"errors": found | {"steps": steps, "evidence": "derived"}}


_SAID: Final = {"compute": "compute", "comm": "comm", "exposed_comm": "exposed", "idle": "busy"}
"""What of `errors` is the error of which amount: idle is what is not busy."""


def _held(ranks: Sequence[StepAmounts], stage: str) -> tuple[list[StepAmounts], str]:
    """The ranks that have amounts of the stage's steps, and why one of them has none."""
    held = [one for one in ranks if one.devices and (one.reason or stage in one.stages)]
    return held, next((one.reason for one in held if one.reason), "")


def _typical(ranks: Sequence[StepAmounts], stage: str, median_ns: int) -> dict[str, Any]:
    """`typical`: what a step holds on the mean device, or null with the reason."""
    held, odd = _held(ranks, stage)
    own = [one.stages[stage] for one in held if not one.reason]
    recorded = sum(one.recorded_ns for one in own)
    if odd or not recorded:
        return {"typical": None, "typical_reason": odd or "nothing was recorded inside steps"}
    devices = sum(one.devices for one in held)
    whole = _whole_steps(own)
    enough = whole.shape[1] >= FEWEST

    def each(what: What) -> Times:
        parts = (one.amounts[what][at] for one, at in zip(own, whole, strict=True) if what in one.amounts)
        return sum(parts, np.zeros(whole.shape[1], np.int64))

    def measure(what: What) -> dict[str, Any]:
        found, error = _share(own, what)
        return _measure(found, error, median_ns, each(what) / devices if enough else None)

    lasts = sum((one.lasts_ns[at] for one, at in zip(own, whole, strict=True)), np.zeros(whole.shape[1], np.int64))
    busy, busy_error = _share(own, ("busy",))
    idle_each = (lasts - each(("busy",))) / devices if enough else None
    whats = dict.fromkeys(what for one in own for what in one.sums)
    phases = dict.fromkeys(what[1] for what in whats if what[0] == "phase" and _known(what, held, own))
    return {
        "typical": {
            "how": MEDIAN if enough else SHARE,
            "whole_steps": whole.shape[1],
            "devices": devices,
            "figures": {name: measure((name,)) for name in FIGURES}
            | {"idle": _measure(1 - busy, busy_error, median_ns, idle_each)},
            "phases": [
                {"name": name} | {figure: measure(("phase", name, figure)) for figure in ("busy", "comm", "exposed")}
                for name in phases
            ],
            "operators": [
                {"class": what[1], "kind": what[2], "busy": measure(what)} for what in whats if what[0] == "operator"
            ],
            "evidence": "derived",
        }
    }


def _known(what: What, held: Sequence[StepAmounts], own: Sequence[StageAmounts]) -> bool:
    """Whether a phase's amounts are known on all ranks: where a rank has more than it keeps, it may be left out."""
    return all(what in stage.sums or not rank.more for rank, stage in zip(held, own, strict=True))


def _share(own: Sequence[StageAmounts], what: What) -> tuple[float, float | None]:
    """Share of the recorded time, and its standard error; None for fewer than FEWEST steps."""
    none = (0, 0.0, 0.0)
    return share([Sums(one.seen, one.recorded_ns, one.squared, *one.sums.get(what, none)) for one in own])


def _measure(found: float, error: float | None, median_ns: int, each: NDArray[np.float64] | None) -> dict[str, Any]:
    """One figure: its share of the recorded time, and µs a step; error and quartiles where enough steps tell them."""
    told = {"share": found} | ({} if error is None else {"share_error": error})
    if each is None:
        return {"us": found * median_ns / _NS_PER_US, **told}
    low, middle, high = (float(value) / _NS_PER_US for value in np.quantile(each, (0.25, 0.5, 0.75)))
    return {"us": middle, **told, "q1_us": low, "q3_us": high}


def _whole_steps(own: Sequence[StageAmounts]) -> NDArray[np.int64]:
    """Places, rank by rank, of the steps that every rank recorded whole and kept: [ranks, steps]."""
    shared = own[0].numbers
    for one in own[1:]:
        shared = np.intersect1d(shared, one.numbers)
    places = [np.argsort(one.numbers)[np.searchsorted(np.sort(one.numbers), shared)] for one in own]
    return np.array(places, np.int64).reshape(len(own), -1)
