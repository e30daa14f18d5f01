"""Keys: each does what help says, and none touches what is measured."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual.events import Key
from textual.pilot import Pilot

from moescope.tui.actions import ACTIONS
from moescope.tui.app import MoescopeApp
from moescope.tui.commands import COMMANDS
from moescope.tui.state import SCREENS
from tests.tui.driving import drive, prompt_text, screen, settle
from tests.tui.synthetic import MS, START, SyntheticFeed, snapshot


def test_every_command_does_something_and_no_key_means_two_things_on_one_screen() -> None:
    for command in COMMANDS:
        assert command.action.partition("(")[0] in ACTIONS, command
    for name in (*SCREENS, "help"):
        keys = [key for command in COMMANDS if command.works_on(name) for key in command.keys]
        assert len(keys) == len(set(keys)), name


@pytest.mark.parametrize("name", [*SCREENS, "help"])
def test_every_key_works_on_every_screen(name: str) -> None:
    open_it = "question_mark" if name == "help" else str(SCREENS.index(name) + 1)
    keys = [
        key
        for command in COMMANDS
        if command.works_on(name)
        and command.action
        not in ("leave", "interrupt", "command_palette", "filter", "go_to", "screenshot_here", "drill")
        and not command.action.startswith(("screen", "next_screen", "help", "back", "to_mark"))
        for key in command.keys
    ]
    app = drive([open_it, *keys])
    assert app.view.screen == name


def test_number_keys_and_tab_go_through_the_screens() -> None:
    for i, name in enumerate(SCREENS, start=1):
        assert drive([str(i)]).view.screen == name
    assert drive(["tab", "tab"]).view.screen == "kernels"
    assert drive(["shift+tab"]).view.screen == "log"


def test_help_comes_back_to_where_it_was_opened() -> None:
    assert "on links" in screen(["5", "question_mark"])
    assert drive(["5", "question_mark", "question_mark"]).view.screen == "links"
    assert drive(["5", "question_mark", "escape"]).view.screen == "links"


def test_sorting_goes_through_columns_and_turns_round() -> None:
    def order(keys: list[str]) -> list[str]:
        lines = screen(["3", *keys]).split("\n")
        return [name for line in lines for name in ("deep_gemm", "deep_ep", "void") if line.startswith(f"│ {name}")][:3]

    assert order([]) == ["deep_gemm", "deep_ep", "void"]
    assert order(["S"]) == ["void", "deep_ep", "deep_gemm"]
    assert "▼ %" in screen(["3", "s"])


def test_the_ranks_are_sorted_by_exposed_time_first() -> None:
    lines = screen(["1"], size=(120, 40)).split("\n")
    rows = [line.split()[2] for line in lines if line.startswith("│ ▸")]
    assert rows[:3] == ["5", "2", "7"]


def test_a_filter_holds_while_one_types_and_escape_clears_it() -> None:
    found = screen(["3", "slash", *"combine"])
    assert "deep_ep" in found
    assert "deep_gemm" not in found

    async def closed(app: MoescopeApp, _: Pilot[int]) -> None:
        assert not app.query_one("#prompt").display

    assert drive(["3", "slash", *"combine", "enter"], then=closed).view.filter == "combine"
    assert drive(["3", "slash", *"combine", "escape"]).view.filter == ""
    assert drive(["3", "slash", *"combine", "enter", "escape"]).view.filter == ""


def test_a_filter_stays_on_its_screen() -> None:
    app = drive(["3", "slash", *"combine", "enter", "7"])
    assert app.view.filter == ""
    assert app.view.filters["kernels"] == "combine"


def test_letters_in_a_prompt_are_letters() -> None:
    async def then(app: MoescopeApp, _: Pilot[int]) -> None:
        assert prompt_text(app) == "q7"

    app = drive(["3", "slash", "q", "7"], then=then)
    assert app.view.screen == "kernels"


def test_a_filter_that_matches_nothing_says_so() -> None:
    assert "esc clears the filter" in screen(["3", "slash", *"zzz", "enter"])


def test_ranks_are_chosen_in_turn_and_all_together_again() -> None:
    feed = SyntheticFeed()
    app = drive(["r", "r"], feed=feed)
    assert app.view.rank == 1
    assert feed.views[-1].rank == 1
    assert drive(["r"] * 9).view.rank is None
    assert drive(["r", "A"]).view.rank is None


def test_freezing_stops_taking_in_and_resumes() -> None:
    feed = SyntheticFeed()

    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        before = feed.polls
        await pilot.press("3")
        await settle(pilot, app)
        assert feed.polls == before
        await pilot.press("space")
        await settle(pilot, app)
        await pilot.pause(0.2)
        assert feed.polls > before

    found = drive(["space"], feed=feed, then=then).last_picture
    assert "FROZEN" in found


def test_scrubbing_asks_for_a_part_of_the_run_and_end_returns() -> None:
    feed = SyntheticFeed()
    app = drive(["left", "left", "left"], feed=feed)
    assert app.view.window is not None
    start, end = app.view.window
    assert START <= start < end <= START + 761_000 * MS
    assert feed.views[-1].window == app.view.window
    assert drive(["left", "end"]).view.window is None
    first = drive(["home"]).view.window
    assert first is not None
    assert first[0] == START
    assert drive(["left", "escape"]).view.window is None


def test_the_timeline_zooms_at_the_cursor_pans_and_follows() -> None:
    feed = SyntheticFeed()
    app = drive(["2", "down", "right", "right", "plus"], feed=feed)
    middle = app.last_cells // 2
    assert app.view.cursor == (2, middle + 2)
    assert app.view.span is not None
    start, end = app.view.span
    assert end - start == 50 * MS
    cells = app.last_cells
    at = START + 1200 * MS + int(100 * MS * (middle + 2.5) / cells)
    assert start + int(50 * MS * (middle + 2.5) / cells) == pytest.approx(at, abs=2)
    assert drive(["2", "plus", "shift+right"]).view.span != drive(["2", "plus"]).view.span
    assert drive(["2", "plus", "f"]).view.span is None
    assert drive(["2", "home"]).view.span is not None


def test_the_cursor_pans_at_the_edge() -> None:
    app = drive(["2", *["left"] * 14], size=(40, 12))
    assert app.view.span is not None
    assert app.view.span[0] < START + 1200 * MS
    assert 0 <= app.view.cursor[1] < app.last_cells


def test_next_exposed_jumps_there_and_says_where_there_is_none() -> None:
    feed = SyntheticFeed()
    app = drive(["2", "n"], feed=feed)

    assert feed.jumps
    assert feed.jumps[0][1] is False
    app = drive(["2", "n", "down"], feed=feed)
    assert app.view.span is not None
    found = feed.jumps[-1][0] + 5 * MS
    assert app.view.span[0] <= found <= app.view.span[1]
    assert "no exposed communication" in screen(["2", "N", "up"])


def test_a_finding_opens_the_timeline_where_it_is_worst() -> None:
    app = drive(["7", "enter"])
    assert app.view.screen == "timeline"
    assert app.view.span is not None
    assert app.view.span[0] <= START + 9_000 * MS <= app.view.span[1]
    assert "no one place" in screen(["7", "down", "enter"])


def test_a_rank_and_a_kernel_open_the_timeline() -> None:
    app = drive(["1", "down", "enter"])
    assert (app.view.screen, app.view.rank) == ("timeline", 2)
    app = drive(["3", "down", "enter"])
    assert (app.view.screen, app.view.filter) == ("timeline", "deep_ep::intranode::combine<bf16, 8>")


@pytest.mark.parametrize(
    ("text", "offset_ms"), [("12.5s", 12_500), ("340ms", 340), ("1:02", 62_000), ("250", 250), ("80us", 0.08)]
)
def test_going_to_a_time(text: str, offset_ms: float) -> None:
    app = drive(["g", *[{":": "colon", ".": "full_stop"}.get(c, c) for c in text], "enter"])
    assert app.view.screen == "timeline"
    assert app.view.span is not None
    assert app.view.span[0] <= START + offset_ms * MS <= app.view.span[1]


def test_going_to_a_rank_or_to_nonsense() -> None:
    assert drive(["g", "r", "3", "enter"]).view.rank == 3
    assert "no rank 44" in screen(["g", "r", "4", "4", "enter"])
    assert "is no time and no rank" in screen(["g", *"soon", "enter"])


def test_marks_bring_back() -> None:
    app = drive(["2", "m", "end", "plus", "shift+right", "shift+right", "apostrophe"])
    assert len(app.view.marks) == 1
    assert app.view.span is not None
    assert app.view.span[0] <= app.view.marks[0] <= app.view.span[1]
    assert "no mark yet" in screen(["apostrophe"])


def test_export_runs_and_its_failure_is_told() -> None:
    wrote: list[int] = []

    def export() -> str:
        wrote.append(1)
        return "wrote 3 files"

    assert "wrote 3 files" in screen(["e", "u"], export=export)
    assert wrote == [1]

    def failing() -> str:
        raise OSError("No space left on device")

    assert "not written: No space left" in screen(["e", "u"], export=failing)


def test_leaving_does_not_interrupt_and_ctrl_c_does() -> None:
    sent: list[int] = []

    def interrupt() -> str:
        sent.append(1)
        return "interrupt sent"

    app = drive(["q"], on_interrupt=interrupt)
    assert (app.return_value, sent) == (0, [])
    app = drive(["ctrl+c", "ctrl+c"], on_interrupt=interrupt)
    assert "interrupt sent" in app.last_picture
    assert (app.return_value, sent) == (None, [1, 1])
    assert drive(["ctrl+c"]).return_value == 0


def test_what_is_typed_ahead_of_the_prompt_is_its_text() -> None:
    async def type_ahead(app: MoescopeApp, pilot: Pilot[int]) -> None:
        for key, character in (("slash", "/"), *((letter, letter) for letter in "gloo"), ("enter", "\r")):
            app.post_message(Key(key, character))
        for _ in range(200):
            await pilot.pause(0.01)
            if app.view.filter and not app.query_one("#prompt").display:
                break
        assert app.view.filter == "gloo"

    assert drive(["3"], then=type_ahead).view.screen == "kernels"


@pytest.mark.parametrize("end", ["enter", "escape"])
def test_what_is_typed_right_behind_the_prompt_is_a_command(end: str) -> None:
    async def type_ahead(app: MoescopeApp, pilot: Pilot[int]) -> None:
        # Into a prompt, out of it, two screens on, into another prompt, and out of that: no time between any two keys.
        for key in ("slash", *"gloo", end, "2", "5", "slash", *"all", "enter", "6"):
            character = key if len(key) == 1 else {"slash": "/", "enter": "\r", "escape": "\x1b"}[key]
            app.post_message(Key(key, character))
        for _ in range(500):
            await pilot.pause(0.01)
            if app.view.screen == "experts":
                break
        assert not app.query_one("#prompt").display
        assert app.view.filters.get("kernels", "") == ("gloo" if end == "enter" else "")
        assert app.view.filters["links"] == "all"

    assert drive(["3"], then=type_ahead).view.screen == "experts"


def test_a_feed_that_fails_is_told_and_the_screen_stays() -> None:
    feed = SyntheticFeed()

    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        feed.breaks = True
        for _ in range(100):
            await pilot.pause(0.02)
            if app.view.notice:
                break
        assert "the disk is gone" in app.view.notice
        feed.breaks = False

    assert drive([], feed=feed, then=then).view.screen == "overview"


def test_the_dashboard_of_a_demo_closes_after_the_run_unless_a_key_is_pressed() -> None:
    async def wait(app: MoescopeApp, pilot: Pilot[int]) -> None:
        for _ in range(200):
            await pilot.pause(0.02)
            if not app.is_running or app.return_value is not None:
                return

    over = snapshot(state="finished")
    assert drive([], feed=SyntheticFeed(over), close_after_s=0.1, then=wait).return_value == 0
    assert drive(["3"], feed=SyntheticFeed(over), close_after_s=60.0).return_value is None


def test_who_has_pressed_a_key_during_the_demo_is_told_of_its_end_and_stays() -> None:
    feed = SyntheticFeed(snapshot(state="live"))

    async def end(app: MoescopeApp, pilot: Pilot[int]) -> None:
        feed.base, feed.polls = snapshot(state="finished"), 0
        for _ in range(500):
            await pilot.pause(0.02)
            if app.view.notice:
                break
        assert app.view.notice == "The run has ended; q shows its summary."

    assert drive(["3"], feed=feed, close_after_s=0.0, then=end).return_value is None


def test_the_run_s_output_is_shown_plain(tmp_path: Path) -> None:
    log = tmp_path / "target.log"
    log.write_bytes(b"step 1\r\n\x1b[31mred\x1b[0m\n10%\r50%\r99%\nlast line without end")
    found = screen(["1"], log_path=log)
    for words in ("step 1", "red", "99%", "last line without end"):
        assert words in found
    assert "50%" not in found.split("Output of the run")[1]
    assert "Output of the run" not in screen(["l"], log_path=log)
    assert "last line" in screen(["8"], log_path=log)


def test_no_color_leaves_no_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    from moescope.tui.theme import style

    monkeypatch.setenv("NO_COLOR", "1")
    app = drive(["1"])
    assert app.view.theme == "mono"
    for role in ("text", "loss", "compute", "tab", "bar-key", "text+select"):
        assert style("mono", role).color is None
        assert style("mono", role).bgcolor is None


def test_themes_change_and_every_role_can_be_read() -> None:
    assert drive(["t"]).view.theme == "light"
    assert drive(["t"] * 4).view.theme == "dark"


def test_the_palette_runs_a_command() -> None:
    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        await pilot.press("ctrl+p")
        await pilot.pause(0.2)
        await pilot.press(*"go to links")
        for _ in range(100):
            await pilot.pause(0.05)
            await pilot.press("enter")
            if app.view.screen == "links":
                break
        assert app.view.screen == "links"

    drive([], then=then)


def test_a_tab_opens_by_a_click() -> None:
    async def then(app: MoescopeApp, pilot: Pilot[int]) -> None:
        start = next(start for start, _, name in app._places if name == "experts")
        await pilot.click("#tabs", offset=(start + 1, 0))
        assert app.view.screen == "experts"

    drive([], then=then)
