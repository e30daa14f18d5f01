"""The shapes that panels are made of: boxes, columns, bars, gauges, sparklines and tables, as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from moescope.profiler.snapshot import Figure, Shares
from moescope.tui.text import UNKNOWN, Align, Line, fit, length, pad, selected

EIGHTHS: Final = " ▁▂▃▄▅▆▇█"

GLYPH: Final = {
    "compute": "█",
    "overlapped": "▓",
    "exposed": "▒",
    "comm": "▚",
    "memory": "▬",
    "unknown": "?",
    "idle": "·",
    "phase": " ",
    "unrecorded": " ",
}
"""What runs at a time; the glyph carries the meaning, and colour repeats it."""

PARTS: Final = (
    ("compute", "compute only", "compute_only_ns"),
    ("overlapped", "comm hidden", "overlapped_ns"),
    ("exposed", "comm EXPOSED", "exposed_ns"),
    ("memory", "memory, other", "other_ns"),
    ("idle", "idle", "idle_ns"),
)
"""The parts of a span: state, name, field of `Shares`."""


def box(title: str, note: str, body: Sequence[Line], width: int, height: int) -> list[Line]:
    """A frame of `width` x `height` cells with a title at the left, a note at the right, and the body inside."""
    if height < 2 or width < 4:
        return [pad([], max(width, 0)) for _ in range(max(height, 0))]
    head: Line = [("╭─ ", "border"), (title, "title"), (" ", "border")]
    tail: Line = [(" ", "border"), (note, "dim"), (" ╮", "border")] if note else [("─╮", "border")]
    room = width - length(head) - length(tail)
    if room < 0 and note:
        note = fit(note, max(length([(note, "")]) + room, 0))
        tail = [(" ", "border"), (note, "dim"), (" ╮", "border")] if note else [("─╮", "border")]
        room = width - length(head) - length(tail)
    lines: list[Line] = [pad([*head, ("─" * max(room, 0), "border"), *tail], width, "border")]
    for i in range(height - 2):
        inside = pad(body[i], width - 4) if i < len(body) else [(" " * (width - 4), "text")]
        lines.append([("│ ", "border"), *inside, (" │", "border")])
    lines.append([("╰" + "─" * (width - 2) + "╯", "border")])
    return lines


def beside(*blocks: Sequence[Line]) -> list[Line]:
    """Blocks of one height side by side; each block's lines have its full width."""
    return [[piece for line in row for piece in line] for row in zip(*blocks, strict=True)]


def split(total: int, *weights: float) -> list[int]:
    """`total` cells in whole numbers by weight."""
    whole = sum(weights)
    edges = [round(total * sum(weights[: i + 1]) / whole) for i in range(len(weights))]
    return [edge - (edges[i - 1] if i else 0) for i, edge in enumerate(edges)]


def parts_of(shares: Shares, cells: int) -> list[tuple[str, int]]:
    """Cells of each state in a bar: by largest remainder, and no part of 0.5 % or more vanishes while there is room."""
    times = [(state, max(int(getattr(shares, field)), 0)) for state, _, field in PARTS]
    total = sum(ns for _, ns in times)
    if total == 0 or cells <= 0:
        return []
    exact = [ns * cells / total for _, ns in times]
    given = [int(part) for part in exact]
    for i in sorted(range(len(exact)), key=lambda i: given[i] - exact[i])[: cells - sum(given)]:
        given[i] += 1
    for i, (_, ns) in enumerate(times):
        largest = max(range(len(given)), key=given.__getitem__)
        if ns * 200 >= total and given[i] == 0 and given[largest] > 1:
            given[i], given[largest] = 1, given[largest] - 1
    return [(state, n) for (state, _), n in zip(times, given, strict=True) if n]


def share_bar(shares: Shares, cells: int) -> Line:
    """A bar of `cells` for where the time goes."""
    if cells <= 0:
        return []
    if not shares.span_ns:
        return [(" " * cells, "dim")]
    return [(GLYPH[state] * n, state) for state, n in parts_of(shares, cells)]


def gauge(share: float | None, cells: int, role: str) -> Line:
    """A thin gauge of `cells`; empty where the share is not known."""
    if cells <= 0:
        return []
    if share is None:
        return [("┄" * cells, "faint")]
    full = min(cells, max(0, round(share * cells)))
    return [("━" * full, role), ("┄" * (cells - full), "faint")]


def spark(values: Sequence[float | None], cells: int, top: float | None = None, bottom: float = 0.0) -> str:
    """The last `cells` values as eighths of a cell's height, from `bottom` to `top`, by default the largest value."""
    shown = list(values)[-cells:] if cells > 0 else []
    known = [v for v in shown if v is not None]
    span = (top if top is not None else max(known, default=0.0)) - bottom
    return "".join(" " if v is None else _eighth((v - bottom) / span if span > 0 else float(v > 0)) for v in shown)


def _eighth(share: float) -> str:
    return EIGHTHS[min(8, max(1, round(share * 8)))]


def value(figure: Figure, show: Callable[[float], str]) -> str:
    """A figure's number, or the mark for one that is not known."""
    return UNKNOWN if figure.value is None else show(figure.value)


def first_reason(*figures: Figure) -> str:
    """Why a figure is missing: the first reason among these."""
    return next((f.reason for f in figures if f.value is None and f.reason), "")


BAR_CELLS: Final = 12
"""What a table keeps free for the bars at its right."""


@dataclass(frozen=True)
class Field:
    """A column of a table over rows of one type.

    show: a row's text and role; key: what rows are sorted by, None where they cannot be; width: cells, 0 for what is
    left; weight: the higher, the sooner the column goes where there is no room
    """

    title: str
    width: int
    show: Callable[[Any], tuple[str, str]]
    key: Callable[[Any], Any] | None = None
    align: Align = "right"
    weight: int = 0
    ascending: bool = False


def fields_that_fit(fields: Sequence[Field], width: int, least: int = 16) -> list[Field]:
    """The fields for which there is room; the one of width 0 needs `least` cells."""
    kept = list(fields)
    while len(kept) > 1 and sum(f.width or least for f in kept) + len(kept) - 1 > width:
        goes = max(kept, key=lambda f: (f.weight, fields.index(f)))
        if not goes.weight:
            break
        kept.remove(goes)
    return kept


def table(
    fields: Sequence[Field],
    rows: Sequence[Any],
    width: int,
    height: int,
    *,
    cursor: int | None = None,
    sorted_by: str = "",
    bars: Callable[[Any, int], Line] | None = None,
) -> list[Line]:
    """A header and as many rows as fit, scrolled so that row `cursor` is in view.

    bars: draws what is left of each row at the right, where no field has width 0
    """
    kept = fields_that_fit(fields, width - (BAR_CELLS if bars is not None else 0))
    fixed = sum(f.width for f in kept) + len(kept) - 1
    left = max(width - fixed, 0)
    header: Line = []
    for f in kept:
        marked = ("▼" if not f.ascending else "▲") + f.title if f.title == sorted_by else f.title
        header.append((fit(marked, f.width or left, f.align) + " ", "head"))
    lines: list[Line] = [header]
    room = height - 1
    top = 0
    if cursor is not None and len(rows) > room > 0:
        top = min(max(0, cursor - room // 2), len(rows) - room)
    for i, row in enumerate(rows[top : top + max(room, 0)], start=top):
        line: Line = []
        for f in kept:
            text, role = f.show(row)
            line.append((fit(text, f.width or left, f.align) + " ", role))
        if bars is not None and left > 2 and all(f.width for f in kept):
            line += bars(row, left - 1)
        lines.append(selected(pad(line, width)) if i == cursor else line)
    hidden = len(rows) - (len(lines) - 1)
    if hidden > 0 and room > 1:
        lines[-1] = [(f"… {hidden + 1} more", "dim")] if cursor is None else lines[-1]
    return lines


def message(text: str, width: int) -> list[Line]:
    """A reason in words, wrapped."""
    import textwrap

    return [[(line, "dim")] for line in textwrap.wrap(text, max(width, 10))]
