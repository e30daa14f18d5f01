"""The recording's log: collector starts, failures and drops; and the run's own output where the dashboard holds it."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.profiler.snapshot import LogRow, Snapshot
from moescope.tui.draw import Field, box, message, table
from moescope.tui.state import ViewState
from moescope.tui.text import Line, clean, count, fit

LEVEL_ROLE = {"error": "loss", "warning": "comm", "info": "dim"}


def shown(seen: Snapshot, view: ViewState) -> list[LogRow]:
    """The lines as the table shows them: the newest last."""
    needle = view.filter.casefold()
    return [row for row in seen.log if needle in f"{row.level} {row.source} {row.message}".casefold()]


def paint(seen: Snapshot, view: ViewState, width: int, height: int, output: Sequence[str] | None) -> list[Line]:
    """The screen in `width` x `height` cells. output: last lines of the run's output, None where it is not ours"""
    rows = shown(seen, view)
    upper = height if output is None else max(height // 2, 4)
    fields = (
        Field("s", 9, lambda r: (f"{(r.t_ns - seen.start_ns) / 1e9:.2f}", "dim")),
        Field("level", 8, lambda r: (r.level, LEVEL_ROLE.get(r.level, "text")), align="left"),
        Field("rank", 5, lambda r: ("" if r.rank is None else str(r.rank), "text"), weight=1),
        Field("from", 14, lambda r: (r.source, "text"), align="left", weight=2),
        Field("message", 0, lambda r: (r.message, "text"), align="left"),
    )
    state = view.table("log")
    cursor = min(state.cursor, len(rows) - 1) if rows else None
    whole = _whole(rows, cursor, width, upper)
    body = table(fields, rows, width - 4, upper - len(whole) - 2, cursor=cursor)
    if not rows:
        body = message(
            "no line matches the filter" if seen.log else "the log is empty: nothing failed, nothing was dropped",
            width - 4,
        )
    dropped = f"{count(seen.dropped)} events dropped" if seen.dropped else "no event dropped"
    note = f"{len(rows)} line{'s' if len(rows) != 1 else ''} · {dropped}"
    lines = box("Log of the recording", note, body, width, upper - len(whole)) + whole
    return lines if output is None else lines + output_pane(output, width, height - upper)


def _whole(rows: Sequence[LogRow], cursor: int | None, width: int, height: int) -> list[Line]:
    """The chosen line in full, where there are lines that the table cuts, and room."""
    room = min(height // 3, 6)
    if cursor is None or room < 3 or all(len(row.message) <= width - 45 for row in rows):
        return []
    return box("Chosen", "", message(clean(rows[cursor].message), width - 4), width, room)


def output_pane(output: Sequence[str], width: int, height: int) -> list[Line]:
    """The last lines that the run printed."""
    shown_lines = list(output)[-max(height - 2, 0) :] if height > 2 else []
    body: list[Line] = [[(fit(clean(line), width - 4), "text")] for line in shown_lines]
    if not body:
        body = message("the run has printed nothing yet", width - 4)
    return box("Output of the run", "l closes", body, width, height)
