"""Execution units: how many SMs or cores communication holds, by rank and over time."""

from __future__ import annotations

from moescope.profiler.snapshot import Figure, RankRow, Snapshot, Timeline
from moescope.tui.draw import Field, box, first_reason, gauge, message, table
from moescope.tui.screens.timeline import held, label_cells
from moescope.tui.state import ViewState
from moescope.tui.text import UNKNOWN, Line, evidence_mark, figure_percent, fit, three


def _number(figure: Figure) -> str:
    if figure.value is None:
        return UNKNOWN
    return evidence_mark(figure) + (f"{figure.value:.0f}" if figure.value == int(figure.value) else three(figure.value))


def paint(seen: Snapshot, view: ViewState, width: int, height: int, timeline: Timeline | None) -> list[Line]:
    """The screen in `width` x `height` cells."""
    kind = "SMs" if any(row.units.kind == "sm" for row in seen.ranks) else "cores"
    rows = [row for row in seen.ranks if seen.rank_choice in (None, row.rank)]
    upper = min(len(rows) + 6, max(height // 2, 6))
    return allocation(rows, kind, view, width, upper) + over_time(seen, kind, width, height - upper, timeline)


def allocation(rows: list[RankRow], kind: str, view: ViewState, width: int, height: int) -> list[Line]:
    """One row a rank: typical and peak units for communication, and what they come to."""
    fields = (
        Field("rank", 5, lambda r: (str(r.rank), "strong")),
        Field(f"{kind}", 7, lambda r: (UNKNOWN if r.units.total is None else str(r.units.total), "text"), weight=1),
        Field("comm typical", 13, lambda r: (_number(r.units.comm_typical), "comm")),
        Field("comm peak", 10, lambda r: (_number(r.units.comm_peak), "comm")),
        Field("comm share", 11, lambda r: (figure_percent(r.units.comm_time_share, 1), "loss")),
        Field("compute typical", 16, lambda r: (_number(r.units.compute_typical), "compute"), weight=2),
        Field(
            "evidence",
            10,
            lambda r: (r.units.comm_typical.evidence if r.units.comm_typical.value is not None else UNKNOWN, "dim"),
            weight=3,
        ),
    )

    def bar(row: RankRow, cells: int) -> Line:
        return gauge(row.units.comm_time_share.value, cells, "comm")

    body = table(
        fields,
        rows,
        width - 4,
        height - 2,
        bars=bar,
        cursor=min(view.table("units").cursor, len(rows) - 1) if rows else None,
    )
    reason = first_reason(*(row.units.comm_typical for row in rows), *(row.units.comm_time_share for row in rows))
    if reason:
        body.append([(f"{UNKNOWN}  {reason}", "dim")])
    return box(f"{kind[0].upper()}{kind[1:]} held", f"share of all {kind}' time", body, width, height)


def over_time(seen: Snapshot, kind: str, width: int, height: int, timeline: Timeline | None) -> list[Line]:
    """Units that communication holds, cell by cell."""
    inner = width - 4
    lanes = [lane for lane in timeline.lanes if lane.kind == "units"] if timeline is not None else []
    if not lanes:
        why = "no record says which thread ran on which core: see `moescope doctor`"
        if kind == "SMs":
            why = "no record says which kernel ran on which SM: what is held is inferred from launch shapes"
        return box(f"{kind.capitalize() if kind != 'SMs' else kind} over time", "", message(why, inner), width, height)
    labels = label_cells(width)
    body: list[Line] = []
    for lane in lanes:
        line: Line = [(fit(f"rank {lane.rank}", labels) + " ", "text")]
        for cell in lane.cells:
            if cell.state == "comm":
                line.append((held(cell), "comm"))
            else:
                line.append(({"compute": "█", "idle": "·"}.get(cell.state, " ") * cell.length, cell.state))
        body.append(line)
    body += [
        [],
        [
            ("1", "comm"),
            (f" {kind} that run communication   ", "dim"),
            ("▚", "comm"),
            (" under a half   ", "dim"),
            ("█", "compute"),
            (" compute alone   ", "dim"),
            ("·", "idle"),
            (" neither", "dim"),
        ],
    ]
    return box(
        f"{kind.capitalize() if kind != 'SMs' else kind} over time", "the last steps · measured", body, width, height
    )
