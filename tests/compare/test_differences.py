"""Two runs are compared by what is alike, noise is told from change, and nothing is divided that may not be."""

from __future__ import annotations

import io
import json
import random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from moescope.profiler.compare.answer import comparison_json
from moescope.profiler.compare.differences import compare
from moescope.profiler.compare.sides import kept_summary
from moescope.profiler.compare.text import headline, render_comparison
from moescope.profiler.compare.thresholds import judge, parse_threshold
from moescope.profiler.errors import MoescopeError, UsageProblem
from moescope.profiler.summary.answer import summarise
from tests.compare.runs import US, run, summary
from tests.live_recording import window


def _steps(count: int, compute: int, exposed: int, idle: int, scatter: int = 0, seed: int = 0) -> list[Any]:
    draw = random.Random(seed)
    return [(compute, exposed + (draw.randint(-scatter, scatter) if scatter else 0), idle) for _ in range(count)]


def test_a_step_is_compared_whatever_the_runs_lengths() -> None:
    found = compare(summary(_steps(8, 60, 20, 20)), summary(_steps(31, 60, 30, 20)))
    assert found.per_step
    for name, a, b in (("step", 100, 110), ("exposed", 20, 30), ("compute", 60, 60), ("idle", 20, 20)):
        row = found.figures[name]
        assert (row.a.us, row.b.us) == (pytest.approx(a), pytest.approx(b)), name
        assert row.change_us == pytest.approx(b - a), name
    assert found.figures["exposed"].relative == pytest.approx(0.5)
    assert found.phases["dispatch(F)", "exposed"].change_us == pytest.approx(10)
    assert found.operators["all_to_all", "comm"].change_us == pytest.approx(10)
    assert "10.0% longer" in headline(found)


def test_steps_that_scatter_as_much_are_noise_and_a_greater_change_is_not() -> None:
    a, b = (summary(_steps(40, 60, 20, 20, 8, seed)) for seed in (1, 2))
    assert compare(a, b).figures["exposed"].verdict == "within"
    moved = summary(_steps(40, 60, 30, 20, 8, 3))
    assert compare(a, moved).figures["exposed"].verdict == "beyond"
    few = compare(summary(_steps(3, 60, 20, 20)), summary(_steps(3, 60, 25, 20)))
    assert few.figures["exposed"].verdict == "unknown"


@pytest.mark.parametrize(
    ("more", "word"),
    [({"ranks": 2}, "ranks"), ({"stage": "decode"}, "stages"), ({"device": "Other CPU"}, "devices")],
)
def test_what_cannot_be_compared_has_no_difference_and_fails_no_threshold_in_silence(
    more: dict[str, Any], word: str
) -> None:
    found = compare(summary(_steps(5, 60, 20, 20)), summary(_steps(5, 60, 30, 20), **more))
    assert any(word in reason for reason in found.forbidden)
    rows = [*found.figures.values(), *found.phases.values(), *found.operators.values()]
    assert all(row.change_us is None and row.relative is None and row.points is None for row in rows)
    for text in ("exposed>+1%", "exposed>+1us", "exposed>+1pp", "overlap<-1pp"):
        judged = judge(parse_threshold(text), found)
        assert judged.failed is None
        assert word in judged.reason
    assert judge(parse_threshold("exposed>25us"), found).failed is True


def test_where_one_has_no_steps_only_shares_are_compared_and_that_is_said() -> None:
    found = compare(summary(_steps(10, 60, 20, 20)), summary(_steps(20, 60, 40, 20), told=False))
    assert not found.per_step
    assert found.untimed
    exposed = found.figures["exposed"]
    # The last idle stretch lies behind the last kernel, so it is part of neither source.
    assert exposed.change_us is None
    assert exposed.points == pytest.approx(800 / 2380 - 200 / 980)
    assert judge(parse_threshold("exposed>+1%"), found).failed is None
    assert judge(parse_threshold("exposed>+5pp"), found).failed is True


def test_sources_without_steps_are_compared_as_wholes_and_that_is_said() -> None:
    found = compare(summary(_steps(10, 60, 20, 20), told=False), summary(_steps(10, 60, 40, 20), told=False))
    assert found.figures["exposed"].change_us == pytest.approx(200)
    assert any("whole sources" in note for note in found.notes)
    assert judge(parse_threshold("step>+1%"), found).failed is None
    assert judge(parse_threshold("phase:dispatch(F)/exposed>+199us"), found).failed is True


@pytest.mark.parametrize(
    ("text", "failed"),
    [
        ("exposed>+49%", True), ("exposed>+51%", False), ("exposed>+9us", True), ("exposed > +0.011ms", False),
        ("exposed<+49%", False), ("step>+9%", True), ("step>+10.1%", False), ("step>109us", True),
        ("step>111us", False),
        ("exposed>27%", True), ("exposed>28%", False), ("exposed>+7pp", True), ("exposed>+8pp", False),
        ("idle<+1us", True), ("overlap<-1pp", False), ("overlap<1%", True), ("operator:all_to_all>+49%", True),
        ("operator:gemm>+0%", False), ("phase:dispatch(F)>+49%", True), ("phase:dispatch(F)/exposed<29us", False),
        ("overlapped>+0%", False),
    ],
)  # fmt: skip
def test_thresholds_fail_where_they_are_crossed(text: str, failed: bool) -> None:
    """A step of 60 compute, 20 exposed and 20 idle becomes one of 60, 30 and 20."""
    found = compare(summary(_steps(5, 60, 20, 20)), summary(_steps(5, 60, 30, 20)))
    assert judge(parse_threshold(text), found).failed is failed


def test_what_a_threshold_names_and_neither_side_has_is_told_and_does_not_pass() -> None:
    found = compare(summary(_steps(5, 60, 20, 20)), summary(_steps(5, 60, 0, 20)))
    for text, words in (
        ("phase:nowhere>+1%", "dispatch(F)"),
        ("phase:dispatch(F)>+1%", "B does not tell"),
        ("operator:nothing>+1%", "gemm"),
        ("overlap<50%", "no communication"),
    ):
        judged = judge(parse_threshold(text), found)
        assert judged.failed is None
        assert words in judged.reason
    assert judge(parse_threshold("operator:all_to_all>+1%"), found).failed is False
    back = compare(summary(_steps(5, 60, 0, 20)), summary(_steps(5, 60, 20, 20)))
    assert judge(parse_threshold("exposed>+1000%"), back).failed is True


@pytest.mark.parametrize(
    "text",
    ["", "exposed", ">", "exposed>", ">+1%", "exposure>+1%", "exposed>+1", "exposed>+1min", "exposed>1pp",
     "exposed>--1%", "step>5%", "overlap>1ms", "phase:>+1%", "kind:comm>+1%", "exposed=+1%", "exposed>+1%>",
     "exposed>1e3us", "step>nan%"],
)  # fmt: skip
def test_what_is_no_threshold_is_told_with_what_is_allowed(text: str) -> None:
    with pytest.raises(UsageProblem, match="METRIC>AMOUNT"):
        parse_threshold(text)


def test_names_of_phases_may_hold_what_the_grammar_uses() -> None:
    threshold = parse_threshold("phase:a>b/c<d>+1.5ms")
    assert (threshold.metric, threshold.above, threshold.amount) == (("phase", "a>b/c<d", "busy"), True, 1500.0)


def test_a_kept_summary_takes_the_place_of_its_source(tmp_path: Any) -> None:
    a, b = summary(_steps(6, 60, 20, 20, 5, 1)), summary(_steps(9, 60, 25, 20, 5, 2))
    kept = tmp_path / "baseline.json"
    kept.write_text(json.dumps(a))
    read = kept_summary(kept)
    assert read is not None
    assert comparison_json(compare(read, b), []) == comparison_json(compare(a, b), [])
    kept.write_text(json.dumps(a)[:2000])
    with pytest.raises(MoescopeError, match=r"baseline\.json"):
        kept_summary(kept)
    kept.write_text(json.dumps({key: a[key] for key in ("schema", "source", "total")}))
    with pytest.raises(MoescopeError, match="no whole summary"):
        kept_summary(kept)
    kept.write_text('{"schemaVersion": 1, "traceEvents": []}')
    assert kept_summary(kept) is None


def test_steps_seen_in_part_tell_shares_and_how_far_these_scatter() -> None:
    """Windows of 40 µs at each step's end: half of its time, with the exposed part and what idles."""
    sides = []
    for seed, exposed in ((1, 20), (2, 20), (3, 35)):
        steps = _steps(40, 60 - exposed + 20, exposed, 20, 5, seed)
        source = run(steps)
        rows = source.table("steps").to_pylist()
        source.add("windows", [window(row["start_ns"] + row["dur_ns"] - 50 * US, 50 * US) for row in rows])
        sides.append(summarise(source))
    same, moved = compare(sides[0], sides[1]), compare(sides[0], sides[2])
    assert not same.a.medians
    assert same.figures["exposed"].verdict == "within"
    assert moved.figures["exposed"].verdict == "beyond"
    assert same.figures["exposed"].a.share == pytest.approx(20 / 50, rel=0.1)


WHOLE = summary([(60, 20, 20)] * 5)
ODD = st.sampled_from([None, "x", -1, 1e308, float("nan"), float("inf"), True, [], {}, 10**400])


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))][1 if not path else 0 :]


PLACES = _places(WHOLE)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.sampled_from(PLACES), ODD), min_size=1, max_size=2))
def test_a_damaged_summary_is_compared_or_refused_in_one_line(tmp_path: Any, damage: list[Any]) -> None:
    hurt = json.loads(json.dumps(WHOLE))
    for place, value in damage:
        into = hurt
        for key in place[:-1]:
            into = into[key] if (isinstance(into, dict) and key in into) or (isinstance(into, list) and into) else None
        if isinstance(into, (dict, list)) and (isinstance(into, dict) or len(into) > place[-1]):
            into[place[-1]] = value
    (tmp_path / "hurt.json").write_text(json.dumps(hurt))
    said, read = "", None
    try:
        read = kept_summary(tmp_path / "hurt.json")
    except MoescopeError as refused:
        said = str(refused)
    assert "\n" not in said
    if read is not None:
        for found in (compare(read, WHOLE), compare(WHOLE, read)):
            judged = [judge(parse_threshold(text), found) for text in ("exposed>+1%", "overlap<-1pp", "step>+1us")]
            json.dumps(comparison_json(found, judged), allow_nan=False)
            render_comparison(found, judged, Console(file=io.StringIO(), width=100))
