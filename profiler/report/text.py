"""A summary as text for people: what hides communication, where the time goes, and what to look at."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from moescope.profiler.printable import all_printable
from moescope.profiler.report.amounts import LEAST_ERROR, UNKNOWN, share_text, time_text
from moescope.profiler.report.devices import device_notes
from moescope.profiler.report.machine import bound_of, machine_notes
from moescope.profiler.report.ranks import collective_rows, listed, rank_notes

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

_PARTS: Final = (
    ("compute", "█", "#4A7FE8"),
    ("overlapped", "▓", "#A6E8DC"),
    ("exposed comm", "▒", "#D9591C"),
    ("other", "-", "#F2D544"),
    ("idle", "·", "#3A3F4A"),
)
_SEVERITY: Final = {"high": ("▲", "#D9591C"), "medium": ("●", "#F2D544"), "low": ("·", "dim")}
_RANK_COLUMNS: Final = (
    "rank", "device", "span", "busy", "compute", "comm", "hidden", "exposed", "idle", "comm {}",
)  # fmt: skip
_DISPENSABLE: Final = ("busy", "device", "span", "compute")
_INDENT: Final = 10
_ROWS: Final = 12
_NEARLY_ALL: Final = 0.995
_WIDE: Final = 0.05
"""Error of a share from which on it is told what narrows it."""
_PLAIN_WIDTH: Final = 120
"""Columns where nobody looks: a file or pipe takes any width."""


def render_text(summary: dict[str, Any], console: Console) -> None:
    """Print a summary; colours only on a terminal, and nothing that a name may hold to disturb it."""
    from rich.text import Text

    summary = all_printable(summary)
    if not console.is_terminal:
        console.width = max(console.width, _PLAIN_WIDTH)
    shown_first = summary["steps"] or summary["total"]
    console.print(Text(headline(summary), style="bold"), soft_wrap=not console.is_terminal)
    console.print(_bar(shown_first, max(20, min(console.width, 100) - 2)), soft_wrap=True)
    console.print(_legend(shown_first, console.width), soft_wrap=True)
    if summary["steps"]:
        console.print(Text(whole_line(summary["total"])), soft_wrap=not console.is_terminal)
    console.print()
    shown, left = listed(summary["ranks"])
    console.print(_ranks(shown, console))
    if left:
        console.print(Text(left))
    tables = {
        "Phases": _phases(summary["ranks"]),
        "Operators": _operators(summary["ranks"]),
        "Collectives": _collectives(summary),
    }
    for title, table in tables.items():
        if table.row_count:
            console.print(Text(f"\n{title}", style="bold"))
            console.print(table)
    console.print()
    for note in (*_notes(summary), *device_notes(summary), *rank_notes(summary)):
        console.print(Text(note), soft_wrap=not console.is_terminal)
    if summary["findings"]:
        console.print(Text("\nFindings", style="bold"), end="")
        width = console.width if console.is_terminal else None
        console.print(_findings(summary["findings"], width), soft_wrap=True, end="")


def headline(summary: dict[str, Any]) -> str:
    """One sentence: how much communication is hidden, and what the rest costs; of the steps, where there are any."""
    total, ranks = summary["total"], summary["ranks"]
    count = len({rank["rank"] for rank in ranks})
    who = f"{summary['source']}: {count} rank{'s' if count != 1 else ''}"
    if summary["steps"]:
        return f"{who}. {steps_line(summary['steps'])}"
    who = f"{who}, {time_text(total['span_us'])} of device time"
    if total["overlap_fraction"] is None:
        return f"{who}; no communication, {_share(total['busy_us'], total['span_us'])} busy."
    return (
        f"{who}; {total['overlap_fraction']:.1%} of communication is hidden, "
        f"{time_text(total['exposed_comm_us'])} ({_share(total['exposed_comm_us'], total['span_us'])}) is exposed."
    )


def whole_line(total: dict[str, Any]) -> str:
    """The whole recording beside its steps: starting up is part of it, and hides what a step looks like."""
    whole = f"{time_text(total['span_us'])} of device time with what lies around these steps"
    return f"All that was recorded, {whole}: {_said(total)}."


def steps_line(steps: dict[str, Any]) -> str:
    """The steps alone."""
    stage, count, others = steps["stage"], steps["count"], steps["others"]
    which = f"{stage} " if stage and (others or stage == "decode") else ""
    left = [f"{other['count']} of {other['stage'] or 'no stage'}" for other in others]
    if cold := steps["warm_up"]:
        first = "the first" if cold["count"] == 1 else f"the first {cold['count']}"
        left.append(f"{first}, {time_text(cold['us'])} of warm-up,")
    without = f"; {' and '.join(left)} left out" if left else ""
    if many := steps["long"]["count"]:
        take = "takes" if many == 1 else "take"
        without += f"; {many} of them {take} over {steps['long']['times']} times that, "
        without += f"{time_text(steps['long']['us'])} in all"
    median = f"(median {time_text(steps['median_us'])}{without})"
    return f"Over its {count} {which}step{'s' if count != 1 else ''} {median}: {_said(steps)}."


def _said(times: dict[str, Any]) -> str:
    fraction, whole = times["overlap_fraction"], times["span_us"]
    hidden = "no communication" if fraction is None else f"{fraction:.1%} of communication hidden"
    shares = (("exposed_comm_us", "exposed"), ("compute_us", "compute"), ("idle_us", "idle"))
    told = shares[1:] if fraction is None else shares
    errors = times.get("errors") or {}
    said = (f"{_share(times[key], whole, errors.get(key.removesuffix('_us'), 0.0))} {word}" for key, word in told)
    return ", ".join([hidden, *said])


def _parts(total: dict[str, Any]) -> list[float]:
    compute = total["compute_us"] - total["overlapped_us"]
    other = total["span_us"] - total["idle_us"] - compute - total["comm_us"]
    return [compute, total["overlapped_us"], total["exposed_comm_us"], max(other, 0), total["idle_us"]]


def _bar(total: dict[str, Any], width: int) -> Any:
    from rich.text import Text

    bar, cells, reached = Text(), 0, 0.0
    for (_, glyph, colour), value in zip(_PARTS, _parts(total), strict=True):
        reached += value
        end = round(reached / total["span_us"] * width) if total["span_us"] else 0
        bar.append(glyph * (end - cells), style=colour)
        cells = end
    return bar


def _legend(total: dict[str, Any], width: int) -> Any:
    from rich.text import Text

    legend, used = Text(), 0
    for (name, glyph, colour), value in zip(_PARTS, _parts(total), strict=True):
        text = f" {name} {_share(value, total['span_us'])}"
        size = len(glyph) + len(text)
        between = "" if not used else "   " if used + 3 + size <= width else "\n"
        used = used + 3 + size if between == "   " else size
        legend.append(between).append(glyph, style=colour).append(text)
    return legend


def _share(part: float, whole: float, error: float = 0.0) -> str:
    """error: of the share, told where it shows in the digits that are printed"""
    if not whole:
        return UNKNOWN
    return share_text(part / whole, error)


def _optional(value: float | None, form: str = "{}") -> str:
    return UNKNOWN if value is None else form.format(value)


def _table(*columns: str) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="dim", show_edge=False)
    for at, column in enumerate(columns):
        table.add_column(
            column, justify="left" if at == 0 else "right", no_wrap=at > 0 or column == "rank", overflow="fold"
        )
    return table


def _ranks(ranks: list[dict[str, Any]], console: Console) -> Table:
    """A row a rank; where the terminal is narrow, what other columns tell goes first."""
    from rich.measure import Measurement

    noun = "cores" if ranks[0]["units"]["kind"] == "core" else "SMs"
    for count in range(len(_DISPENSABLE) + 1):
        left_out = _DISPENSABLE[:count]
        table = _table(*(name.format(noun) for name in _RANK_COLUMNS if name not in left_out))
        for rank in ranks:
            cells = zip(_RANK_COLUMNS, _rank_cells(rank), strict=True)
            _row(table, *(cell for name, cell in cells if name not in left_out))
        if Measurement.get(console, console.options.update(width=1000), table).maximum <= console.width:
            break
    return table


def _rank_cells(rank: dict[str, Any]) -> tuple[str, ...]:
    units = rank["units"]
    return (
        str(rank["rank"]),
        rank["device"],
        time_text(rank["span_us"]),
        _share(rank["busy_us"], rank["span_us"]),
        time_text(rank["compute_us"]),
        time_text(rank["comm_us"]),
        _optional(rank["overlap_fraction"], "{:.1%}"),
        time_text(rank["exposed_comm_us"]),
        _share(rank["idle_us"], rank["span_us"]),
        UNKNOWN if units["comm_typical"] is None else f"{units['comm_typical']}/{_optional(units['total'])}",
    )


def _merged(
    ranks: list[dict[str, Any]], table: str, keys: tuple[str, ...], sums: tuple[str, ...]
) -> list[dict[str, Any]]:
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for rank in ranks:
        for row in rank[table]:
            key = tuple(row[name] for name in keys)
            into = found.setdefault(key, dict(zip(keys, key, strict=True)) | dict.fromkeys(sums, 0))
            for name in sums:
                into[name] += row[name]
    return sorted(found.values(), key=lambda row: -row["total_us"])


def _phases(ranks: list[dict[str, Any]]) -> Table:
    table = _table("phase", "count", "total", "comm", "exposed")
    rows = _merged(ranks, "phases", ("name",), ("count", "total_us", "comm_us", "exposed_comm_us"))
    rows.sort(key=lambda row: (-row["exposed_comm_us"], -row["total_us"]))
    for row in rows[:_ROWS]:
        values = time_text(row["total_us"]), time_text(row["comm_us"]), time_text(row["exposed_comm_us"])
        _row(table, row["name"], str(row["count"]), *values)
    return _and_more(table, len(rows))


def _operators(ranks: list[dict[str, Any]]) -> Table:
    table = _table("operator", "kind", "count", "total", "share", "bound")
    rows = _merged(ranks, "operators", ("class", "kind"), ("count", "total_us"))
    whole = sum(row["total_us"] for row in rows)
    for row in rows[:_ROWS]:
        _row(
            table,
            row["class"],
            row["kind"],
            str(row["count"]),
            time_text(row["total_us"]),
            _share(row["total_us"], whole),
            bound_of(ranks, row["class"], row["kind"]) or UNKNOWN,
        )
    return _and_more(table, len(rows))


def _and_more(table: Table, count: int) -> Table:
    """The table of the first rows of so many, which says how many it leaves out."""
    if count > _ROWS:
        _row(table, f"… {count - _ROWS} more: see --json", *[""] * (len(table.columns) - 1))
    return table


def _row(table: Table, *cells: str) -> None:
    """A row of plain text: a `[` in a name is no markup."""
    from rich.text import Text

    table.add_row(*(Text(cell) for cell in cells))


def _collectives(summary: dict[str, Any]) -> Table:
    table = _table("collective", "count", "wait", "transfer", "median", "bus rate", "last rank: times")
    for row in collective_rows(summary):
        table.add_row(*row)
    return table


def _notes(summary: dict[str, Any]) -> list[str]:
    total = summary["total"]
    units = summary["ranks"][0]["units"]
    notes = [f"Evidence: times {summary['evidence']}, units {units['evidence']}."]
    errors = (summary["steps"] or {}).get("errors") or {}
    error = max(errors.get(name, 0.0) for name in ("exposed_comm", "compute", "idle"))
    if summary["steps"]:
        notes.append(
            "The first line, the bar and the findings are of these steps; the tables are of all that was recorded."
        )
    if units["comm_typical"] is None:
        notes.append(f"Units: {units['comm_typical_reason']}.")
    notes += machine_notes(summary["ranks"])
    if summary["coverage"] < 1:
        told = "; ± by how recorded steps scatter, 95%" if error >= LEAST_ERROR else ""
        narrower = ": narrower with more of them (a longer run, a larger --budget)" if error >= _WIDE else ""
        notes.append(
            f"Coverage: operators were recorded {summary['coverage']:.1%} of the time; figures count that alone"
            f"{told}{narrower}."
        )
    if summary["cost_share"] is not None:
        notes.append(
            f"Recording is reckoned to have cost the ranks {summary['cost_share']:.1%} of their time, the recorder "
            "beside them left out."
        )
    notes += _phase_note(summary["ranks"])
    unseen = sorted({thread for rank in summary["ranks"] for thread in rank.get("unseen_threads", ())})
    if unseen:
        names = ", ".join(unseen[:4]) + (" …" if len(unseen) > 4 else "")
        notes.append(
            f"WARNING: operators of {names} are not recorded, and count as idle: on a CPU those of the main thread "
            "are, of threads that communicate, and of the one that makes the steps."
        )
    if summary["state"] == "live":
        notes.append("The run still goes on: these are its figures so far.")
    if summary["state"] == "torn":
        notes.append("WARNING: the recording was cut short: its recorder ended before the run did, or data is missing.")
    if total["unknown_us"]:
        share = _share(total["unknown_us"], total["span_us"])
        notes.append(
            f"WARNING: {time_text(total['unknown_us'])} ({share}) under kernels that no rule knows: see --rules."
        )
    if summary["dropped_events"]:
        notes.append(f"WARNING: {summary['dropped_events']} events were dropped: queues were full.")
    if summary["ranks_without_kernels"]:
        notes.append(f"WARNING: no kernels of rank {', '.join(map(str, summary['ranks_without_kernels']))}.")
    notes += [f"WARNING: {file} ends in a torn batch; every whole batch counts." for file in summary["torn"]]
    for line in summary["log"]["lines"][:5]:
        rank = "" if line["rank"] is None else f" rank {line['rank']}"
        notes.append(f"{str(line['level']).upper()}{rank} {line['source']}: {line['message']}")
    if summary["log"]["warnings"] > 5:
        notes.append(f"… {summary['log']['warnings']} warnings in all: see --json.")
    return notes


def _phase_note(ranks: list[dict[str, Any]]) -> list[str]:
    """How much of the kernels' time the phases account for, where it is not all of it."""
    covered = [rank["phase_coverage"] for rank in ranks if rank["phases"]]
    time = sum(one["time_us"] for one in covered)
    share = sum(one["with_phase_us"] for one in covered) / time if time else 1.0
    if share >= _NEARLY_ALL:
        return []
    shared = sum(one["graph_kernels"] for one in covered)
    graphs = f"; {shared} kernels share a launch and its phase, as those of a graph do" if shared else ""
    return [f"Phases: {share:.1%} of the kernels' time was launched inside one{graphs}."]


def _findings(findings: list[dict[str, Any]], width: int | None) -> Any:
    """Severity beside what it is; below it the evidence, what to try, and what that brings at most, where known.

    width: of the terminal; None leaves each part on a line of its own, however long
    """
    from rich.text import Text

    text = Text()
    for finding in findings:
        mark, style = _SEVERITY.get(finding["severity"], ("·", ""))
        text.append(f"\n{mark} {finding['severity']:8}", style=style)
        what = finding["what"] if finding["what"].endswith((".", "!", "?")) else finding["what"] + "."
        text.append(_hanging(what, "", width), style="bold").append("\n")
        if finding["evidence"]:
            text.append(" " * _INDENT + _hanging(finding["evidence"], "", width) + "\n", style="dim")
        for label, key in (("why:  ", "why"), ("try:  ", "try"), ("gain: ", "gain")):
            if finding.get(key):
                text.append(" " * _INDENT).append(label, style="cyan")
                text.append(_hanging(finding[key], label, width) + "\n")
    return text


def _hanging(text: str, label: str, width: int | None) -> str:
    """`text` wrapped to stand behind the indent and a label."""
    if width is None:
        return text
    import textwrap

    indent = _INDENT + len(label)
    return f"\n{' ' * indent}".join(textwrap.wrap(text, max(20, width - indent)))
