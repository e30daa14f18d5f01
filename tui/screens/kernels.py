"""Kernels by name: time, rates, what bounds them, and which rule gave them their class."""

from __future__ import annotations

from moescope.profiler.snapshot import KernelRow, Snapshot
from moescope.tui.draw import Field, box, message, table, value
from moescope.tui.rows import arrange, note
from moescope.tui.state import ViewState
from moescope.tui.text import (
    UNKNOWN,
    Line,
    clean,
    count,
    duration,
    figure_percent,
    fit,
    milliseconds,
    percent,
    scaled,
    three,
)

KIND_ROLE = {"compute": "compute", "comm": "comm", "memory": "memory", "fused": "overlapped", "unknown": "unknown"}


def fields() -> tuple[Field, ...]:
    """Columns of the table."""
    return (
        Field("kernel", 0, lambda k: (k.name, "strong"), lambda k: k.name.casefold(), "left", ascending=True),
        Field("class", 14, lambda k: (k.operator, KIND_ROLE.get(k.kind, "text")), align="left", weight=4),
        Field("calls", 9, lambda k: (count(k.calls), "text"), lambda k: k.calls, weight=3),
        Field("ms", 9, lambda k: (milliseconds(k.total_ns), "text"), lambda k: k.total_ns),
        Field("%", 6, lambda k: (percent(k.share), "text"), lambda k: k.share),
        Field("p50 µs", 8, lambda k: (three(k.median_ns / 1e3), "text"), lambda k: k.median_ns, weight=2),
        Field("p99 µs", 8, lambda k: (three(k.p99_ns / 1e3), "text"), lambda k: k.p99_ns, weight=5),
        Field(
            "exp ms",
            8,
            lambda k: (milliseconds(k.exposed_ns), "loss" if k.exposed_ns else "dim"),
            lambda k: k.exposed_ns,
            weight=1,
        ),
        Field(
            "GF/s",
            8,
            lambda k: (value(k.flops_per_s, lambda v: three(v / 1e9)), "text"),
            lambda k: k.flops_per_s.value,
            weight=6,
        ),
        Field(
            "GB/s",
            8,
            lambda k: (value(k.bytes_per_s, lambda v: three(v / 1e9)), "text"),
            lambda k: k.bytes_per_s.value,
            weight=7,
        ),
        Field("bound", 13, _bound, align="left", weight=8),
    )


def _bound(row: KernelRow) -> tuple[str, str]:
    if row.bound is None or row.bound.value is None:
        return UNKNOWN, "dim"
    return f"{row.bound_name.upper():7}{figure_percent(row.bound)}", "text"


def shown(seen: Snapshot, view: ViewState) -> list[KernelRow]:
    """The rows as the table shows them."""
    return arrange(seen.kernels, fields(), view.table("kernels"), view.filter, lambda k: f"{k.name} {k.operator}")


def paint(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells."""
    state, columns = view.table("kernels"), fields()
    rows = shown(seen, view)
    inner = width - 4
    detail_height = 6 if height >= 14 else 0
    cursor = min(state.cursor, len(rows) - 1) if rows else None
    body = table(columns, rows, inner, height - detail_height - 2, cursor=cursor)
    if not rows:
        body = message(
            "no kernel has this name: esc clears the filter" if view.filter else "no kernel is recorded yet", inner
        )
    heading = note(len(rows), len(seen.kernels), view.filter, columns, state)
    lines = box("Kernels", heading, body, width, height - detail_height)
    if detail_height:
        lines += box("Chosen", "", _detail(rows[cursor], inner) if cursor is not None else [], width, detail_height)
    return lines


def _detail(row: KernelRow, width: int) -> list[Line]:
    head: Line = [(fit(clean(row.name), width), "strong")]
    rule: Line = [
        (f"{row.kind} · {row.operator}", KIND_ROLE.get(row.kind, "text")),
        ("  by rule ", "dim"),
        (clean(row.rule) or UNKNOWN, "text"),
        (f"   {count(row.calls)} calls, median {duration(row.median_ns)}, p99 {duration(row.p99_ns)}", "dim"),
    ]
    rates: Line = []
    for name, figure, unit in (("FLOPs", row.flops_per_s, "FLOP/s"), ("bytes", row.bytes_per_s, "B/s")):
        rates += [(f"{name} ", "dim")]
        if figure.value is None:
            rates += [(f"{UNKNOWN} {figure.reason}", "dim")]
        else:
            rates += [(scaled(figure.value, unit), "text"), (f" [{figure.evidence}]", "dim")]
        rates.append(("   ", "text"))
    bound: Line = [("bound ", "dim")]
    if row.bound is None or row.bound.value is None:
        bound.append((f"{UNKNOWN} {row.bound.reason if row.bound else 'no FLOPs or bytes are known of it'}", "dim"))
    else:
        bound += [
            (f"{row.bound_name} at {figure_percent(row.bound)} of the roof", "text"),
            (f" [{row.bound.evidence}]", "dim"),
        ]
    return [head, rule, rates, bound]
