"""Lanes by rank and stream under the phases: what ran, what hid it, what lay exposed, and the kernel at the cursor."""

from __future__ import annotations

from rich.cells import cell_len, set_cell_size

from moescope.profiler.snapshot import Cell, KernelDetail, Lane, Snapshot, Timeline
from moescope.tui.draw import GLYPH, box, message
from moescope.tui.state import ViewState
from moescope.tui.text import UNKNOWN, Line, clean, duration, fit, fit_middle, length, pad, scaled, three

DETAIL_LINES = 4


def label_cells(width: int) -> int:
    """Cells for the names of the lanes."""
    return 20 if width >= 110 else 14 if width >= 70 else 9


def lane_cells(width: int) -> int:
    """Cells of time at this width: what a `TimelineView` asks for."""
    return max(width - 5 - label_cells(width), 8)


def most_lanes(height: int) -> int:
    """Lanes that fit at this height."""
    return max(height - 5 - (DETAIL_LINES + 1 if height >= 14 else 1), 2)


def paint(seen: Snapshot, view: ViewState, width: int, height: int, timeline: Timeline | None) -> list[Line]:
    """The screen in `width` x `height` cells."""
    inner = width - 4
    if timeline is None or not timeline.lanes:
        reason = timeline.note if timeline is not None and timeline.note else "no kernel is recorded yet"
        return box("Timeline", "", message(reason, inner), width, height)
    labels = label_cells(width)
    room = most_lanes(height)
    top = min(max(0, view.cursor[0] - room // 2), max(len(timeline.lanes) - room, 0))
    body: list[Line] = [_axis(seen, timeline, labels)]
    many = len({lane.rank for lane in timeline.lanes}) > 1
    for i, lane in enumerate(timeline.lanes[top : top + room], start=top):
        cursor = view.cursor[1] if i == view.cursor[0] else None
        body.append(_lane(lane, labels, timeline.cells, cursor, view.cursor[1], many))
    below = len(timeline.lanes) - top - room
    tall = height >= 14
    spare = height - 2 - len(body) - 1 - (DETAIL_LINES + 1 if tall else 1)
    body += [[] for _ in range(max(spare, 0))]
    if tall:
        body.append([("── at the cursor " + "─" * max(inner - 17, 0), "faint")])
        body += _detail(seen, timeline, view, inner)
    else:
        body.append(_detail(seen, timeline, view, inner)[0])
    body.append(_legend(inner))
    span = timeline.end_ns - timeline.start_ns
    notes = [f"1 cell = {duration(span / max(timeline.cells, 1))}", f"window {duration(span)}"]
    notes += [f"{below} lanes below"] if below > 0 else []
    notes += [timeline.note] if timeline.note else []
    notes += [] if view.span is not None else ["following"] if seen.state == "live" else []
    return box("Timeline", " · ".join(notes), body, width, height)


def _axis(seen: Snapshot, timeline: Timeline, labels: int) -> Line:
    """Times since the start of the run, every 20 cells or so."""
    span = timeline.end_ns - timeline.start_ns
    step = _round_step(span * 20 / max(timeline.cells, 1))
    text = [" "] * timeline.cells
    start = timeline.start_ns - seen.start_ns
    t = -(-start // step) * step
    while t < start + span:
        at = int((t - start) * timeline.cells / span)
        label = f"┊{_axis_time(t, step)}"
        if at + len(label) <= timeline.cells:
            text[at : at + len(label)] = list(label)
        t += step
    return [(fit("time", labels) + " ", "head"), ("".join(text), "dim")]


def _round_step(ns: float) -> int:
    """The next of 1, 2, 5 times a power of ten."""
    power = 1
    while True:
        for digit in (1, 2, 5):
            if digit * power >= ns:
                return max(digit * power, 1)
        power *= 10


def _axis_time(ns: int, step: int) -> str:
    unit, name = (
        (1_000_000_000, "s") if step >= 1_000_000_000 else (1_000_000, "ms") if step >= 1_000 else (1_000, "µs")
    )
    digits = len(str(unit // step - 1)) if step < unit else 0
    return f"{ns / unit:.{digits}f} {name}"


def _lane(lane: Lane, labels: int, cells: int, cursor: int | None, column: int, many: bool) -> Line:
    name = f"r{lane.rank} {lane.name}" if many else lane.name
    line: Line = [(fit_middle(name, labels) + " ", "strong" if cursor is not None else "text")]
    flat: list[tuple[str, str]] = []
    for cell in lane.cells:
        if lane.kind == "phase":
            text = _phase(cell.label, cell.length) if cell.label else "·" * cell.length
            flat.append((text, "figure" if cell.label.startswith("step ") else "text" if cell.label else "idle"))
        elif lane.kind == "units" and cell.label:
            flat.append((held(cell), cell.state))
        else:
            flat.append((GLYPH[cell.state] * cell.length, cell.state))
    return [*line, *_with_cursor(pad(flat, cells), column, cursor is not None)]


def held(cell: Cell) -> str:
    """Units that communication holds: a digit in each cell, a longer number once; `▚` for less than half a unit."""
    if len(cell.label) == 1 and cell.label != "0":
        return cell.label * cell.length
    return (clean(cell.label).strip("0") and clean(cell.label)).ljust(cell.length, "▚")[: cell.length]


def _phase(label: str, cells: int) -> str:
    """A phase's name in its cells; where it is cut short anyway, its first letters tell more than a `…`."""
    text = "▏" + clean(label)
    return fit(text, cells) if cells >= 8 or cell_len(text) <= cells else set_cell_size(text, cells)


def lane_with(timeline: Timeline, state: str, column: int) -> int | None:
    """The first lane that shows `state` in a column, or in one beside it."""
    for reach in (0, 1, 2):
        for i, lane in enumerate(timeline.lanes):
            for cell in lane.cells:
                if cell.state == state and cell.start - reach <= column < cell.start + cell.length + reach:
                    return i
    return None


def _with_cursor(line: Line, column: int, chosen: bool) -> Line:
    """The line with the cursor's column marked: the cell itself where the lane is chosen, a thin line elsewhere."""
    out: Line = []
    at = 0
    for text, role in line:
        inside = column - at
        if 0 <= inside < len(text):
            glyph = text[inside]
            if not chosen:
                glyph = "│" if glyph in " ·" else glyph
            out += [(text[:inside], role)] if inside else []
            out.append((glyph, f"{role}+select" if chosen else "faint" if glyph == "│" else f"{role}+select"))
            out += [(text[inside + 1 :], role)] if inside + 1 < len(text) else []
        else:
            out.append((text, role))
        at += len(text)
    return out


def cursor_time(timeline: Timeline, cell: int) -> int:
    """The time in the middle of a cell, ns since the epoch."""
    return timeline.start_ns + (timeline.end_ns - timeline.start_ns) * (2 * cell + 1) // (2 * max(timeline.cells, 1))


def _detail(seen: Snapshot, timeline: Timeline, view: ViewState, width: int) -> list[Line]:
    kernel = timeline.selected
    at = cursor_time(timeline, view.cursor[1]) - seen.start_ns
    if kernel is None:
        lane = timeline.lanes[view.cursor[0]] if view.cursor[0] < len(timeline.lanes) else None
        what = "" if lane is None else f" on rank {lane.rank}, {clean(lane.name)}"
        words = {"phase": "choose a stream with ↑↓ to see its kernels", "units": "units held by communication"}
        reason = words.get(lane.kind, "no kernel here: ←→ moves, n finds exposed communication") if lane else ""
        return [[(f"at {_exact(at)}{what}: {reason}", "dim")], *([] for _ in range(DETAIL_LINES - 1))]
    return _kernel_lines(kernel, seen.start_ns, width)


def _kernel_lines(kernel: KernelDetail, origin: int, width: int) -> list[Line]:
    where = f"   rank {kernel.rank} · {clean(kernel.stream)}" + (f" · {clean(kernel.phase)}" if kernel.phase else "")
    first: Line = [
        (fit_middle(kernel.name, min(len(kernel.name), max(width - len(where), 16))), "strong"),
        (where, "dim"),
    ]
    second: Line = [
        ("start ", "dim"),
        (_exact(kernel.start_ns - origin), "text"),
        ("  takes ", "dim"),
        (duration(kernel.dur_ns), "strong"),
    ]
    if kernel.kind in ("comm", "fused"):
        second += [("  hidden ", "dim"), (duration(kernel.overlapped_ns), "overlapped")]
        second += [("  exposed ", "dim"), (duration(kernel.exposed_ns), "loss")]
        second += [("  moved ", "dim"), (scaled(kernel.bytes, "B") if kernel.bytes is not None else UNKNOWN, "text")]
    third: Line = [
        (f"{clean(kernel.operator)}", "text"),
        (f"  {kernel.kind}, by rule ", "dim"),
        (clean(kernel.rule) or UNKNOWN, "text"),
        (f"  [{kernel.evidence}]", "dim"),
    ]
    return [pad(first, width), pad(second, width), pad(third, width), [(fit(kernel.note, width), "dim")]]


def _exact(ns: int) -> str:
    """A time in the run to the microsecond."""
    return f"{ns // 1_000_000:,}.{ns // 1_000 % 1_000:03d} ms".replace(",", " ")


def _legend(width: int) -> Line:
    names = (("compute", "compute"), ("overlapped", "comm hidden"), ("exposed", "comm exposed"), ("memory", "memory"))
    line: Line = []
    for state, name in (*names, ("unknown", "unknown"), ("idle", "idle")):
        line += [(GLYPH[state] * 2, state), (f" {name}  ", "dim")]
    line.append(("blank: not recorded", "dim"))
    return pad(line, width) if length(line) > width else line


def parse_time(text: str) -> int | None:
    """`12.5s`, `340ms`, `80us`, `1:02` as ns since the start of the run; None where it is none of these."""
    text = text.strip().lower().replace(" ", "")
    for unit, factor in (("ms", 10**6), ("us", 10**3), ("µs", 10**3), ("ns", 1), ("s", 10**9)):
        if text.endswith(unit):
            try:
                return int(float(text[: -len(unit)]) * factor)
            except (ValueError, OverflowError):
                return None
    minutes, colon, seconds = text.partition(":")
    try:
        return int((int(minutes) * 60 + float(seconds)) * 1e9) if colon else int(float(text) * 1e6)
    except (ValueError, OverflowError):
        return None


def describe_step(ns: float) -> str:
    """A zoom's width in words."""
    return three(ns / 1e6) + " ms"
