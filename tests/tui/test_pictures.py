"""Every screen at the sizes that people use, compared with stored pictures (text, so that a diff can be read).

`MOESCOPE_UPDATE_SNAPSHOTS=1 pytest tests/tui` draws them anew: look at the diff before committing it.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.cells import cell_len
from textual.pilot import Pilot

from moescope.profiler.snapshot import Finding
from moescope.tui.app import MoescopeApp
from moescope.tui.frame import headline
from moescope.tui.screens.overview import finding_line
from moescope.tui.state import ViewState
from moescope.tui.text import of_whole
from tests.tui.driving import drive, picture, screen, settle
from tests.tui.synthetic import SyntheticFeed, empty, snapshot

PICTURES = Path(__file__).parent / "pictures"
SCREENS = {
    "overview": "1",
    "timeline": "2",
    "kernels": "3",
    "units": "4",
    "links": "5",
    "experts": "6",
    "findings": "7",
    "log": "8",
    "help": "question_mark",
}
SIZES = ((80, 24), (120, 40), (220, 60))


def compare(name: str, found: str) -> None:
    path = PICTURES / f"{name}.txt"
    if os.environ.get("MOESCOPE_UPDATE_SNAPSHOTS"):
        PICTURES.mkdir(exist_ok=True)
        path.write_text(found, encoding="utf-8")
    assert path.exists(), f"{path} is missing: MOESCOPE_UPDATE_SNAPSHOTS=1 draws it"
    assert found == path.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pictures() -> dict[tuple[str, int, int], str]:
    """Every screen at every size, from one dashboard that is resized."""
    found = {}

    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        for width, height in SIZES:
            await pilot.resize_terminal(width, height)
            for name, key in SCREENS.items():
                await pilot.press(key)
                await settle(pilot, app)
                found[name, width, height] = picture(app)

    drive([], then=then)
    return found


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("name", SCREENS)
def test_a_screen_looks_as_it_did(
    pictures: dict[tuple[str, int, int], str], name: str, width: int, height: int
) -> None:
    found = pictures[name, width, height]
    lines = found.rstrip("\n").split("\n")
    assert len(lines) == height
    assert max(cell_len(line) for line in lines) <= width
    compare(f"{name}-{width}x{height}", found)


def test_decoding_is_told_in_steps_with_memory_first_and_d_turns_to_training() -> None:
    decode = snapshot(stage="decode")
    found = screen(["1"], feed=SyntheticFeed(decode))
    assert "Where one decode step goes" in found
    assert "token" not in found
    assert "Where one step goes" in screen(["1", "d"], feed=SyntheticFeed(decode))
    compare("overview-decode-120x40", found)


def test_a_finding_that_is_taller_than_the_screen_says_what_is_left_out() -> None:
    long = Finding("long", "high", "what " * 60, "evidence " * 60, "try " * 60, "at most 1% of the time, if", None)
    shown = screen(["7"], size=(80, 24), feed=SyntheticFeed(snapshot(findings=(long,))))
    assert "more lines: a taller terminal shows them" in shown
    whole = screen(["7"], size=(80, 60), feed=SyntheticFeed(snapshot(findings=(long,))))
    assert "taller terminal" not in whole
    assert "Gain      at most 1% of the time, if" in whole


def test_what_of_the_headline_does_not_fit_goes_as_a_whole() -> None:
    view = ViewState()
    whole = "Exposed communication 7.3% of step · comm SMs 20/132"
    for width in range(40, 90):
        shown = "".join(part for part, _ in headline(snapshot(dropped=0), view, width)).strip(" ▌")
        assert shown in (whole, "Exposed communication 7.3% of step"), width
        assert (shown == whole) == (width > len(whole)), width


@pytest.mark.parametrize(
    ("used", "peak", "unit", "shown"),
    [
        (812e12, 1979e12, "FLOP/s", "0.81 / 1.98 PFLOP/s"),
        (1, 132, "SMs", "1 / 132 SMs"),
        (1.5, 2, "cores", "1.50 / 2 cores"),
        (None, 5e10, "B/s", "– / 50.0 GB/s"),
        (3e3, 5e10, "B/s", "3.00 kB/s / 50.0 GB/s"),
        (0, 5e10, "B/s", "0 / 50.0 GB/s"),
    ],
)
def test_a_part_and_its_whole_have_one_unit(used: float | None, peak: float, unit: str, shown: str) -> None:
    assert of_whole(used, peak, unit) == shown


def test_a_finding_that_does_not_fit_says_that_it_was_cut() -> None:
    found = Finding("x", "high", "Communication is exposed for 43.7% of the time, 25% of it here", "", "", "at most 9%")
    assert "".join(part for part, _ in finding_line(found, 50)).endswith("… ≤ 9%")
    assert "…" not in "".join(part for part, _ in finding_line(found, 120))


@pytest.mark.parametrize("known", [True, False])
def test_any_size_holds_any_screen(known: bool) -> None:
    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        for width, height in ((40, 12), (52, 13), (63, 18), (75, 30), (133, 17), (300, 90)):
            await pilot.resize_terminal(width, height)
            for key in SCREENS.values():
                await pilot.press(key)
                await settle(pilot, app)
                lines = picture(app).rstrip("\n").split("\n")
                assert len(lines) == height, (app.view.screen, width, height)
                assert max(cell_len(line) for line in lines) <= width
                assert not any(character in line for line in lines for character in "\x1b\x07\u202e")

    drive([], feed=SyntheticFeed(snapshot() if known else empty()), then=then)


@pytest.mark.parametrize("name", SCREENS)
def test_an_empty_view_gives_its_reason(name: str) -> None:
    found = screen([SCREENS[name]], feed=SyntheticFeed(empty()))
    reasons = {
        "overview": "no rank has told itself yet",
        "timeline": "nothing was recorded in this window",
        "kernels": "no kernel is recorded yet",
        "units": "moescope doctor",
        "links": "no interface has been sampled yet",
        "experts": "no model emitted tokens per expert",
        "findings": "nothing stands out",
        "log": "the log is empty",
        "help": "EXPOSED: no compute at that time",
    }
    assert reasons[name] in found


def test_what_survives_a_small_terminal_is_the_answer() -> None:
    found = screen(["1"], size=(80, 24))
    for words in ("Exposed communication 7.3% of step", "EXPOSED", "rank", "combine is exposed on rank 5"):
        assert words in found


def test_a_terminal_that_is_too_small_says_what_it_needs() -> None:
    assert "40x12" in screen([], size=(30, 8))


def test_a_figure_that_is_not_known_is_a_dash_with_its_reason() -> None:
    found = screen(["1"])
    power = next(line for line in found.split("\n") if "Power" in line)
    assert "– no counter here" in power
    assert " 0%" not in power


def test_dropped_events_stand_beside_the_headline() -> None:
    assert "12 events dropped" in screen(["1"])
