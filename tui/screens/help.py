"""Help: the keys that work on the screen one came from, and the meaning of every sign and label."""

from __future__ import annotations

import textwrap

from moescope.tui.commands import COMMANDS
from moescope.tui.draw import GLYPH, beside, box, split
from moescope.tui.state import ViewState
from moescope.tui.text import Line, fit

SIGNS = (
    ("compute", "compute, no communication beside it"),
    ("overlapped", "communication hidden under compute"),
    ("exposed", "communication EXPOSED: no compute at that time"),
    ("memory", "memory copies and sets"),
    ("unknown", "kernels that no rule knows"),
    ("idle", "idle: no kernel at all"),
)

WORDS = (
    ("exp%", "exposed communication ÷ recorded time"),
    ("hid%", "hidden ÷ all communication"),
    ("MU%", "matrix units: FLOPs done ÷ (time × peak)"),
    ("comm cores", "cores, or SMs, that ran communication: typical/all"),
    ("measured", "a counter or a timestamp"),
    ("derived", "arithmetic on measured figures"),
    ("~ inferred", "from launch shapes or names"),
    ("≈ modelled", "a formula or an emulation"),
    ("–", "not known; the reason stands beside or below it"),
    ("recorded", "share of the time inside recording windows; figures are of these"),
)

SCREEN_WORDS = {
    "overview": "One mean step of the ranks chosen: the parts fill it. A decode step takes what an output token takes. "
    "↵ on a rank opens its timeline.",
    "timeline": "A lane a stream. Communication is painted by what hides it. The cursor's kernel is told below.",
    "kernels": "All kernels of one name. `moescope explain NAME` tells the rule for any name.",
    "units": "Which cores, or SMs, communication holds: from context switches or per-SM records.",
    "links": "Bytes from rank to rank as calls told them; links are of the whole host, rates over the time in view.",
    "experts": "Tokens that the model emitted. 1.00× is the mean of the layer.",
    "findings": "What costs time. ↵ opens the timeline where it is worst.",
    "log": "What collectors started, failed or dropped.",
}


def paint(view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells: side by side, or one below the other and scrolled by the cursor."""
    screen = view.before_help
    if width >= 90:
        a, b = split(width, 1, 1)
        return beside(
            box("Keys", f"on {screen}", _keys(screen), a, height),
            box("Meaning", "", _meaning(screen, b - 4, height - 2), b, height),
        )
    body = _column(screen, width)
    top = min(view.table("help").cursor, rows(view, width, height))
    below = len(body) - top - (height - 2)
    return box("Help", f"on {screen}" + (f" · ↓ {below} more lines" if below > 0 else ""), body[top:], width, height)


def rows(view: ViewState, width: int, height: int) -> int:
    """By how many lines the help can be scrolled, and one."""
    return max(len(_column(view.before_help, width)) - (height - 2), 0) + 1 if width < 90 else 0


def _column(screen: str, width: int) -> list[Line]:
    return [*_keys(screen), [], *_meaning(screen, width - 4, 100)]


def _keys(screen: str) -> list[Line]:
    told = [c for c in COMMANDS if c.works_on(screen) and c.help]
    return [[(fit(c.shown, 11), "key"), (c.help, "text")] for c in told]


def _meaning(screen: str, inner: int, room: int) -> list[Line]:
    body: list[Line] = [[(line, "text")] for line in textwrap.wrap(SCREEN_WORDS[screen], inner)]
    body.append([])
    body += [[(GLYPH[state] * 2 + "  ", state), (fit(text, inner - 4), "text")] for state, text in SIGNS]
    body += [[("    ", "text"), (fit("blank: not recorded at that time", inner - 4), "dim")], []]
    for name, text in WORDS:
        for i, line in enumerate(textwrap.wrap(text, inner - 12)):
            body.append([(fit(name if i == 0 else "", 12), "key"), (line, "text")])
    return body if len(body) <= room else [line for line in body if line]
