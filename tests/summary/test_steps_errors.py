"""How far shares may be off that are told of steps which were recorded in part."""

from __future__ import annotations

import numpy as np
import pytest

from moescope.profiler.steps.amounts import StageAmounts, StepAmounts
from moescope.profiler.steps.scatter import FEWEST, _student
from moescope.profiler.summary.steps import _errors

NONE = np.empty(0, np.int64)


def amounts(recorded: np.ndarray, exposed: np.ndarray) -> StepAmounts:
    """recorded, exposed: [steps] ns"""
    x, r = exposed.astype(float), recorded.astype(float)
    sums = {("exposed",): (int(x.sum()), float((x * x).sum()), float((x * r).sum()))}
    stage = StageAmounts(int((r > 0).sum()), int(r.sum()), float((r * r).sum()), sums, NONE, NONE, {})
    return StepAmounts({"train": stage}, devices=1)


def test_the_true_share_lies_within_the_error_as_often_as_told() -> None:
    """Of runs of 400 steps a part of each is recorded, in one step in eight, on two ranks that do alike."""
    rng = np.random.default_rng(3)
    inside, sizes = [], []
    for _ in range(400):
        share = rng.beta(6, 18, 400)  # of each step, around a quarter
        lasts = rng.normal(1e6, 1e5, 400)
        chosen = rng.choice(400, 50, replace=False)
        recorded = lasts[chosen]
        ranks = [amounts(recorded, recorded * share[chosen] * scale) for scale in (0.9, 1.1)]
        told = _errors(ranks, "train", coverage=50 / 400)["errors"]
        assert told["steps"] == 50
        measured = sum(one.stages["train"].sums["exposed",][0] for one in ranks) / (2 * recorded.sum())
        inside.append(abs(measured - (lasts * share).sum() / lasts.sum()) <= told["exposed_comm"])
        sizes.append(told["exposed_comm"])
    assert 0.91 < np.mean(inside) < 0.99
    assert 0.01 < np.median(sizes) < 0.04


def test_what_was_recorded_whole_has_no_error() -> None:
    rng = np.random.default_rng(1)
    recorded = rng.integers(900, 1100, 20) * 1000
    assert _errors([amounts(recorded, recorded // 4)], "train", coverage=1.0)["errors"]["exposed_comm"] == 0.0


def test_what_one_rank_has_more_of_in_every_step_is_no_scatter() -> None:
    recorded = np.full(30, 1_000_000)
    ranks = [amounts(recorded, recorded // 10), amounts(recorded, recorded * 6 // 10)]
    assert _errors(ranks, "train", coverage=0.1)["errors"]["exposed_comm"] == pytest.approx(0, abs=1e-6)


def test_of_too_few_steps_no_error_is_told() -> None:
    few = np.full(FEWEST - 1, 1000)
    told = _errors([amounts(few, few // 2)], "train", coverage=0.1)
    assert told == {"errors": None, "errors_reason": "fewer than 4 steps were recorded"}
    odd = StepAmounts(devices=1, reason="steps of a rank overlap in time")
    assert _errors([odd], "train", 0.1) == {"errors": None, "errors_reason": odd.reason}


@pytest.mark.parametrize(("freedom", "point"), [(3, 3.182), (5, 2.571), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_students_t(freedom: int, point: float) -> None:
    assert _student(freedom) == pytest.approx(point, rel=0.04)
