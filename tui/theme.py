"""Roles to terminal styles: dark, light, one for colour-blind eyes, and one without any colour."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from rich.style import Style

THEMES: Final = ("dark", "light", "colour-blind", "mono")

_BASE: Final = {
    "dark": {
        "fg": "#D6DBE5",
        "bg": "#10141F",
        "dim": "#8890A0",
        "faint": "#4A5163",
        "select": "#26324A",
        "bar": "#161C2B",
    },
    "light": {
        "fg": "#1B2230",
        "bg": "#FBFBFC",
        "dim": "#5C6575",
        "faint": "#B4BAC6",
        "select": "#D5E0F5",
        "bar": "#E9ECF2",
    },
}

_STATES: Final = {
    "dark": {
        "compute": "#4A7FE8",
        "overlapped": "#A6E8DC",
        "comm": "#F2D544",
        "exposed": "#F0703A",
        "memory": "#9A86D6",
        "unknown": "#E58BC0",
        "idle": "#4A5163",
        "good": "#7FD6B0",
        "key": "#F2D544",
        "loss": "#FF8A50",
        "figure": "#F2D544",
    },
    "light": {
        "compute": "#2B5FC7",
        "overlapped": "#2E9C8A",
        "comm": "#9A7B00",
        "exposed": "#C8480F",
        "memory": "#6A4FB8",
        "unknown": "#A8327A",
        "idle": "#B4BAC6",
        "good": "#1F7F5C",
        "key": "#8A6A00",
        "loss": "#B83C08",
        "figure": "#7A5E00",
    },
    # Okabe and Ito's palette: told apart with any kind of colour vision.
    "colour-blind": {
        "compute": "#0072B2",
        "overlapped": "#56B4E9",
        "comm": "#F0E442",
        "exposed": "#D55E00",
        "memory": "#CC79A7",
        "unknown": "#E69F00",
        "idle": "#4A5163",
        "good": "#009E73",
        "key": "#F0E442",
        "loss": "#E69F00",
        "figure": "#F0E442",
    },
}

_BOLD: Final = frozenset({"title", "strong", "loss", "figure", "key", "tab"})


def background(theme: str) -> str:
    """The screen's background colour, `ansi_default` for the terminal's own."""
    return "ansi_default" if theme == "mono" else _BASE.get(theme, _BASE["dark"])["bg"]


def foreground(theme: str) -> str:
    """The screen's text colour."""
    return "ansi_default" if theme == "mono" else _BASE.get(theme, _BASE["dark"])["fg"]


@lru_cache(maxsize=1024)
def style(theme: str, role: str) -> Style:
    """The style of a role, `+select` included."""
    name, _, extra = role.partition("+")
    if theme == "mono":
        return _mono(name, bool(extra))
    base = _BASE.get(theme, _BASE["dark"])
    colour = _STATES[theme].get(name)
    back = base["select"] if extra or name == "tab" else base["bg"]
    match name:
        case "text" | "title" | "strong" | "tab":
            colour = base["fg"]
        case "dim" | "head" | "note":
            colour = base["dim"]
        case "faint" | "border":
            colour = base["faint"]
        case "bar" | "bar-dim":
            colour, back = base["fg" if name == "bar" else "dim"], base["bar"]
        case "bar-key" | "bar-strong" | "bar-live":
            colour = {"bar-key": _STATES[theme]["key"], "bar-live": _STATES[theme]["good"]}.get(name, base["fg"])
            return Style(color=colour, bgcolor=base["bar"], bold=True)
        case _:
            pass
    return Style(color=colour or base["fg"], bgcolor=back, bold=name in _BOLD)


def _mono(name: str, chosen: bool) -> Style:
    """No colour at all: weight and reversal only, so that any terminal's own colours hold."""
    if name.startswith("bar"):
        return Style(bold=name in ("bar-key", "bar-strong", "bar-live"), underline=False)
    if name == "tab":
        return Style(reverse=True, bold=True)
    return Style(
        bold=name in _BOLD or name == "exposed", dim=name in ("dim", "faint", "border", "idle"), reverse=chosen
    )
