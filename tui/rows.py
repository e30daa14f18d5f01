"""Which rows a table shows, in which order: filter, sort and cursor applied to the rows of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from moescope.tui.draw import Field
from moescope.tui.state import TableState

Row = TypeVar("Row")


def sortable(fields: Sequence[Field]) -> list[Field]:
    """The fields by which rows can be sorted, in the order that `s` goes through."""
    return [f for f in fields if f.key is not None]


def sorting(fields: Sequence[Field], state: TableState) -> Field | None:
    """The field that the table is sorted by."""
    choices = sortable(fields)
    return choices[state.column % len(choices)] if choices else None


def arrange(
    rows: Sequence[Row], fields: Sequence[Field], state: TableState, needle: str, text: Callable[[Row], str]
) -> list[Row]:
    """The rows whose `text` holds `needle` in any case, sorted; what has no value comes last either way."""
    kept = [row for row in rows if needle.casefold() in text(row).casefold()] if needle else list(rows)
    chosen = sorting(fields, state)
    if chosen is None or chosen.key is None:
        return kept
    key: Callable[[Any], Any] = chosen.key
    known = [row for row in kept if key(row) is not None]
    unknown = [row for row in kept if key(row) is None]
    return sorted(known, key=key, reverse=chosen.ascending == state.reverse) + unknown


def note(shown: int, whole: int, needle: str, fields: Sequence[Field], state: TableState) -> str:
    """What a table's frame says: the filter, how many rows of how many, and the order."""
    chosen = sorting(fields, state)
    parts = [f"/ {needle}"] if needle else []
    parts.append(f"{shown} of {whole}" if shown != whole else f"{whole}")
    if chosen is not None:
        parts.append(f"{'▲' if chosen.ascending != state.reverse else '▼'} {chosen.title}")
    return " · ".join(parts)
