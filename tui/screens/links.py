"""Links: who sends how much to whom, each link over its peak, and every kind of collective."""

from __future__ import annotations

from moescope.profiler.snapshot import CollectiveRow, Figure, LinkRow, Snapshot
from moescope.tui.draw import Field, beside, box, message, spark, split, table, value
from moescope.tui.rows import arrange, note
from moescope.tui.state import ViewState
from moescope.tui.text import UNKNOWN, Line, count, duration, fit, percent, scaled


def collective_fields() -> tuple[Field, ...]:
    """Columns of the table of collectives."""
    return (
        Field(
            "exposed", 10, lambda c: (duration(c.exposed_ns), "loss" if c.exposed_ns else "dim"), lambda c: c.exposed_ns
        ),
        Field("operation", 0, lambda c: (c.op, "strong"), lambda c: c.op, "left", ascending=True),
        Field("group", 12, lambda c: (c.group or UNKNOWN, "text"), align="left", weight=4),
        Field("backend", 9, lambda c: (c.backend or UNKNOWN, "dim"), align="left", weight=6),
        Field("calls", 8, lambda c: (count(c.calls), "text"), lambda c: c.calls, weight=2),
        Field("moved", 10, lambda c: (scaled(c.bytes, "B"), "text"), lambda c: c.bytes, weight=3),
        Field(
            "B/s",
            11,
            lambda c: (value(c.bytes_per_s, lambda v: scaled(v, "B/s")), "text"),
            lambda c: c.bytes_per_s.value,
            weight=5,
        ),
        Field("p50", 9, lambda c: (duration(c.median_ns), "text"), lambda c: c.median_ns),
        Field("p99", 9, lambda c: (duration(c.p99_ns), "text"), lambda c: c.p99_ns, weight=1),
        Field(
            "open",
            5,
            lambda c: (str(c.unfinished), "loss" if c.unfinished else "dim"),
            lambda c: c.unfinished,
            weight=7,
        ),
    )


def shown(seen: Snapshot, view: ViewState) -> list[CollectiveRow]:
    """The collectives as the table shows them."""
    return arrange(
        seen.collectives,
        collective_fields(),
        view.table("links"),
        view.filter,
        lambda c: f"{c.op} {c.group} {c.backend}",
    )


def paint(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells."""
    upper = max(min(max(len(seen.traffic) + 4, len(seen.links) + 4, 7), height // 2), 5)
    if width >= 76:
        a, b = split(width, 45, 55)
        lines = beside(matrix(seen, a, upper), links(seen, view, b, upper))
    else:
        lines = links(seen, view, width, upper)
    return lines + collectives(seen, view, width, height - upper)


def matrix(seen: Snapshot, width: int, height: int) -> list[Line]:
    """Bytes that each rank sent to each other."""
    inner = width - 4
    size = len(seen.traffic)
    rows = [(i, j, n) for i, row in enumerate(seen.traffic) for j, n in enumerate(row) if n]
    if not rows:
        return box("Traffic", "", message("no call has told the bytes for each peer yet", inner), width, height)
    each = max(8, min(11, (inner - 7) // max(size, 1)))
    columns = max(1, min(size, (inner - 7) // each))
    most = max(n for _, _, n in rows)
    body: list[Line] = [[(" " * 7, "head"), *((fit(f"→ r{j}", each, "right"), "head") for j in range(columns))]]
    for i, row in enumerate(seen.traffic[: height - 4]):
        line: Line = [(fit(f"r{i}", 6) + " ", "text")]
        for n in row[:columns]:
            role = "dim" if not n else "loss" if n == most and len(rows) > 2 else "text"
            line.append((fit(scaled(n, "B") if n else UNKNOWN, each, "right"), role))
        body.append(line)
    hidden = size - min(columns, height - 4)
    if hidden > 0:
        body.append([(f"… {hidden} more ranks: make the terminal larger", "dim")])
    return box("Traffic", "sent, row → column · measured", body, width, height)


def links(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """Each link: its rate over the window against its peak, and its recent past."""
    inner = width - 4

    def rate(link: LinkRow, figure: Figure) -> str:
        if view.relative and figure.value is not None and link.peak_bytes_per_s.value:
            return percent(figure.value / link.peak_bytes_per_s.value)
        return value(figure, lambda v: scaled(v, "B/s"))

    fields = (
        Field("link", 14, lambda k: (k.link, "text"), align="left"),
        Field("tx", 11, lambda k: (rate(k, k.tx_bytes_per_s), "strong")),
        Field("rx", 11, lambda k: (rate(k, k.rx_bytes_per_s), "text")),
        Field("peak", 10, lambda k: (value(k.peak_bytes_per_s, lambda v: scaled(v, "B/s")), "dim"), weight=1),
    )

    def history(link: LinkRow, cells: int) -> Line:
        return [(" " + spark(list(link.history), cells - 1), "comm")]

    rows = sorted(seen.links, key=lambda k: -(k.tx_bytes_per_s.value or 0.0))
    body = table(fields, rows, inner, height - 2, bars=history)
    if not rows:
        body = message("no interface has been sampled yet", inner)
    unknown = [k.link for k in rows if k.peak_bytes_per_s.value is None]
    if unknown and len(body) < height - 2:
        reason = next(k.peak_bytes_per_s.reason for k in rows if k.peak_bytes_per_s.value is None)
        body.append([(fit(f"{UNKNOWN} {unknown[0]}: {reason}", inner), "dim")])
    return box("Links", f"whole host · {seen.time_note} · derived", body, width, height)


def collectives(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """Each collective on each group."""
    state, fields = view.table("links"), collective_fields()
    rows = shown(seen, view)
    body = table(fields, rows, width - 4, height - 2, cursor=min(state.cursor, len(rows) - 1) if rows else None)
    if not rows:
        body = message(
            "no collective matches the filter" if seen.collectives else "no call of torch.distributed is recorded",
            width - 4,
        )
    return box("Collectives", note(len(rows), len(seen.collectives), view.filter, fields, state), body, width, height)
