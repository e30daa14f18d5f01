"""Lines of styled text, and numbers as people read them.

A `Line` is a list of `(text, role)` pairs; a role names a style of the theme, and `+select` behind it marks a chosen
row. Everything here works on terminal cells, not characters: names come from users and may hold anything.
"""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final, Literal, TypeAlias

from rich.cells import cell_len, set_cell_size

from moescope.profiler.snapshot import Figure

Line = list[tuple[str, str]]
Align: TypeAlias = Literal["left", "right"]

UNKNOWN = "–"
"""What stands for a figure that is not known."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp", "Mn", "Me"})


@lru_cache(maxsize=8192)
def clean(text: str) -> str:
    """`text` with what would move the cursor, hide or turn the line replaced by `·`."""
    if text.isascii() and text.isprintable():
        return text
    return "".join("·" if unicodedata.category(c) in _INVISIBLE else c for c in text)


@lru_cache(maxsize=8192)
def fit(text: str, width: int, align: Align = "left") -> str:
    """`text` in exactly `width` cells: padded, or cut with `…`."""
    if width <= 0:
        return ""
    text = clean(text)
    length = cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    return text + " " * (width - length) if align == "left" else " " * (width - length) + text


@lru_cache(maxsize=2048)
def fit_middle(text: str, width: int) -> str:
    """As `fit`, with the cut in the middle: both ends of a kernel's name tell something."""
    text = clean(text)
    if cell_len(text) <= width or width < 9 or not text.isascii():
        return fit(text, width)
    tail = (width - 1) // 3
    return text[: width - 1 - tail] + "…" + text[-tail:]


def length(line: Line) -> int:
    """Cells that the line takes."""
    return sum(cell_len(text) for text, _ in line)


def pad(line: Line, width: int, role: str = "text") -> Line:
    """The line in exactly `width` cells."""
    taken = 0
    for i, (text, its_role) in enumerate(line):
        cells = cell_len(text)
        if taken + cells > width:
            room = width - taken
            return [*line[:i], (set_cell_size(text, room), its_role)] if room else line[:i]
        taken += cells
    return [*line, (" " * (width - taken), role)] if taken < width else line


def spread(left: Line, right: Line, width: int) -> Line:
    """`left` and `right` at the two ends of `width` cells; the left gives way."""
    right_length = length(right)
    if right_length + 1 > width:
        return pad(left, width)
    return [*pad(left, width - right_length - 1), (" ", "text"), *right]


def selected(line: Line) -> Line:
    """The same line as the chosen row."""
    return [(text, f"{role}+select") for text, role in line]


def percent(share: float | None, digits: int = 1) -> str:
    """A share as per cent."""
    return UNKNOWN if share is None else f"{share * 100:.{digits}f}%"


def figure_percent(figure: Figure, digits: int = 0) -> str:
    """A share's figure as per cent, with the mark of what was not measured."""
    return evidence_mark(figure) + percent(figure.value, digits)


def evidence_mark(figure: Figure) -> str:
    """`~` before what was inferred, `≈` before what was modelled; nothing before what was measured or derived."""
    if figure.value is None:
        return ""
    return {"inferred": "~", "modelled": "≈"}.get(figure.evidence, "")


def duration(ns: float | None) -> str:
    """A duration with three digits and its unit."""
    if ns is None:
        return UNKNOWN
    for limit, unit in ((1e3, "ns"), (1e6, "µs"), (1e9, "ms")):
        if abs(ns) < limit * 0.9995:
            return f"{three(ns / limit * 1e3)} {unit}"
    return f"{three(ns / 1e9)} s" if ns < 600e9 else clock(ns)


def milliseconds(ns: float | None) -> str:
    """A duration in ms, for a column of them."""
    if ns is None:
        return UNKNOWN
    ms = ns / 1e6
    return f"{ms:,.0f}".replace(",", " ") if ms >= 1000 else three(ms)


def clock(ns: float) -> str:
    """Elapsed time as hh:mm:ss."""
    seconds = int(ns // 1_000_000_000)
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}"


def three(value: float) -> str:
    """About three digits of a number."""
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 99.95:
        return f"{value:.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.01 else f"{value:.1g}"


def count(value: float | None) -> str:
    """A count, thousands set apart up to a million."""
    if value is None:
        return UNKNOWN
    if abs(value) < 1e6:
        return f"{value:,.0f}".replace(",", " ")
    return scaled(value, "").strip()


_PREFIXES: Final = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def scaled(value: float | None, unit: str) -> str:
    """A quantity with a decimal prefix: 3.2 GB/s, 412 MB."""
    if value is None:
        return UNKNOWN
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor * 0.9995:
            return f"{three(value / factor)} {prefix}{unit}"
    return f"{value:.0f} {unit}" if value == int(value) else f"{three(value)} {unit}"


def of_whole(value: float | None, whole: float, unit: str) -> str:
    """A part and its whole, where it can be with the whole's prefix for both: 0.81 / 1.98 PFLOP/s, 1 / 132 SMs."""
    factor, prefix = next(((f, p) for f, p in _PREFIXES if abs(whole) >= f * 0.9995), (1.0, ""))
    if value is not None and 0 < abs(value) < factor / 100:
        return f"{scaled(value, unit)} / {scaled(whole, unit)}"

    def shown(number: float | None) -> str:
        if number is None:
            return UNKNOWN
        return f"{number:.0f}" if factor == 1.0 and number == int(number) else three(number / factor)

    return f"{shown(value)} / {shown(whole)} {prefix}{unit}"
