"""The first screen: where a step goes, which rank, which engine, which phase, and what to do about it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from moescope.profiler.snapshot import Engine, Finding, PhaseRow, RankRow, Snapshot
from moescope.tui.draw import (
    GLYPH,
    PARTS,
    Field,
    beside,
    box,
    first_reason,
    gauge,
    message,
    share_bar,
    spark,
    split,
    table,
)
from moescope.tui.rows import arrange, note
from moescope.tui.state import ViewState
from moescope.tui.text import (
    UNKNOWN,
    Line,
    clean,
    count,
    duration,
    evidence_mark,
    figure_percent,
    fit,
    length,
    milliseconds,
    of_whole,
    percent,
    scaled,
    spread,
)

_SHORT = {"compute only": "compute", "comm hidden": "hidden", "comm EXPOSED": "EXPOSED", "memory, other": "other"}
SEVERITY = {"high": ("▲ HIGH", "loss"), "medium": ("● MED ", "comm"), "low": ("○ LOW ", "dim")}


STEPS_BOTTOM = 0.8
"""Where the line of steps begins, as a share of the shortest: so that steps that differ by a tenth look different."""


def exposed_share(row: RankRow) -> float | None:
    """Exposed communication over the recorded time of a rank."""
    return row.shares.exposed_ns / row.shares.span_ns if row.shares.span_ns else None


def _units(row: RankRow) -> str:
    typical, total = row.units.comm_typical, row.units.total
    whole = UNKNOWN if total is None else str(total)
    held = UNKNOWN if typical.value is None else f"{evidence_mark(typical)}{typical.value:.0f}"
    return f"{held}/{whole}"


def _state(row: RankRow) -> tuple[str, str]:
    return {
        "running": ("▸", "good"),
        "ended": ("■", "dim"),
        "killed": ("✗", "loss"),
        "trace": ("◆", "dim"),
    }[row.state]


def rank_fields(seen: Snapshot) -> tuple[Field, ...]:
    """Columns of the table of ranks."""
    units = "SMs" if any(row.units.kind == "sm" for row in seen.ranks) else "cores"

    def hot(row: RankRow) -> tuple[str, str]:
        share = exposed_share(row)
        return percent(share), "loss" if share is not None and share >= 0.10 else "text"

    return (
        Field("rank", 5, lambda r: (str(r.rank), "strong"), lambda r: r.rank, ascending=True),
        Field("exp%", 6, hot, exposed_share),
        Field(
            "hid%",
            6,
            lambda r: (figure_percent(r.overlap_fraction), "text"),
            lambda r: r.overlap_fraction.value,
            weight=1,
        ),
        Field("step ms", 8, lambda r: (milliseconds(r.step_ns.value), "text"), lambda r: r.step_ns.value, weight=2),
        Field("MU%", 5, lambda r: (figure_percent(r.matrix_use), "text"), lambda r: r.matrix_use.value, weight=3),
        Field(f"comm {units}", 10, lambda r: (_units(r), "text"), lambda r: r.units.comm_typical.value, weight=4),
    )


def ranks_shown(seen: Snapshot, view: ViewState) -> list[RankRow]:
    """The ranks as the table shows them."""
    return arrange(seen.ranks, rank_fields(seen), view.table("overview"), view.filter, lambda r: f"{r.rank} {r.host}")


def paint(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells. What survives a small terminal: step, ranks, one finding."""
    step_height = 7 if height >= 26 else 6 if height >= 18 else 5
    lines = step_panel(seen, view, width, min(step_height, height))
    left = height - len(lines)
    findings_room = max(4, min(2 * len(seen.findings) + 2, left // 3)) if left >= 12 else 3 if left >= 7 else 0
    middle = left - findings_room
    if width < 76:
        middle_lines = ranks_panel(seen, view, width, middle)
    else:
        need = max(len(seen.ranks) + 2, len(seen.engines)) + 2
        upper = middle if middle < need + 6 else max(need, 6)
        a, b = split(width, 55, 45)
        middle_lines = beside(ranks_panel(seen, view, a, upper), engines_panel(seen, view, b, upper))
        if middle - upper:
            middle_lines += phases_panel(seen, view, width, middle - upper)
    lines += middle_lines
    if findings_room:
        lines += findings_panel(seen, width, height - len(lines))
    return lines[:height]


def step_panel(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """Where one step, or one token, goes."""
    inner = width - 4
    one = "one decode step" if seen.words_of == "decode" else "one step"
    title = f"Where {one} goes" if seen.steps_ns else "Where the time goes"
    shares = seen.shares
    bar = share_bar(shares, inner)
    body: list[Line] = []
    if not shares.span_ns:
        body = message("Nothing is recorded yet: operators are recorded in windows once torch is imported.", inner)
    else:
        body = [bar] * (2 if height >= 6 else 1) + [_legend(seen, view, inner)]
        worst = _worst_phase(seen)
        if height >= 7 or (height == 6 and not seen.steps_ns):
            body.append(worst)
        body.append(_steps(seen, inner) if seen.steps_ns else [])
    return box(title, f"{seen.shares_note} · derived", body, width, height)


def _legend(seen: Snapshot, view: ViewState, width: int) -> Line:
    """The parts with their shares, in the first of these forms that fits."""
    lines = (_legend_form(seen, view, names, times) for names, times in ((1, True), (1, False), (2, False), (0, False)))
    forms = list(lines)
    return next((line for line in forms if length(line) - 2 <= width), forms[-1])


def _legend_form(seen: Snapshot, view: ViewState, names: int, times: bool) -> Line:
    """names: 1 in full, 2 short, 0 none: the glyph is the name; times: beside the shares"""
    shares, line = seen.shares, Line()
    for state, name, field in PARTS:
        ns = getattr(shares, field)
        if state == "memory" and ns * 200 < shares.span_ns:
            continue
        text = {0: "", 1: f"{name} ", 2: f"{_SHORT.get(name, name)} "}[names]
        figures = [percent(ns / shares.span_ns), duration(ns)]
        if times and not view.relative and seen.steps_ns:
            figures.reverse()
        line += [(GLYPH[state] * (2 if names == 1 else 1), state), (f" {text}", "text")]
        line.append((figures[0], "loss" if state == "exposed" else "strong"))
        line += [(f" {figures[1]}", "dim")] if times else []
        line.append(("  ", "text"))
    return line


def _worst_phase(seen: Snapshot) -> Line:
    worst = max(seen.phases, key=lambda p: p.exposed_ns, default=None)
    if worst is None or not worst.exposed_ns:
        return [("worst phase ", "dim"), (UNKNOWN, "text"), ("  no phase has exposed communication", "dim")]
    return [
        ("worst phase ", "dim"),
        (clean(worst.name), "strong"),
        ("  exposed ", "dim"),
        (percent(worst.exposed_ns / worst.comm_ns if worst.comm_ns else None, 0), "loss"),
        (f" of its communication, {duration(worst.exposed_ns)} of {duration(worst.comm_ns)}", "dim"),
    ]


def _steps(seen: Snapshot, width: int) -> Line:
    steps = seen.steps_ns
    tail: Line = [("  p50 ", "dim"), (duration(seen.step_median.value), "strong")]
    tail += [("  p99 ", "dim"), (duration(seen.step_p99.value), "text")]
    if seen.straggler and length(tail) + len(seen.straggler) + 24 < width:
        tail += [("  straggler ", "dim"), (seen.straggler, "loss")]
    head: Line = [("steps ", "dim")]
    room = min(len(steps), width - length(head) - length(tail))
    return [*head, (spark([float(s) for s in steps], room, bottom=min(steps) * STEPS_BOTTOM), "compute"), *tail]


def ranks_panel(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """One row a rank."""
    state = view.table("overview")
    fields = rank_fields(seen)
    rows = ranks_shown(seen, view)

    def shown(row: RankRow) -> tuple[str, str]:
        return _state(row)

    def bar(row: RankRow, cells: int) -> Line:
        return share_bar(row.shares, cells)

    marked = (Field("", 1, shown), *fields)
    body = table(
        marked,
        rows,
        width - 4,
        height - 2,
        cursor=min(state.cursor, max(len(rows) - 1, 0)) if rows else None,
        bars=bar,
    )
    if not rows:
        body = message("no rank matches the filter" if seen.ranks else "no rank has told itself yet", width - 4)
    missing = first_reason(*(row.matrix_use for row in rows))
    if missing:
        body += message(f"MU%  {UNKNOWN}  {missing}", width - 4)[: max(height - 2 - len(body), 0)]
    return box(
        "Ranks", f"derived · {note(len(rows), len(seen.ranks), view.filter, fields, state)}", body, width, height
    )


def engines_panel(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """What is used of what there is; each gauge says from where."""
    inner = width - 4
    engines: Sequence[Engine] = seen.engines
    if seen.words_of == "decode":
        engines = sorted(engines, key=lambda e: e.name not in ("HBM", "DRAM"))
    body: list[Line] = []
    name_room = min(max((len(e.name) for e in engines), default=8), max(10, inner // 3))
    sources = height - 2 >= 2 * len(engines) and inner >= 40
    for engine in engines[: height - 2]:
        body += _engine(engine, view, name_room, inner)[: 2 if sources else 1]
    if not engines:
        body = message("no sampler has told anything yet", inner)
    if len(engines) > height - 2:
        hidden = len(engines) - (height - 3)
        body[-1] = [(f"… {hidden} more: a taller terminal shows them", "dim")]
    return box("Engines", f"% of {seen.peaks_note or 'peak'} · {seen.time_note}", body, width, height)


def _engine(engine: Engine, view: ViewState, name_room: int, width: int) -> list[Line]:
    """A gauge and where it is from; in place of both the reason, where nothing is known."""
    head: Line = [(fit(engine.name, name_room) + " ", "text")]
    room = width - name_room - 1
    if engine.share.value is None and engine.used.value is None:
        reason = f"{UNKNOWN} {engine.share.reason or engine.used.reason}"
        first, *more = textwrap.wrap(reason, room)
        if more:
            return [[*head, (fit(f"{first} …", room), "dim")], [(fit(f"  {' '.join(more)}", width), "dim")]]
        line: Line = [*head, (first, "dim")]
    else:
        line = [*head, *_gauge(engine, view, room)]
    return [line, [(fit(f"  {engine.share.evidence} · {engine.source}", width), "faint")]]


def _gauge(engine: Engine, view: ViewState, room: int) -> Line:
    role = "comm" if "link" in engine.source or "comm" in engine.name or "tx" in engine.name else "compute"
    amount = _amount(engine)
    share = fit(figure_percent(engine.share), 6, "right")
    if view.relative or room < 34:
        return [*gauge(engine.share.value, room - 6, role), (share, "strong")]
    amount_room = max(18, min(22, room - 18))
    if engine.share.value is None:
        words = f"{amount} · {UNKNOWN} {engine.share.reason or engine.peak.reason}"
        return [(fit(words, room, "right"), "dim")]
    return [
        *gauge(engine.share.value, room - 7 - amount_room, role),
        (share, "strong"),
        (" " + fit(amount, amount_room, "right"), "dim"),
    ]


def _amount(engine: Engine) -> str:
    """Used and peak, with one unit for both; nothing where the share says it all."""
    unit = {"bytes": "B", "bytes/s": "B/s"}.get(engine.unit, engine.unit)
    if not unit:
        return ""
    used, peak = engine.used.value, engine.peak.value
    return scaled(used, unit) if peak is None else of_whole(used, peak, unit)


def phases_panel(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """Phases by their exposed communication."""
    whole = sum(phase.exposed_ns for phase in seen.phases) or 1
    fields = (
        Field("phase", 24, lambda p: (p.name, "strong"), align="left"),
        Field("times", 8, lambda p: (count(p.count), "text"), weight=3),
        Field("total", 10, lambda p: (duration(p.total_ns), "text"), weight=2),
        Field("comm", 10, lambda p: (duration(p.comm_ns), "text"), weight=1),
        Field("exposed", 10, lambda p: (duration(p.exposed_ns), "loss" if p.exposed_ns else "dim")),
    )

    def bar(phase: PhaseRow, cells: int) -> Line:
        return [("▒" * round(cells * phase.exposed_ns / whole), "exposed")]

    rows = [p for p in sorted(seen.phases, key=lambda p: -p.exposed_ns) if view.filter.casefold() in p.name.casefold()]
    body = table(fields, rows, width - 4, height - 2, bars=bar)
    if not rows:
        body = message(
            "no phase: name them with torch.profiler.record_function, NVTX or moescope.collectors.emit", width - 4
        )
    return box("Phases", "derived · ▼ exposed · bar: share of all exposed time", body, width, height)


def finding_line(finding: Finding, width: int) -> Line:
    """A finding in one line; what it can bring is said as shortly as need be."""
    sign, role = SEVERITY[finding.severity]
    what = clean(finding.what)
    gain = finding.gain.partition(",")[0]
    if len(what) + len(gain) + 9 > width:
        gain = gain.removesuffix(" of the time").replace("at most", "≤")
    room = width - len(sign) - 1 - (len(gain) + 1 if gain else 0)
    return spread([(sign, role), (f" {fit(what, room)}", "text")], [(gain, "good")] if gain else [], width)


def findings_panel(seen: Snapshot, width: int, height: int) -> list[Line]:
    """The first findings, with what to try where there is room."""
    inner, room = width - 4, height - 2
    body: list[Line] = []
    with_advice = room >= 2 * min(len(seen.findings), 3)
    shown = 0
    for finding in seen.findings:
        if len(body) + 1 + with_advice > room:
            break
        body.append(finding_line(finding, inner))
        if with_advice:
            body.append([("       → ", "good"), (fit(finding.advice, inner - 9), "dim")])
        shown += 1
    if not seen.findings:
        body = message("nothing stands out in what is recorded so far", inner)
    hidden = len(seen.findings) - shown
    where = f"7 all {len(seen.findings)}, {hidden} not shown here" if hidden else "7 with evidence"
    return box("Findings", where, body, width, height)
