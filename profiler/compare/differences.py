"""What differs between two sides, and whether it is more than their steps scatter; nothing is divided that may not be.

Noise is that of the steps inside each run. It does not tell how far two runs of the same program differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias, TypeVar

from moescope.profiler.compare.sides import Measure, Side, side_of

Verdict: TypeAlias = Literal["beyond", "within", "unknown"]
"""Whether a difference is beyond what steps scatter, within it, or no scatter is known."""

FEWEST: Final = 4
"""Steps on both sides from which on the scatter of a median is told."""

_NOTCH: Final = 1.57
_Z: Final = 1.96
_K = TypeVar("_K")
LOW_COVERAGE: Final = 0.1


@dataclass(frozen=True, slots=True)
class Difference:
    """One figure on both sides.

    change_us: b - a, None where times may not be compared or one is not known; relative: of a, None also where a is 0;
    points: change of the share of the time looked at; noise_us: what steps scatter, half the width of an interval that
    holds about 95 %; verdict: of change_us against it
    """

    a: Measure
    b: Measure
    change_us: float | None
    relative: float | None
    points: float | None
    noise_us: float | None
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides.

    per_step: figures are of a step, else of the whole source; forbidden: why the two may not be compared, empty where
    they may; untimed: why times may not be although shares may; notes: what to keep in mind; figures, phases,
    operators: by the keys of `Side`, those that either side has; overlap_points: b - a of the overlapped share
    """

    a: Side
    b: Side
    per_step: bool
    forbidden: tuple[str, ...]
    untimed: str
    notes: tuple[str, ...]
    figures: Mapping[str, Difference]
    phases: Mapping[tuple[str, str], Difference]
    operators: Mapping[tuple[str, str], Difference]
    overlap_points: float | None


def compare(a: dict[str, Any], b: dict[str, Any]) -> Comparison:
    """Compare two answers of `summary --json`.

    Raises NoData where one has no device time.
    """
    sides = side_of(a), side_of(b)
    one_sided = bool(sides[0].steps) != bool(sides[1].steps)
    if one_sided:
        sides = side_of(a, whole=True), side_of(b, whole=True)
    elif sides[0].medians != sides[1].medians:
        sides = side_of(a, shares=True), side_of(b, shares=True)
    left, right = sides
    forbidden = tuple(_forbidden(left, right))
    untimed = "only one of them has steps: times of runs of different length tell nothing" if one_sided else ""
    timed = not forbidden and not untimed
    shared = not forbidden
    absent = Measure(0.0, 0.0, count=0)

    def rows(of_a: Mapping[_K, Measure], of_b: Mapping[_K, Measure], missing: Measure) -> dict[_K, Difference]:
        keys = dict.fromkeys([*of_a, *of_b])
        return {key: _difference(of_a.get(key, missing), of_b.get(key, missing), timed, shared) for key in keys}

    both_known = left.overlap is not None and right.overlap is not None and shared
    return Comparison(
        a=left,
        b=right,
        per_step=left.steps > 0,
        forbidden=forbidden,
        untimed=untimed,
        notes=tuple(_notes(left, right)),
        figures=rows(left.figures, right.figures, Measure(None, None)),
        phases=rows(left.phases, right.phases, Measure(None, None)),
        operators=rows(left.operators, right.operators, absent),
        overlap_points=(right.overlap or 0) - (left.overlap or 0) if both_known else None,
    )


def _difference(a: Measure, b: Measure, timed: bool, shared: bool) -> Difference:
    known = a.us is not None and b.us is not None
    change = (b.us or 0.0) - (a.us or 0.0) if known and timed else None
    relative = change / a.us if change is not None and a.us else None
    points = b.share - a.share if shared and a.share is not None and b.share is not None else None
    noise = noise_us(a, b) if change is not None else None
    if noise is None or change is None:
        return Difference(a, b, change, relative, points, noise, "unknown")
    return Difference(a, b, change, relative, points, noise, "beyond" if abs(change) > noise else "within")


def noise_us(a: Measure, b: Measure) -> float | None:
    """How far two figures differ by the scatter of their steps alone, about 95 % of the time; None where not known.

    Of medians, the sum of the notches 1.57 (q3 - q1) / sqrt(n) (McGill, Tukey and Larsen, Variations of Box Plots,
    1978); of shares times a step, 1.96 standard errors of the difference, those of the steps included.
    """
    spreads = [_notch(one) for one in (a, b)]
    if all(one is not None for one in spreads):
        return sum(one for one in spreads if one is not None)
    if a.error_us is not None and b.error_us is not None:
        return _Z * math.hypot(a.error_us, b.error_us)
    return None


def _notch(one: Measure) -> float | None:
    if one.q1_us is None or one.q3_us is None or one.count < FEWEST:
        return None
    return _NOTCH * (one.q3_us - one.q1_us) / math.sqrt(one.count)


def _forbidden(a: Side, b: Side) -> Iterator[str]:
    """What makes two runs too different for their quotient to mean anything."""
    if a.hardware and b.hardware and a.hardware != b.hardware:
        yield f"different devices: {_list(a.hardware)} and {_list(b.hardware)}"
    elif a.units and b.units and a.units != b.units:
        yield f"different devices: {_list(a.units)} and {_list(b.units)}"
    if a.ranks != b.ranks:
        yield f"different numbers of ranks: {a.ranks} and {b.ranks}"
    elif a.devices != b.devices:
        yield f"different numbers of devices: {a.devices} and {b.devices}"
    if a.stage and b.stage and a.stage != b.stage:
        yield f"different stages: {a.stage} and {b.stage}"


def _notes(a: Side, b: Side) -> Iterator[str]:
    if not a.steps and not b.steps:
        yield "Neither is compared by steps: times are of whole sources, so they differ where these differ in length."
        if "step" in a.figures and "step" in b.figures:
            yield "A step is the median decode step of the slowest rank, as the summary finds it."
    if bool(a.stage) != bool(b.stage) and (a.steps and b.steps):
        yield f"Only {'A' if a.stage else 'B'} tells its stage ({a.stage or b.stage})."
    if bool(a.hardware) != bool(b.hardware):
        yield f"Only {'A' if a.hardware else 'B'} tells its device ({_list(a.hardware or b.hardware)})."
    if a.evidence != b.evidence:
        yield f"Evidence differs: times are {a.evidence} in A and {b.evidence} in B."
    for letter, side in (("A", a), ("B", b)):
        if side.state in ("live", "torn"):
            how = "is still being recorded" if side.state == "live" else "was cut short"
            yield f"WARNING: {letter} {how}: figures are of what there is."
        if side.dropped:
            yield f"WARNING: {side.dropped} events of {letter} were dropped."
        if side.coverage < LOW_COVERAGE:
            recorded = f"Operators were recorded {side.coverage:.1%} of the time in {letter}"
            yield f"{recorded}: shares are of that, times stand for all of it."
        unknown = side.figures["unknown"].share
        if unknown is not None and unknown >= 0.01:
            yield f"WARNING: {unknown:.1%} of the time of {letter} is in kernels that no rule knows: see --rules."


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
