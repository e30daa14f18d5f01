"""How much of the time windows take, and which steps they are."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from moescope.collectors.agent.pace import (
    EARLY_LEFT,
    EARLY_WINDOWS,
    FIRST_SHARE,
    JUMP,
    LEAST_LEFT,
    LEAST_NS,
    SAFETY,
    STEPS_PART,
    Pace,
    Steps,
    left_of,
    steps_share,
)

WINDOW_NS = 25_000_000
AVAILABLE = 0.004


def test_the_first_share_is_a_guess_and_what_windows_cost_takes_its_place() -> None:
    pace = Pace()
    assert abs(pace.share(AVAILABLE) - FIRST_SHARE) < 1e-9
    for _ in range(300):
        pace.window(WINDOW_NS // 50, WINDOW_NS)
    assert abs(pace.share(AVAILABLE) / (AVAILABLE / 0.02) - 1) < 0.05


def test_windows_that_cost_nothing_may_take_all_of_the_time() -> None:
    pace = Pace()
    for _ in range(200):
        pace.window(0, 500_000_000)
    assert pace.share(AVAILABLE) == 1.0


@given(st.integers(2, 12), st.floats(0.005, 0.05))
def test_the_share_does_not_follow_what_the_program_does_at_the_moment(each: int, dense: float) -> None:
    """Busy and waiting by turns, as a loop over data does: windows last as long in either."""
    pace, seen = Pace(), {True: [], False: []}  # type: ignore[var-annotated]
    for at in range(400):
        busy = at // each % 2 == 0
        if at >= 100:
            seen[busy].append(pace.share(AVAILABLE))
        pace.window(int(WINDOW_NS * dense) if busy else 0, WINDOW_NS)
    means = [sum(shares) / len(shares) for shares in seen.values()]
    assert max(means) / min(means) < 1.35


def test_much_dearer_windows_are_heeded_at_once() -> None:
    pace = Pace()
    for _ in range(200):
        pace.window(0, WINDOW_NS)
    pace.window(WINDOW_NS // 5, WINDOW_NS)
    assert pace.share(AVAILABLE) <= JUMP * AVAILABLE / 0.2


def _chosen(share: float, count: int, step_ns: int = 10 * LEAST_NS, first: int = 0) -> list[int]:
    steps, found = Steps(), []
    for at in range(4):
        steps.begin(at * step_ns, first + at)
    steps.pick(share)
    for at in range(4, count + 4):
        steps.begin(at * step_ns, first + at)
        if steps.chosen():
            found.append(first + at)
    return found


@given(st.floats(0.02, 1.0))
def test_chosen_steps_are_spread_evenly(share: float) -> None:
    found = _chosen(share, 2000, 1000 * LEAST_NS)
    assert abs(len(found) / 2000 - share) < 0.005
    assert max(b - a for a, b in pairwise(found)) <= 2.1 / share + 1


@given(st.floats(0.02, 1.0), st.floats(0.02, 1.0), st.integers(0, 300))
def test_a_rank_that_may_record_more_records_what_the_other_does_too(one: float, other: float, first: int) -> None:
    """Wherever in the run each began to be recorded, and though steps last a little longer on one."""
    less = _chosen(min(one, other), 500)
    more = _chosen(max(one, other), 600, round(10.1 * LEAST_NS), first)
    assert {at for at in less if at >= first + 4} <= set(more) | {at for at in less if at >= first + 604}


def test_windows_of_short_steps_begin_as_often_as_their_length_allows() -> None:
    step_ns = LEAST_NS // 6
    found = _chosen(0.1, 60_000, step_ns)
    # Each lasts to the first step that begins ten milliseconds later.
    assert abs(len(found) * (LEAST_NS + step_ns / 2) / (60_000 * step_ns) - 0.1) < 0.01


@given(st.integers(2, 16))
def test_chosen_steps_are_in_step_with_no_period(period: int) -> None:
    """Every so-manieth step is another (it evaluates, it saves): as many of those are recorded as of all."""
    found = _chosen(0.125, 8000, 1000 * LEAST_NS)
    special = sum(at % period == 0 for at in found)
    assert abs(special / len(found) - 1 / period) < 0.02


def test_steps_that_bear_one_number_are_counted() -> None:
    steps = Steps()
    for at in range(4):
        steps.begin(at * LEAST_NS, 0)
    steps.pick(0.2)
    chosen = 0
    for at in range(4, 1004):
        steps.begin(at * LEAST_NS, 0)
        chosen += steps.chosen()
    assert 100 < chosen < 200


def test_steps_flow_until_one_lasts_much_longer_than_the_others() -> None:
    steps = Steps()
    assert steps.usual_ns() is None
    for at in range(6):
        steps.begin(at * 100, at)
    assert steps.usual_ns() == 100
    assert steps.flow(550)
    assert not steps.flow(900)
    steps.begin(1000, 6)
    assert steps.flow(1050)


def test_steps_have_all_windows_where_they_are_short_and_none_where_they_are_long() -> None:
    assert steps_share(0.1, 0.04) == 0.1
    assert steps_share(0.1, 0.2) == 0.1 * STEPS_PART
    assert steps_share(0.1, 3.0) == 0.0
    # Several very short ones make a window, and it is as many of those as are affordable.
    assert steps_share(0.01, 0.0001) == 0.01 * STEPS_PART


def test_windows_have_a_part_of_the_budget_whatever_else_costs_and_more_of_it_at_first() -> None:
    budget = 0.02
    assert left_of(budget, 0.0, 0) == left_of(budget, 0.0, EARLY_WINDOWS) == SAFETY * budget
    assert left_of(budget, 1.0, EARLY_WINDOWS - 1) == EARLY_LEFT * budget
    assert left_of(budget, 1.0, EARLY_WINDOWS) == LEAST_LEFT * budget
    assert LEAST_LEFT < EARLY_LEFT < SAFETY < 1
