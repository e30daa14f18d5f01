"""Every command of the dashboard, once: keys, the line of keys, the help and the palette are all made from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moescope.tui.state import SCREENS

EVERYWHERE: Final = "everywhere"


@dataclass(frozen=True)
class Command:
    """action: name of the app's `action_…`, with its argument; keys: Textual's names; shown: how help writes the keys;
    label: for the line of keys, empty to leave it out there; screens: where it works, empty for everywhere
    """

    action: str
    keys: tuple[str, ...]
    shown: str
    label: str
    help: str
    screens: tuple[str, ...] = ()

    def works_on(self, screen: str) -> bool:
        """Whether the command has a meaning on `screen`."""
        return not self.screens or screen in self.screens


_TABLES: Final = ("overview", "kernels", "units", "links", "experts", "findings", "log")
_SORTED: Final = ("overview", "kernels", "links", "experts")
_TIME: Final = ("overview", "kernels", "units", "links", "experts", "findings")

COMMANDS: Final = (
    *(
        Command(f"screen('{name}')", (str(i),), str(i), "", f"{name.capitalize()}")
        for i, name in enumerate(SCREENS, start=1)
    ),
    Command("next_screen(1)", ("tab",), "tab", "", "next screen"),
    Command("next_screen(-1)", ("shift+tab",), "⇧tab", "", "previous screen"),
    Command("drill", ("enter",), "↵", "drill", "go into the chosen row", ("overview", "findings")),
    Command("move(-1)", ("up", "k"), "↑ k", "", "row or lane up"),
    Command("move(1)", ("down", "j"), "↓ j", "", "row or lane down"),
    Command("move(-10)", ("pageup",), "pgup", "", "ten rows up"),
    Command("move(10)", ("pagedown",), "pgdn", "", "ten rows down"),
    Command("zoom(0.5)", ("plus", "equals_sign"), "+", "zoom", "zoom in at the cursor", ("timeline",)),
    Command("zoom(2)", ("minus",), "-", "", "zoom out", ("timeline",)),
    Command("rate(2)", ("plus", "equals_sign"), "+", "", "twice the frames a second", (*_TABLES, "help")),
    Command("rate(0.5)", ("minus",), "-", "", "half the frames a second", (*_TABLES, "help")),
    Command("pan(-1)", ("left",), "←", "pan", "cursor a cell back", ("timeline",)),
    Command("pan(1)", ("right",), "→", "", "cursor a cell on", ("timeline",)),
    Command("page(-0.5)", ("shift+left",), "⇧←", "", "half a window back", ("timeline",)),
    Command("page(0.5)", ("shift+right",), "⇧→", "", "half a window on", ("timeline",)),
    Command("exposed(1)", ("n",), "n", "next exposed", "next exposed stretch", ("timeline",)),
    Command("exposed(-1)", ("N",), "N", "", "previous exposed stretch", ("timeline",)),
    Command("follow", ("f",), "f", "follow", "follow the newest steps", ("timeline",)),
    Command("scrub(-1)", ("left",), "←", "scrub", "one cell back in the run", _TIME),
    Command("scrub(1)", ("right",), "→", "", "one cell on", _TIME),
    Command("scrub(-10)", ("shift+left",), "⇧←", "", "ten cells back", _TIME),
    Command("scrub(10)", ("shift+right",), "⇧→", "", "ten cells on", _TIME),
    Command("edge(-1)", ("home",), "home", "", "start of the run"),
    Command("edge(1)", ("end",), "end", "", "back to now, or to the whole run"),
    Command("go_to", ("g",), "g", "", "go to a time (12.5s, 340ms) or a rank (r3)"),
    Command(
        "filter", ("slash",), "/", "filter", "keep rows or kernels whose name holds a text", ("timeline", *_TABLES)
    ),
    Command("sort", ("s",), "s", "sort", "sort by the next column", _SORTED),
    Command("reverse", ("S",), "S", "", "sort the other way round", _SORTED),
    Command("rank", ("r",), "r", "rank", "next rank alone"),
    Command("all_ranks", ("A",), "A", "", "all ranks"),
    Command("freeze", ("space",), "space", "freeze", "freeze the view (recording goes on)"),
    Command("units", ("u",), "u", "units", "ms or %, GB/s or % of peak"),
    Command("layout", ("d",), "d", "", "words of training or of decoding"),
    Command("mark", ("m",), "m", "", "mark this time"),
    Command("to_mark", ("apostrophe",), "'", "", "back to the marks in turn"),
    Command("log_pane", ("l",), "l", "", "the run's output in a pane"),
    Command("export", ("e",), "e", "export", "write the timelines as CSV"),
    Command("screenshot_here", ("p",), "p", "", "save this screen as SVG"),
    Command("theme", ("t",), "t", "", "next theme: dark, light, colour-blind, mono"),
    Command("command_palette", ("ctrl+p",), "^p", "palette", "every command by name"),
    Command("help", ("question_mark",), "?", "help", "help for this screen; again or esc: back"),
    Command("back", ("escape",), "esc", "", "leave help, then clear the filter, then the chosen time"),
    Command("leave", ("q",), "q", "quit", "leave; the run goes on"),
    Command("interrupt", ("ctrl+c",), "^C", "", "interrupt the run, twice ends it; leaves where there is none"),
)


def find(key: str, screen: str) -> Command | None:
    """The command of a key on a screen."""
    return next((c for c in COMMANDS if key in c.keys and c.works_on(screen)), None)
