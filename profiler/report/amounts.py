"""Amounts as a report prints them."""

from __future__ import annotations

from typing import Final

UNKNOWN: Final = "–"
"""What stands for a figure that is not known."""

LEAST_ERROR: Final = 0.0005
"""Of a share: what is less does not show in the digits that are printed."""


def time_text(us: float | None) -> str:
    """A time in the unit that suits it; us: µs, None where it is not known."""
    if us is None:
        return UNKNOWN
    if us == 0:
        return "0"
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.1f} µs"


def share_text(share: float, error: float = 0.0) -> str:
    """`25.4%`, or `25.4 ± 4.1%` where the error shows in the digits that are printed; both 0..1."""
    return f"{share:.1%}" if error < LEAST_ERROR else f"{100 * share:.1f} ± {error:.1%}"
