"""Through screens and rows: which one is shown, where the cursor is, how rows are sorted, and into what they lead."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.tui import body
from moescope.tui.screens import findings, kernels, overview
from moescope.tui.state import SCREENS, ScreenName

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp


def screen(app: MoescopeApp, name: ScreenName) -> None:
    """Opens a screen."""
    app.view.screen = name


def next_screen(app: MoescopeApp, step: float) -> None:
    """The screen beside this one."""
    at = SCREENS.index(app.view.screen) if app.view.screen in SCREENS else 0
    app.view.screen = SCREENS[(at + int(step)) % len(SCREENS)]


def help(app: MoescopeApp) -> None:
    """Help for this screen, or back from it."""
    if app.view.screen == "help":
        app.view.screen = app.view.before_help
    else:
        app.view.before_help, app.view.screen = app.view.screen, "help"


def back(app: MoescopeApp) -> None:
    """Out of help, of the filter, of the chosen time: one at a time."""
    if app.view.screen == "help":
        app.view.screen = app.view.before_help
    elif app.view.filter:
        app.view.filter = ""
    else:
        app.view.window = app.view.span = None


def move(app: MoescopeApp, step: float) -> None:
    """Moves the cursor by rows, or by lanes."""
    view = app.view
    if view.screen == "timeline":
        lanes = len(app.seen_timeline.lanes) if app.seen_timeline is not None else 0
        view.cursor = (min(max(view.cursor[0] + int(step), 0), max(lanes - 1, 0)), view.cursor[1])
        return
    rows = body.row_count(app.seen, view, *app.body_size()) if app.seen is not None else 0
    table = view.table(view.screen)
    table.cursor = min(max(table.cursor + int(step), 0), max(rows - 1, 0))


def sort(app: MoescopeApp) -> None:
    """Sorts by the next column."""
    table = app.view.table(app.view.screen)
    columns = body.sort_count(app.seen, app.view) if app.seen is not None else 0
    if columns:
        table.column, table.reverse, table.cursor = (table.column + 1) % columns, False, 0


def reverse(app: MoescopeApp) -> None:
    """Sorts the other way round."""
    table = app.view.table(app.view.screen)
    table.reverse = not table.reverse


def drill(app: MoescopeApp) -> None:
    """From a row to the timeline that shows it."""
    seen, view = app.seen, app.view
    if seen is None:
        return
    at = view.table(view.screen).cursor
    if view.screen == "overview":
        ranks = overview.ranks_shown(seen, view)
        if at < len(ranks):
            view.rank, view.screen = ranks[at].rank, "timeline"
    elif view.screen == "kernels":
        names = kernels.shown(seen, view)
        if at < len(names):
            view.filters["timeline"], view.screen = names[at].name, "timeline"
    else:
        found = findings.shown(seen, view)
        if at < len(found) and found[at].start_ns is not None:
            app.look_at(found[at].start_ns or 0)
            view.screen = "timeline"
        else:
            app.say("this finding is about the whole run: no one place shows it")
