"""Experts: tokens of each in each layer, the hottest, what each rank gets, and what quantisation did to the tensors."""

from __future__ import annotations

from collections.abc import Sequence

from moescope.profiler.snapshot import ExpertRow, QuantisationRow, Snapshot
from moescope.tui.draw import Field, beside, box, gauge, message, split, table
from moescope.tui.rows import arrange, note
from moescope.tui.state import ViewState
from moescope.tui.text import Line, count, fit, percent, three

HEAT = " ·░▒▓█"
"""Load over the mean: none, under a half, to 1, to 1.5, to 2.5, more."""


def heat(load: float) -> tuple[str, str]:
    """Glyph and role of an expert that gets `load` times the mean."""
    for limit, glyph, role in (
        (0.0, " ", "dim"),
        (0.5, "·", "idle"),
        (1.0, "░", "compute"),
        (1.5, "▒", "compute"),
        (2.5, "▓", "comm"),
    ):
        if load <= limit:
            return glyph, role
    return "█", "loss"


def quantisation_fields() -> tuple[Field, ...]:
    """Columns of the table of quantised tensors."""
    return (
        Field(
            "flushed",
            8,
            lambda q: (percent(q.flushed / q.elements if q.elements else None, 2), "text"),
            lambda q: q.flushed / q.elements if q.elements else None,
        ),
        Field("saturated", 9, lambda q: (count(q.saturated), "loss" if q.saturated else "dim"), lambda q: q.saturated),
        Field("tensor", 0, lambda q: (q.tensor, "strong"), lambda q: q.tensor, "left", ascending=True),
        Field("format", 12, lambda q: (q.format, "text"), align="left", weight=1),
        Field("calls", 8, lambda q: (count(q.calls), "text"), lambda q: q.calls, weight=3),
        Field("amax", 9, lambda q: (three(q.amax), "text"), lambda q: q.amax, weight=2),
        Field("scales", 19, lambda q: (f"{q.scale_min:.2g} … {q.scale_max:.2g}", "dim"), weight=4),
        Field(
            "not finite",
            10,
            lambda q: (count(q.nonfinite), "loss" if q.nonfinite else "dim"),
            lambda q: q.nonfinite,
            weight=5,
        ),
    )


def shown(seen: Snapshot, view: ViewState) -> list[QuantisationRow]:
    """The quantised tensors as the table shows them."""
    return arrange(
        seen.quantisation, quantisation_fields(), view.table("experts"), view.filter, lambda q: f"{q.tensor} {q.format}"
    )


def paint(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """The screen in `width` x `height` cells."""
    lower = max(min(len(seen.quantisation) + 3, height // 3), 4) if height >= 16 else 0
    middle = max(min(max(len(seen.expert_rank_tokens), 5) + 2, (height - lower) // 2), 4) if height >= 12 else 0
    upper = height - lower - middle
    lines = heat_panel(seen, width, upper)
    if middle:
        a, b = split(width, 1, 1)
        lines += beside(hottest(seen, a, middle), by_rank(seen, b, middle))
    return lines + (quantisation(seen, view, width, lower) if lower else [])


def _loads(row: ExpertRow) -> list[float]:
    mean = sum(row.tokens) / len(row.tokens) if row.tokens else 0.0
    return [n / mean if mean else 0.0 for n in row.tokens]


def heat_panel(seen: Snapshot, width: int, height: int) -> list[Line]:
    """Layers by experts; the hottest of the experts that share a cell is shown."""
    inner = width - 4
    if not seen.experts:
        return box(
            "Tokens per expert ÷ mean",
            "",
            message(seen.experts_reason or "no tokens are counted yet", inner),
            width,
            height,
        )
    experts = max(len(row.tokens) for row in seen.experts)
    room = max(inner - 14, 4)
    each = -(-experts // room)
    wide = max(1, min(room // experts, 4)) if each == 1 else 1
    rows: Sequence[ExpertRow] = seen.experts
    layers = max(height - 3, 1)
    stride = -(-len(rows) // layers)
    body: list[Line] = []
    for row in rows[::stride]:
        loads = _loads(row)
        line: Line = [(fit(f"L{row.layer}", 5) + " ", "text")]
        for at in range(0, len(loads), each):
            glyph, role = heat(max(loads[at : at + each]))
            line.append((glyph * wide, role))
        worst = max(loads, default=0.0)
        line.append((f"  {worst:.2f}×", "loss" if worst > 1.5 else "dim"))
        body.append(line)
    legend: Line = [("      ", "dim")]
    for load, label in ((0.25, "≤½×"), (0.75, "≤1×"), (1.25, "≤1.5×"), (2.0, "≤2.5×"), (3.0, "more")):
        glyph, role = heat(load)
        legend += [(glyph, role), (f" {label}  ", "dim")]
    legend.append(("right: hottest ÷ mean", "dim"))
    body.append(legend)
    shown_layers = len(rows[::stride])
    parts = [f"{len(rows)} layers × {experts} experts"]
    parts += [f"{each} experts a cell"] if each > 1 else []
    parts += [f"{shown_layers} layers shown"] if shown_layers < len(rows) else []
    return box("Tokens per expert ÷ mean", " · ".join([*parts, "measured"]), body, width, height)


def hottest(seen: Snapshot, width: int, height: int) -> list[Line]:
    """The experts that get most."""
    inner = width - 4
    ranked = sorted(
        ((load, row.layer, expert) for row in seen.experts for expert, load in enumerate(_loads(row))), reverse=True
    )[: height - 2]
    top = max((load for load, _, _ in ranked), default=1.0) or 1.0
    body: list[Line] = [
        [
            (fit(f"L{layer} e{expert}", 10) + f"{load:6.2f}× ", "text"),
            *gauge(load / top, inner - 18, "loss" if load > 1.5 else "compute"),
        ]
        for load, layer, expert in ranked
    ]
    return box("Hottest", "× mean of its layer · derived", body, width, height)


def by_rank(seen: Snapshot, width: int, height: int) -> list[Line]:
    """Tokens that each rank's experts get."""
    inner = width - 4
    tokens = seen.expert_rank_tokens
    mean = sum(tokens) / len(tokens) if tokens else 0.0
    top = max(tokens, default=0) or 1
    body: list[Line] = [
        [
            (fit(f"rank {rank}", 10) + f"{n / mean if mean else 0.0:6.2f}× ", "text"),
            *gauge(n / top, inner - 18, "compute"),
        ]
        for rank, n in enumerate(tokens[: height - 2])
    ]
    if len(tokens) > height - 2 > 0:
        body[-1] = [(f"… {len(tokens) - height + 3} more ranks", "dim")]
    return box("Tokens by rank", "the fullest sets the pace · derived", body, width, height)


def quantisation(seen: Snapshot, view: ViewState, width: int, height: int) -> list[Line]:
    """What each quantised tensor lost."""
    state, fields = view.table("experts"), quantisation_fields()
    rows = shown(seen, view)
    body = table(fields, rows, width - 4, height - 2, cursor=min(state.cursor, len(rows) - 1) if rows else None)
    if not rows:
        body = message("no model emitted quantisation: see moescope.collectors.emit.quantisation", width - 4)
    return box("Quantisation", note(len(rows), len(seen.quantisation), view.filter, fields, state), body, width, height)
