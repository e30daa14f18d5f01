"""Every command of the dashboard, once: keys, the line of keys, the help and the palette are all made from here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from moescope.tui.state import SCREENS


@dataclass(frozen=True)
class Command:
    """action: the app's `do_…`, with its argument; name: its title in the palette; keys: Textual's names;
    shown: how keys are written; label: for the line of keys, empty to leave it out there; help: for the help screen,
    empty where another command's line tells of it; screens: where it works, empty for everywhere
    """

    action: str
    name: str
    keys: tuple[str, ...]
    shown: str = ""
    label: str = ""
    help: str = ""
    screens: tuple[str, ...] = ()

    def works_on(self, screen: str) -> bool:
        """Whether the command has a meaning on `screen`."""
        return not self.screens or screen in self.screens


_TABLES: Final = ("overview", "kernels", "units", "links", "experts", "findings", "log")
_SORTED: Final = ("overview", "kernels", "links", "experts")
_TIME: Final = ("overview", "kernels", "units", "links", "experts", "findings")

COMMANDS: Final = (
    *(
        Command(f"screen('{name}')", f"Go to {name}", (str(i),), "1 … 8", "", "go to a screen" if i == 1 else "")
        for i, name in enumerate(SCREENS, start=1)
    ),
    Command("next_screen(1)", "Next screen", ("tab",), "tab ⇧tab", "", "next, previous screen"),
    Command("next_screen(-1)", "Previous screen", ("shift+tab",)),
    Command(
        "drill",
        "Go into the chosen row",
        ("enter",),
        "↵",
        "drill",
        "the chosen row in the timeline",
        ("overview", "kernels", "findings"),
    ),
    Command("move(-1)", "Up", ("up", "k"), "↑↓ k j", "", "row or lane up, down"),
    Command("move(1)", "Down", ("down", "j")),
    Command("move(-10)", "Ten rows up", ("pageup",), "pgup pgdn", "", "ten rows up, down"),
    Command("move(10)", "Ten rows down", ("pagedown",)),
    Command(
        "zoom(0.5)", "Zoom in", ("plus", "equals_sign"), "+ -", "zoom", "zoom in, out at the cursor", ("timeline",)
    ),
    Command("zoom(2)", "Zoom out", ("minus",), screens=("timeline",)),
    Command(
        "rate(2)",
        "Twice the frames a second",
        ("plus", "equals_sign"),
        "+ -",
        "",
        "frames a second",
        (*_TABLES, "help"),
    ),
    Command("rate(0.5)", "Half the frames a second", ("minus",), screens=(*_TABLES, "help")),
    Command(
        "pan(-1)", "Cursor a cell back", ("left",), "← →", "pan", "cursor back, on; pans at the edge", ("timeline",)
    ),
    Command("pan(1)", "Cursor a cell on", ("right",), screens=("timeline",)),
    Command("page(-0.5)", "Half a window back", ("shift+left",), "⇧← ⇧→", "", "half a window back, on", ("timeline",)),
    Command("page(0.5)", "Half a window on", ("shift+right",), screens=("timeline",)),
    Command(
        "exposed(1)",
        "Next exposed stretch",
        ("n",),
        "n N",
        "next exposed",
        "next, previous exposed stretch",
        ("timeline",),
    ),
    Command("exposed(-1)", "Previous exposed stretch", ("N",), screens=("timeline",)),
    Command("follow", "Follow the newest steps", ("f",), "f", "follow", "follow the newest steps", ("timeline",)),
    Command("scrub(-1)", "One cell back in the run", ("left",), "← →", "scrub", "back, on in the run", _TIME),
    Command("scrub(1)", "One cell on in the run", ("right",), screens=_TIME),
    Command("scrub(-10)", "Ten cells back in the run", ("shift+left",), "⇧← ⇧→", "", "ten cells back, on", _TIME),
    Command("scrub(10)", "Ten cells on in the run", ("shift+right",), screens=_TIME),
    Command("edge(-1)", "Start of the run", ("home",), "home end", "", "start of the run; back to now"),
    Command("edge(1)", "Back to now", ("end",)),
    Command("go_to", "Go to a time or rank", ("g",), "g", "", "go to 12.5s, 340ms, 1:02, or rank r3"),
    Command(
        "filter", "Filter by name", ("slash",), "/", "filter", "only what has this in its name", ("timeline", *_TABLES)
    ),
    Command("sort", "Sort by the next column", ("s",), "s S", "sort", "sort by next column; other way", _SORTED),
    Command("reverse", "Sort the other way round", ("S",), screens=_SORTED),
    Command("rank", "Next rank alone", ("r",), "r A", "rank", "next rank alone; all ranks"),
    Command("all_ranks", "All ranks", ("A",)),
    Command(
        "freeze", "Freeze or resume the view", ("space",), "space", "freeze", "freeze the view (recording goes on)"
    ),
    Command("units", "Absolute figures or shares", ("u",), "u", "units", "ms or %, GB/s or % of peak"),
    Command("peaks", "Peaks of the data sheet or as measured", ("P",), "P", "", "GPU peaks: data sheet or measured"),
    Command("layout", "Advice for training or decoding", ("d",), "d", "", "advice and order for training or decoding"),
    Command("mark", "Mark this time", ("m",), "m '", "", "mark this time; back to marks"),
    Command("to_mark", "Back to the marks in turn", ("apostrophe",)),
    Command("log_pane", "The run's output in a pane", ("l",), "l", "", "the run's output in a pane"),
    Command("export", "Write the timelines as CSV", ("e",), "e", "export", "write the timelines as CSV"),
    Command("screenshot_here", "Save this screen as SVG", ("p",), "p", "", "save this screen as SVG"),
    Command("theme", "Next theme", ("t",), "t", "", "dark, light, colour-blind, mono"),
    Command("command_palette", "Command palette", ("ctrl+p",), "^p", "palette", "every command by name"),
    Command("help", "Help for this screen", ("question_mark",), "?", "help", "this help, and back"),
    Command("back", "Back", ("escape",), "esc", "", "leave help, filter, chosen time"),
    Command("leave", "Quit; the run goes on", ("q",), "q", "quit", "leave; the run goes on"),
    Command("interrupt", "Interrupt the run", ("ctrl+c",), "^C", "", "interrupt the run; twice within 2 s ends it"),
)


def find(key: str, screen: str) -> Command | None:
    """The command of a key on a screen."""
    return next((c for c in COMMANDS if key in c.keys and c.works_on(screen)), None)
