"""The headline leads with what costs most, and never shows a figure without a source as zero."""

from __future__ import annotations

import pytest

from moescope.profiler.live.headline import headline
from moescope.profiler.snapshot import Figure, Shares, Units

UNKNOWN = Figure(None, "derived", "no FLOPs emitted")
UNITS = Units("sm", 132, Figure(20.0), Figure(24.0), Figure(0.15), Figure(112.0))
BALANCED = Shares(1000, 900, 95, 5, 0, 0)
EXPOSED = Shares(1000, 700, 100, 150, 0, 50)
IDLE = Shares(1000, 500, 100, 50, 0, 350)


def _text(shares: Shares, **more: object) -> str:
    given: dict[str, object] = {
        "stage": "train",
        "units": UNITS,
        "matrix_use": Figure(0.61, "derived"),
        "memory_use": UNKNOWN,
        "straggler": None,
        "per_step": True,
    }
    parts = headline(shares, **(given | more))  # type: ignore[arg-type]
    return "".join(part.text for part in parts)


def test_exposed_communication_leads_where_it_costs_most() -> None:
    assert _text(EXPOSED) == "Exposed communication 15.0% of step · comm SMs 20/132 · matrix units 61% of peak"


def test_idle_time_leads_where_it_costs_most_and_exposed_frames_it() -> None:
    assert _text(IDLE, per_step=False) == "Idle 35.0% of recorded time · exposed comm 5.0% · comm SMs 20/132"


def test_a_straggler_leads_where_it_costs_more_than_either() -> None:
    assert _text(EXPOSED, straggler=(5, 0.2)).startswith("Rank 5 computes 20.0% of step longer · exposed comm 15.0%")


def test_decode_near_the_roof_of_its_memory_says_so() -> None:
    assert _text(EXPOSED, stage="decode", memory_use=Figure(0.84)).startswith("Decode is memory-bound at 84% of peak")
    assert _text(EXPOSED, stage="train", memory_use=Figure(0.84)).startswith("Exposed communication")


def test_a_run_without_losses_leads_with_its_compute() -> None:
    parts = headline(BALANCED, "train", UNITS, UNKNOWN, UNKNOWN, None, True)
    assert parts[0].text == "Compute 99.5% of step"
    assert all(part.role != "loss" for part in parts)


def test_exactly_one_part_is_the_loss() -> None:
    parts = headline(EXPOSED, "train", UNITS, UNKNOWN, UNKNOWN, None, True)
    assert [part.role for part in parts].count("loss") == 1
    assert [part.role for part in parts].count("figure") == 2


@pytest.mark.parametrize("units", [None, Units("core", 2, UNKNOWN, UNKNOWN, UNKNOWN, UNKNOWN)])
def test_figures_without_a_source_are_a_dash_with_the_reason(units: Units | None) -> None:
    text = _text(EXPOSED, units=units, matrix_use=UNKNOWN)
    assert "matrix units – (no FLOPs emitted)" in text
    assert " – (" in text.split(" · ")[1]
    assert " 0" not in text


def test_nothing_recorded_is_said_plainly() -> None:
    assert _text(Shares(0, 0, 0, 0, 0, 0)) == "Nothing recorded in this window yet"
