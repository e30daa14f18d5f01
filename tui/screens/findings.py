"""Findings: what costs time, on what evidence, what to try, and what it can bring at most."""

from __future__ import annotations

from moescope.profiler.snapshot import Finding, Snapshot
from moescope.tui.draw import box, message
from moescope.tui.screens.overview import SEVERITY, finding_line
from moescope.tui.state import ViewState
from moescope.tui.text import UNKNOWN, Line, clean, duration, selected


def shown(seen: Snapshot, view: ViewState) -> list[Finding]:
    """The findings as the list shows them."""
    needle = view.filter.casefold()
    return [f for f in seen.findings if needle in f"{f.what} {f.id}".casefold()]


def paint(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells."""
    inner = width - 4
    rows = shown(seen, view)
    upper = min(len(rows) + 3, max(height // 2, 4))
    state = view.table("findings")
    cursor = min(state.cursor, len(rows) - 1) if rows else None
    room = upper - 2
    top = max(0, min((cursor or 0) - room // 2, len(rows) - room))
    body: list[Line] = []
    for i, finding in enumerate(rows[top : top + room], start=top):
        line = finding_line(finding, inner)
        body.append(selected(line) if i == cursor else line)
    if not rows:
        body = message(
            "no finding matches the filter" if seen.findings else "nothing stands out in what is recorded so far", inner
        )
    lines = box("Findings", f"{len(rows)} · the gravest first", body, width, upper)
    detail = _fitted(_detail(seen, rows[cursor], inner), height - upper - 2) if cursor is not None else []
    title = clean(rows[cursor].id) if cursor is not None else "Chosen"
    return lines + box(title, "↵ opens the timeline there", detail, width, height - upper)


def _fitted(lines: list[Line], room: int) -> list[Line]:
    """The lines without the blank ones between them where that makes them fit, and how many are left out where not."""
    if len(lines) > room:
        lines = [line for line in lines if line]
    if len(lines) <= room:
        return lines
    kept = lines[: max(room - 1, 0)]
    return [*kept, [(f"… {len(lines) - len(kept)} more lines: a taller terminal shows them", "dim")]]


def _detail(seen: Snapshot, finding: Finding, width: int) -> list[Line]:
    sign, role = SEVERITY[finding.severity]
    where = UNKNOWN if finding.start_ns is None else f"{duration(finding.start_ns - seen.start_ns)} into the run"
    lines: list[Line] = [[(sign, role)]]
    parts = (
        ("What", finding.what),
        ("Evidence", finding.evidence),
        *((("Why", finding.why),) if finding.why else ()),
        ("Try", finding.advice),
        ("Gain", finding.gain or f"{UNKNOWN}  nothing recorded bounds it"),
        ("Where", where),
    )
    for name, text in parts:
        wrapped = message(clean(text), width - 10)
        for i, line in enumerate(wrapped):
            lines.append([(f"{name if i == 0 else '':<9} ", "key"), (line[0][0], "text")])
        lines.append([])
    return lines
