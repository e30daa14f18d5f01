"""The parts of the screen: painted widgets, one above the other, and the line that asks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from rich.segment import Segment
from textual.app import ComposeResult
from textual.geometry import Region
from textual.screen import Screen
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

from moescope.tui.text import Line, pad
from moescope.tui.theme import style

PARTS: Final = ("header", "headline", "tabs", "body", "pane", "scrubber", "keys")
"""From top to bottom."""


class Painted(Widget):
    """A part of the screen that is given its lines and redraws those that changed."""

    DEFAULT_CSS = "Painted { height: 1; width: 100%; }"

    def __init__(self, name: str) -> None:
        super().__init__(id=name)
        self._lines: list[Line] = []
        self._strips: list[Strip] = []
        self._theme = ""

    def show(self, lines: Sequence[Line], theme: str) -> None:
        """Takes new lines; equal ones cost nothing."""
        width = self.size.width
        old, same = self._lines, theme == self._theme and len(lines) == len(self._lines)
        self._theme = theme
        if not same:
            self._lines = list(lines)
            self._strips = [self._strip(line, width) for line in self._lines]
            self.refresh()
            return
        for y, line in enumerate(lines):
            if line != old[y] or self._strips[y].cell_length != width:
                old[y] = line
                self._strips[y] = self._strip(line, width)
                self.refresh(Region(0, y, width, 1))

    def _strip(self, line: Line, width: int) -> Strip:
        theme = self._theme
        return Strip([Segment(text, style(theme, role)) for text, role in pad(line, width) if text], width)

    def render_line(self, y: int) -> Strip:
        """The strip of a line; what lies below the last one is blank."""
        if y < len(self._strips):
            return self._strips[y]
        return Strip.blank(self.size.width, style(self._theme or "dark", "text"))

    def text(self) -> str:
        """What is drawn, as plain text."""
        return "\n".join("".join(text for text, _ in pad(line, self.size.width)) for line in self._lines)


class Dashboard(Screen[None], inherit_bindings=False):
    """The only screen: its parts, from top to bottom."""

    def compose(self) -> ComposeResult:
        """The parts."""
        for name in PARTS:
            yield Painted(name)
        prompt = Input(id="prompt", compact=True)
        prompt.display = False
        yield prompt
