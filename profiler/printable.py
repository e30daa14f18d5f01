"""Other people's strings made fit for a terminal: names, paths and messages may hold what moves the cursor."""

from __future__ import annotations

from typing import Any


def printable(text: str, keep: str = "") -> str:
    """`text` with every character that cannot be printed as `·`, save those in `keep`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() or letter in keep else "·" for letter in text)


def all_printable(value: Any) -> Any:
    """The same for every string in lists and dictionaries, keys left alone."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, list):
        return [all_printable(item) for item in value]
    if isinstance(value, dict):
        return {key: all_printable(item) for key, item in value.items()}
    return value
