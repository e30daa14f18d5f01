"""What the commands of the table do: a function each, of the app and, where the command has one, its argument."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from moescope.tui.actions import looks, rows, run, travel

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp

ACTIONS: Final[dict[str, Callable[..., Any]]] = {
    "screen": rows.screen,
    "next_screen": rows.next_screen,
    "help": rows.help,
    "back": rows.back,
    "move": rows.move,
    "sort": rows.sort,
    "reverse": rows.reverse,
    "drill": rows.drill,
    "zoom": travel.zoom,
    "pan": travel.pan,
    "page": travel.page,
    "follow": travel.follow,
    "exposed": travel.exposed,
    "scrub": travel.scrub,
    "edge": travel.edge,
    "mark": travel.mark,
    "to_mark": travel.to_mark,
    "go_to": travel.go_to,
    "filter": looks.filter,
    "rank": looks.rank,
    "all_ranks": looks.all_ranks,
    "freeze": looks.freeze,
    "units": looks.units,
    "peaks": looks.peaks,
    "layout": looks.layout,
    "theme": looks.theme,
    "rate": looks.rate,
    "log_pane": looks.log_pane,
    "command_palette": looks.command_palette,
    "export": run.export,
    "screenshot_here": run.screenshot,
    "leave": run.leave,
    "interrupt": run.interrupt,
}
"""By the name before the parenthesis in `commands.Command.action`."""


def act(app: MoescopeApp, action: str) -> None:
    """Does what `Command.action` names: `follow`, `zoom(0.5)`, `screen('kernels')`."""
    name, _, rest = action.partition("(")
    argument = rest.rstrip(")").strip("'")
    if not argument:
        ACTIONS[name](app)
    else:
        ACTIONS[name](app, argument if name == "screen" else float(argument))
