"""Amounts as a report prints them."""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = "–"
"""What stands for a figure that is not known."""


def time_text(us: float | None) -> str:
    """A time in the unit that suits it; us: µs, None where it is not known."""
    if us is None:
        return UNKNOWN
    if us == 0:
        return "0"
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.1f} µs"
