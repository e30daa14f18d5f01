"""A comparison as text: what changed first, then figures, phases and operators side by side, and the thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from moescope.profiler.compare.differences import Comparison, Difference
from moescope.profiler.compare.sides import Measure, Side
from moescope.profiler.compare.thresholds import Judged
from moescope.profiler.printable import printable
from moescope.profiler.report.amounts import UNKNOWN, time_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_ROWS: Final = 12
_PLAIN_WIDTH: Final = 120
_MARKS: Final = {"beyond": "", "within": "~", "unknown": "?"}
_ORDER: Final = ("step", "span", "exposed", "overlapped", "comm", "compute", "memory", "unknown", "idle", "busy")


def render_comparison(found: Comparison, judged: Sequence[Judged], console: Console) -> None:
    """Print a comparison; names are printed as text, whatever they hold."""
    from rich.text import Text

    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)

    def line(text: str, style: str = "") -> None:
        console.print(Text(printable(text), style=style), soft_wrap=not console.is_terminal)

    line(headline(found), "bold")
    line(f"A  {_about(found.a)}")
    line(f"B  {_about(found.b)}")
    for reason in found.forbidden:
        line(f"WARNING: not comparable, {reason}: no differences are told.", "bold")
    if found.untimed:
        line(f"WARNING: {found.untimed}: only shares are compared.", "bold")
    of = "step" if found.per_step else "whole source"
    console.print()
    console.print(_figures(found, of, console))
    for title, table in (("Phases", _phases(found, console)), ("Operators", _operators(found, console))):
        if table.row_count:
            console.print()
            line(title if found.forbidden else f"{title}, those that differ most first", "bold")
            console.print(table)
    console.print()
    for note in (*found.notes, *_legend(found)):
        line(note)
    if judged:
        console.print()
        line("Thresholds", "bold")
        for one in judged:
            line(verdict_line(one), "" if one.failed is False else "bold")


def headline(found: Comparison) -> str:
    """One sentence: whether a step takes longer, and what of it changed most."""
    if found.forbidden:
        return "A and B are not comparable."
    row = found.figures.get("step") or found.figures.get("span")
    what = "A step" if "step" in found.figures else "The whole source"
    if row is None or row.change_us is None or row.a.us is None:
        return "A and B are compared by shares of their time alone."
    times = f"{time_text(row.a.us)} in A, {time_text(row.b.us)} in B"
    if row.verdict == "within":
        return f"{what} takes as long, as far as its steps' scatter lets tell: {times}."
    if not row.change_us:
        return f"{what} takes as long: {times}."
    size = f"{abs(row.relative):.1%} " if row.relative is not None else ""
    return f"{what} takes {size}{'longer' if row.change_us > 0 else 'shorter'}: {times}{_most(found)}."


def _most(found: Comparison) -> str:
    """Which part of the time changed most, among those that add up to all of it."""
    parts = {name: found.figures[name] for name in ("exposed", "idle") if name in found.figures}
    changed = [
        (abs(row.change_us), name, row) for name, row in parts.items() if row.change_us and row.verdict != "within"
    ]
    if not changed:
        return ""
    _, name, row = max(changed, key=lambda one: one[0])
    word = {"exposed": "exposed communication", "idle": "idle time"}[name]
    return f"; {word} {_signed(row.change_us)}"


def verdict_line(one: Judged) -> str:
    """A threshold and what it says."""
    if one.failed is None:
        return f"? {one.threshold.text}: cannot be told: {one.reason}"
    mark = "✗ FAILED" if one.failed else "✓ passed"
    values = f"{_plain(one.a, one)} in A, {_plain(one.b, one)} in B"
    change = f", {_change(one)}" if one.threshold.change else ""
    noise = "; the difference is within the scatter of steps" if one.within_noise else ""
    return f"{mark} {one.threshold.text}: {values}{change}{noise}"


def _change(one: Judged) -> str:
    if one.value == float("inf"):
        return "from nothing"
    if one.threshold.unit == "us":
        return _signed(one.value)
    unit = "pp" if one.threshold.unit == "pp" else "%"
    return f"{(one.value or 0) * 100:+.2f}{unit}"


def _plain(value: float | None, one: Judged) -> str:
    if value is None:
        return UNKNOWN
    share = one.threshold.unit == "pp" or one.threshold.metric == ("overlap",)
    share = share or (one.threshold.unit == "%" and not one.threshold.change)
    return f"{value:.2%}" if share else time_text(value)


def _about(side: Side) -> str:
    parts = [f"{side.ranks} rank{'s' if side.ranks != 1 else ''}"]
    parts.append(", ".join(side.hardware) or "device not told")
    if side.steps:
        stage = f" of {side.stage}" if side.stage else ""
        parts.append(f"{side.steps} step{'s' if side.steps != 1 else ''}{stage}")
    else:
        parts.append("whole source")
    return f"{side.name}: {', '.join(parts)}"


def _figures(found: Comparison, of: str, console: Console) -> Table:
    columns = (f"mean device, {of}", "A", "B", "difference", "", "A share", "B share", "")
    rows: list[tuple[str, ...]] = []
    for name in _ORDER:
        row = found.figures.get(name)
        if row is None or (name == "unknown" and not row.a.us and not row.b.us):
            continue
        word = {"exposed": "exposed comm", "overlapped": "overlapped comm", "memory": "memory copies"}.get(name, name)
        shares = ("", "") if name in ("step", "span") else (_share(row.a), _share(row.b))
        rows.append((word, *_times(row), *shares, _mark(row)))
    both = (found.a.overlap, found.b.overlap)
    points = "" if found.overlap_points is None else f"{found.overlap_points * 100:+.1f} pp"
    rows.append(("overlap", *("–" if one is None else f"{one:.1%}" for one in both), points, "", "", "", ""))
    return _fitted(console, columns, rows, (5, 6))


def _phases(found: Comparison, console: Console) -> Table:
    figures = ("busy", "exposed") if found.per_step else ("comm", "exposed")
    titles = {"busy": "device time", "comm": "comm", "exposed": "exposed"}
    columns = [text for figure in figures for text in (f"{titles[figure]} A", "B", "difference", "")]
    names = list(dict.fromkeys(name for name, _ in found.phases))

    def size(name: str) -> tuple[float, float]:
        return max(_size(found.phases.get((name, figure))) for figure in figures)

    rows = []
    for name in sorted(names, key=size, reverse=True)[:_ROWS]:
        cells: list[str] = []
        for figure in figures:
            row = found.phases.get((name, figure))
            cells += [UNKNOWN, UNKNOWN, "", ""] if row is None else [*_times(row)[:3], _mark(row)]
        rows.append((name, *cells))
    return _fitted(console, ("phase", *columns), rows, (1, 2, 3, 4))


def _operators(found: Comparison, console: Console) -> Table:
    columns = ("operator", "kind", "A", "B", "difference", "", "A share", "B share", "")
    ordered = sorted(found.operators.items(), key=lambda item: _size(item[1]), reverse=True)
    rows = [
        (operator, kind, *_times(row), _share(row.a), _share(row.b), _mark(row))
        for (operator, kind), row in ordered[:_ROWS]
    ]
    return _fitted(console, columns, rows, (1, 6, 7))


def _fitted(console: Console, columns: Sequence[str], rows: Sequence[Sequence[str]], spare: Sequence[int]) -> Table:
    """A table of plain text; where the terminal is too narrow for it, without the columns that can be spared.

    A `[` in a name is no markup.
    """
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    for left_out in ((), tuple(spare)):
        table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
        kept = [at for at in range(len(columns)) if at not in left_out]
        for at in kept:
            table.add_column(columns[at], justify="left" if at == 0 else "right", no_wrap=at > 0, overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(row[at])) for at in kept))
        if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
            break
    return table


def _size(row: Difference | None) -> tuple[float, float]:
    """By what rows are ordered: the change, and how long it takes in either."""
    if row is None:
        return 0.0, 0.0
    return abs(row.change_us or 0.0), max(row.a.us or 0.0, row.b.us or 0.0)


def _mark(row: Difference) -> str:
    return _MARKS[row.verdict] if row.change_us else ""


def _times(row: Difference) -> tuple[str, str, str, str]:
    change = "" if row.change_us is None else _signed(row.change_us)
    relative = "" if row.relative is None else f"{row.relative:+.1%}"
    if row.change_us is None and row.points is not None:
        change = f"{row.points * 100:+.1f} pp"
    return time_text(row.a.us), time_text(row.b.us), change, relative


def _legend(found: Comparison) -> Iterable[str]:
    rows = [*found.figures.values(), *found.phases.values(), *found.operators.values()]
    if found.per_step and not found.forbidden:
        how = "medians over whole steps" if found.a.medians else "shares of the recorded time, times the median step"
        yield f"Figures are {how} [derived]."
    if any(row.verdict == "within" for row in rows):
        yield "~: no more than steps scatter inside a run (95 %); two runs of one program may differ by more."
    if any(row.verdict == "unknown" and row.change_us for row in rows):
        yield "?: too few steps, or none, to tell how far it scatters."


def _share(one: Measure) -> str:
    return UNKNOWN if one.share is None else f"{one.share:.1%}"


def _signed(us: float | None) -> str:
    if us is None:
        return UNKNOWN
    return f"{'+' if us > 0 else '-' if us < 0 else '±'}{time_text(abs(us))}"
