"""One side of a comparison: the figures of a summary by name, per step where it has steps, else of the whole source.

summary -> side: figures, phases, operators, each a `Measure` of the mean device; facts that must agree.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from moescope.profiler.errors import MoescopeError, NoData

FIGURES: Final = ("busy", "compute", "comm", "overlapped", "exposed", "memory", "unknown", "idle")
PHASE_FIGURES: Final = ("busy", "comm", "exposed")
_SUMMARY: Final = re.compile(rb'\s*\{\s*"schema"\s*:\s*1\s*,\s*"source"\s*:')
_MEDIAN_ERROR: Final = 0.93
"""A median's standard error over its quartiles' distance / root of the count: 1.25 / 1.35 for a normal scatter."""
_MOST: Final = 1e18
"""No figure is greater: µs of thirty thousand years."""
_TOTALS: Final = {"comm": "comm_us", "exposed": "exposed_comm_us"}


@dataclass(frozen=True, slots=True)
class Measure:
    """One figure of the mean device.

    us: µs a step or of the whole source, None where it is not known; share: of the time looked at, 0..1; error_us:
    standard error of a share's time; q1_us, q3_us, count: quartiles over so many steps; None or 0 where there are none
    """

    us: float | None
    share: float | None
    error_us: float | None = None
    q1_us: float | None = None
    q3_us: float | None = None
    count: int = 0


@dataclass(frozen=True, slots=True)
class Side:
    """One source.

    hardware: names of its devices, empty where it does not tell; units: execution units of each; steps: how many, 0
    where figures are of the whole source; medians: whether figures are medians over steps; figures: by name, `step`
    among them where there are steps; overlap: overlapped share of communication, None with overlap_reason; phases: by
    name and figure; operators: busy time by class and kind; evidence, state, coverage, dropped: as the summary has them
    """

    name: str
    ranks: int
    devices: int
    hardware: tuple[str, ...]
    units: tuple[str, ...]
    stage: str | None
    steps: int
    medians: bool
    figures: Mapping[str, Measure]
    overlap: float | None
    overlap_reason: str
    phases: Mapping[tuple[str, str], Measure]
    operators: Mapping[tuple[str, str], Measure]
    evidence: str
    state: str
    coverage: float
    dropped: int


def kept_summary(path: Path) -> dict[str, Any] | None:
    """What `summary --json` wrote into this file; None where it is something else.

    Raises MoescopeError for a summary that is damaged or of an earlier version.
    """
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        if not _SUMMARY.match(file.read(256)):
            return None
    try:
        summary = json.loads(path.read_bytes())
        for whole in (False, True):
            _check(side_of(summary, whole=whole))
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as problem:
        raise MoescopeError(
            f"{path}: no whole summary ({type(problem).__name__}: {problem}); write it again with "
            "`moescope summary SOURCE --json`"
        ) from problem
    assert isinstance(summary, dict)
    return summary


def side_of(summary: dict[str, Any], *, whole: bool = False, shares: bool = False) -> Side:
    """The side that a summary is.

    whole: of the whole source even where there are steps; shares: by shares of the recorded time even where medians
    over steps are known. Raises NoData for a summary without device time.
    """
    ranks, total = summary["ranks"], summary["total"]
    if not ranks or not total["span_us"]:
        raise NoData(f"{summary['source']}: its kernels take no time: there is nothing to compare")
    steps = summary["steps"]
    typical = steps and steps.get("typical")
    per_step = bool(typical) and not whole
    held = _of_steps(steps, shares) if per_step else _of_whole(summary)
    overlap = (steps if per_step else total)["overlap_fraction"]
    reason = (steps if per_step else total).get("overlap_fraction_reason", "")
    return Side(
        name=summary["source"],
        ranks=len({rank["rank"] for rank in ranks}),
        devices=len(ranks),
        hardware=tuple(sorted({rank.get("hardware") for rank in ranks} - {None})),
        units=tuple(
            sorted({f"{rank['units']['total']} {rank['units']['kind']}s" for rank in ranks if rank["units"]["total"]})
        ),
        stage=steps["stage"] if steps else None,
        steps=steps["count"] if per_step else 0,
        medians=held.medians,
        figures=held.figures,
        overlap=overlap,
        overlap_reason=reason,
        phases=held.phases,
        operators=held.operators,
        evidence=summary["evidence"],
        state=summary["state"],
        coverage=summary["coverage"],
        dropped=summary["dropped_events"],
    )


def _check(side: Side) -> None:
    """Raises ValueError where a file holds something else than a figure or a name."""
    measures = [*side.figures.values(), *side.phases.values(), *side.operators.values()]
    needed = [side.coverage, side.dropped, side.steps, *(one.us for one in measures), *(one.count for one in measures)]
    if None in needed:
        raise ValueError("a figure is missing")
    also = [value for one in measures for value in (one.share, one.error_us, one.q1_us, one.q3_us)]
    for value in (*needed, *also, side.overlap):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number and 0 <= value <= _MOST):
            raise ValueError(f"{str(value)[:40]!r} is no figure")
    names = [side.name, side.evidence, side.state, side.overlap_reason, *side.hardware, *side.units]
    names += [*(word for key in (*side.phases, *side.operators) for word in key), *([side.stage] if side.stage else [])]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"{str(name)[:40]!r} is no name")


@dataclass(frozen=True, slots=True)
class _Held:
    medians: bool
    figures: dict[str, Measure]
    phases: dict[tuple[str, str], Measure]
    operators: dict[tuple[str, str], Measure]


def _of_steps(steps: dict[str, Any], shares: bool) -> _Held:
    typical, median, count = steps["typical"], steps["median_us"], steps["typical"]["whole_steps"]
    median_error = _MEDIAN_ERROR * (steps["q3_us"] - steps["q1_us"]) / math.sqrt(steps["count"])
    medians = "q1_us" in typical["figures"]["busy"] and not shares

    def measure(row: dict[str, Any]) -> Measure:
        if medians:
            return Measure(row["us"], row["share"], None, row["q1_us"], row["q3_us"], count)
        error = row.get("share_error")
        error_us = None if error is None else math.hypot(error * median, row["share"] * median_error)
        return Measure(row["share"] * median, row["share"], error_us)

    step = Measure(median, 1.0, None, steps["q1_us"], steps["q3_us"], steps["count"])
    return _Held(
        medians=medians,
        figures={"step": step} | {name: measure(typical["figures"][name]) for name in FIGURES},
        phases={(row["name"], figure): measure(row[figure]) for row in typical["phases"] for figure in PHASE_FIGURES},
        operators={(row["class"], row["kind"]): measure(row["busy"]) for row in typical["operators"]},
    )


def _of_whole(summary: dict[str, Any]) -> _Held:
    """Sums over devices, as the mean device's; where a part of the time was recorded, it stands for all of it."""
    ranks, total = summary["ranks"], summary["total"]
    each = len(ranks) * (summary["coverage"] if 0 < summary["coverage"] < 1 else 1.0)

    def summed(rows: Sequence[dict[str, Any]], key: Callable[[dict[str, Any]], Any], value: str) -> dict[Any, Measure]:
        sums: dict[Any, float] = {}
        for row in rows:
            sums[key(row)] = sums.get(key(row), 0) + row[value]
        return {name: Measure(us / each, us / total["span_us"]) for name, us in sums.items()}

    phases: dict[tuple[str, str], Measure] = {}
    rows = [row for rank in ranks for row in rank["phases"]]
    for figure, value in _TOTALS.items():
        phases |= {(name, figure): one for name, one in summed(rows, lambda row: row["name"], value).items()}
    operators = [row for rank in ranks for row in rank["operators"]]
    names = {name: _TOTALS.get(name, f"{name}_us") for name in FIGURES}
    return _Held(
        medians=False,
        figures={"span": Measure(total["span_us"] / each, 1.0)}
        | _decode_step(ranks)
        | {name: Measure(total[key] / each, total[key] / total["span_us"]) for name, key in names.items()},
        phases=phases,
        operators=summed(operators, lambda row: (row["class"], row["kind"]), "busy_us"),
    )


def _decode_step(ranks: Sequence[dict[str, Any]]) -> dict[str, Measure]:
    """The median decode step of the slowest rank, where every rank tells or lets infer its steps."""
    steps = [rank["decode"]["step_us"] for rank in ranks if rank.get("decode") is not None]
    return {"step": Measure(max(steps), None)} if steps and len(steps) == len(ranks) else {}
