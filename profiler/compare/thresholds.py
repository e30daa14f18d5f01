"""The grammar of `--fail-if`, and what it says of a comparison: METRIC > or < AMOUNT.

    exposed>+1%   step>+100us   overlap<-2pp   phase:dispatch(F)/exposed>3ms   operator:all_to_all>20%

A signed amount is a change from A to B: `%` of A, a time, or `pp`, points of a share. One without a sign is B itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

from moescope.profiler.compare.differences import Comparison, Difference
from moescope.profiler.compare.sides import FIGURES, PHASE_FIGURES, Measure
from moescope.profiler.errors import UsageProblem

Unit: TypeAlias = Literal["%", "pp", "us"]

_UNITS: Final = {"ns": 1e-3, "us": 1.0, "µs": 1.0, "μs": 1.0, "ms": 1e3, "s": 1e6}
_AMOUNT: Final = re.compile(r"([+-]?)(\d+(?:\.\d+)?|\.\d+)\s*(%|pp|ns|us|µs|μs|ms|s)")
_PLAIN: Final = ("step", "span", *FIGURES, "overlap")
ALLOWED: Final = (
    "give METRIC>AMOUNT or METRIC<AMOUNT. METRIC: step, exposed, comm, overlapped, compute, memory, idle, busy, "
    "unknown, span, overlap, operator:CLASS, phase:NAME, phase:NAME/exposed, phase:NAME/comm. AMOUNT: a change from A, "
    "+1% -1% (of A) +100us +2ms -1s, or +1pp -1pp (points of a share), or without a sign what B may be, "
    "100us or 5% (of the step)"
)


@dataclass(frozen=True, slots=True)
class Threshold:
    """One condition that fails the comparison.

    text: as given; metric: (figure,), ("overlap",), ("operator", class) or ("phase", name, figure); above: fails where
    the value is greater, else where it is less; change: of the change from A, else of B; amount: share, points as a
    share, or µs
    """

    text: str
    metric: tuple[str, ...]
    above: bool
    change: bool
    amount: float
    unit: Unit


@dataclass(frozen=True, slots=True)
class Judged:
    """What a threshold says. value: in the threshold's unit; failed: None with the reason where it cannot be told"""

    threshold: Threshold
    a: float | None
    b: float | None
    value: float | None
    failed: bool | None
    reason: str
    within_noise: bool


def parse_threshold(text: str) -> Threshold:
    """A threshold from its text.

    Raises UsageProblem, which shows what is allowed.
    """
    at = max(text.rfind(">"), text.rfind("<"))
    if at < 0:
        raise _wrong(text, "has neither > nor <")
    name, amount = text[:at].strip(), text[at + 1 :].strip()
    metric = _metric(text, name)
    match = _AMOUNT.fullmatch(amount)
    if match is None:
        raise _wrong(text, f"{amount!r} is no amount" if amount else "has no amount")
    sign, digits, unit = match.groups()
    value = float(digits) * (-1 if sign == "-" else 1)
    if unit == "pp" and not sign:
        raise _wrong(text, "points are a change: give them a sign")
    if metric == ("overlap",) and unit in _UNITS:
        raise _wrong(text, "overlap is a share, and no time: overlapped is the time")
    if metric in (("step",), ("span",)) and (unit == "pp" or (unit == "%" and not sign)):
        raise _wrong(text, f"{name} is no share of anything")
    if unit in _UNITS:
        return Threshold(text, metric, text[at] == ">", bool(sign), value * _UNITS[unit], "us")
    return Threshold(text, metric, text[at] == ">", bool(sign), value / 100, "pp" if unit == "pp" else "%")


def _metric(text: str, name: str) -> tuple[str, ...]:
    kind, colon, rest = name.partition(":")
    if not colon:
        if name not in _PLAIN:
            raise _wrong(text, f"{name!r} is no metric" if name else "has no metric")
        return (name,)
    if kind not in ("phase", "operator") or not rest:
        raise _wrong(text, f"{name!r} is no metric")
    if kind == "operator":
        return (kind, rest)
    whole, slash, figure = rest.rpartition("/")
    return (kind, whole, figure) if slash and whole and figure in PHASE_FIGURES else (kind, rest, "busy")


def _wrong(text: str, what: str) -> UsageProblem:
    return UsageProblem(f"--fail-if {text!r}: {what}; {ALLOWED}")


def judge(threshold: Threshold, found: Comparison) -> Judged:
    """Whether a comparison fails a threshold."""
    if threshold.metric == ("overlap",):
        return _judge_overlap(threshold, found)
    row = _row(threshold.metric, found)
    if isinstance(row, str):
        return Judged(threshold, None, None, None, None, row, False)
    a, b = (_value(one, threshold) for one in (row.a, row.b))
    if not threshold.change:
        return _judged(threshold, a, b, b, "it is not known in B")
    if found.forbidden:
        return Judged(threshold, a, b, None, None, "; ".join(found.forbidden), False)
    if threshold.unit == "pp":
        return _judged(threshold, a, b, row.points, "its share is not known in both")
    value = row.change_us
    if threshold.unit == "%" and value is not None:
        value = _relative(value, row.a.us or 0.0)
    why = found.untimed or "it is not known in both"
    return _judged(threshold, a, b, value, why, row.verdict == "within")


def _relative(change: float, a: float) -> float:
    if a:
        return change / a
    return float("inf") if change > 0 else 0.0


def _value(one: Measure, threshold: Threshold) -> float | None:
    """A side's own value, a share where the threshold is of shares, else µs."""
    share = threshold.unit == "pp" or (threshold.unit == "%" and not threshold.change)
    return one.share if share else one.us


def _row(metric: tuple[str, ...], found: Comparison) -> Difference | str:
    """The figure that a metric names, or why there is none."""
    if metric[0] == "operator":
        rows = [row for (name, _), row in found.operators.items() if name == metric[1]]
        if not rows:
            return f"neither has an operator {metric[1]}: there are {_some(name for name, _ in found.operators)}"
        return rows[0] if len(rows) == 1 else _added(rows)
    if metric[0] == "phase":
        key = (metric[1], metric[2])
        row = found.phases.get(key)
        if row is not None and row.a.us is not None and row.b.us is not None:
            return row
        if row is None and any(name == metric[1] for name, _ in found.phases):
            return "without steps only a phase's /comm and /exposed are known"
        where = "neither tells" if row is None else "B does not tell" if row.b.us is None else "A does not tell"
        return f"{where} a phase {metric[1]}: there are {_some(name for name, _ in found.phases)}"
    row = found.figures.get(metric[0])
    if row is not None:
        return row
    return "figures are of steps: take step" if metric == ("span",) else found.untimed or "neither tells its steps"


def _some(names: object) -> str:
    listed = list(dict.fromkeys(names))  # type: ignore[call-overload]
    return ", ".join(listed[:12]) + (" …" if len(listed) > 12 else "") if listed else "none"


def _added(rows: list[Difference]) -> Difference:
    """Kinds of one operator together; their scatter is not known."""

    def total(values: list[float | None]) -> float | None:
        return sum(value or 0.0 for value in values) if all(value is not None for value in values) else None

    a, b = (
        Measure(total([one.us for one in side]), total([one.share for one in side]))
        for side in ([row.a for row in rows], [row.b for row in rows])
    )
    change, points = total([row.change_us for row in rows]), total([row.points for row in rows])
    return Difference(a, b, change, change / a.us if change is not None and a.us else None, points, None, "unknown")


def _judge_overlap(threshold: Threshold, found: Comparison) -> Judged:
    a, b = found.a.overlap, found.b.overlap
    if not threshold.change:
        return _judged(threshold, a, b, b, f"not known in B: {found.b.overlap_reason}")
    if found.forbidden:
        return Judged(threshold, a, b, None, None, "; ".join(found.forbidden), False)
    value = found.overlap_points
    if threshold.unit == "%" and value is not None:
        value = _relative(value, a or 0.0)
    side, reason = ("A", found.a.overlap_reason) if a is None else ("B", found.b.overlap_reason)
    return _judged(threshold, a, b, value, f"not known in {side}: {reason}")


def _judged(
    threshold: Threshold, a: float | None, b: float | None, value: float | None, why: str, within: bool = False
) -> Judged:
    if value is None:
        return Judged(threshold, a, b, None, None, why, False)
    failed = value > threshold.amount if threshold.above else value < threshold.amount
    return Judged(threshold, a, b, value, failed, "", within)
