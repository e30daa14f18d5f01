"""Help: the keys that work on the screen one came from, and the meaning of every sign and label."""

from __future__ import annotations

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
    ("MU%", "matrix units: FLOPs done ÷ (time × measured peak)"),
    ("comm cores", "cores, or SMs, that ran communication: typical/all"),
    ("measured", "a counter or a timestamp"),
    ("derived", "arithmetic on measured figures"),
    ("~ inferred", "from launch shapes or names"),
    ("≈ modelled", "a formula or an emulation"),
    ("–", "not known; the reason stands beside or below it"),
    ("recorded", "share of the time inside recording windows; figures are of these"),
)

SCREEN_WORDS = {
    "overview": "One mean step of the ranks chosen: the parts fill it. ↵ on a rank opens its timeline.",
    "timeline": "A lane a stream. Communication is painted by what hides it. The cursor's kernel is told below.",
    "kernels": "All kernels of one name. `moescope explain NAME` tells the rule for any name.",
    "units": "Which cores, or SMs, communication holds: from context switches or per-SM records.",
    "links": "Bytes from rank to rank as calls told them; links are of the whole host.",
    "experts": "Tokens that the model emitted. 1.00× is the mean of the layer.",
    "findings": "What costs time. ↵ opens the timeline where it is worst.",
    "log": "What collectors started, failed or dropped.",
}


def paint(view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells."""
    screen = view.before_help
    if width >= 90:
        a, b = split(width, 1, 1)
        return beside(_keys(screen, a, height), _meaning(screen, b, height))
    upper = max(height * 3 // 5, 4)
    return _keys(screen, width, upper) + _meaning(screen, width, height - upper)


def _keys(screen: str, width: int, height: int) -> list[Line]:
    inner, room = width - 4, height - 2
    rows = [(c.shown, c.help) for c in COMMANDS if c.works_on(screen) and c.help]
    columns = 1 if len(rows) <= room else min(3, -(-len(rows) // max(room, 1)))
    each = inner // columns
    body: list[Line] = []
    for i in range(min(room, -(-len(rows) // columns))):
        line: Line = []
        for j in range(columns):
            at = i + j * -(-len(rows) // columns)
            if at < len(rows):
                line += [(fit(rows[at][0], 6) + " ", "key"), (fit(rows[at][1], each - 7), "text")]
        body.append(line)
    hidden = len(rows) - columns * len(body)
    return box("Keys", f"on {screen}" + (f" · {hidden} more in ^p" if hidden > 0 else ""), body, width, height)


def _meaning(screen: str, width: int, height: int) -> list[Line]:
    import textwrap

    inner = width - 4
    body: list[Line] = [[(line, "text")] for line in textwrap.wrap(SCREEN_WORDS[screen], inner)]
    body.append([])
    body += [[(GLYPH[state] * 2 + "  ", state), (fit(text, inner - 4), "text")] for state, text in SIGNS]
    body += [[("    ", "text"), (fit("blank: not recorded at that time", inner - 4), "dim")], []]
    body += [[(fit(name, 12), "key"), (fit(text, inner - 12), "text")] for name, text in WORDS]
    if len(body) > height - 2:
        body = [line for line in body if line]
    return box("Meaning", "", body, width, height)
