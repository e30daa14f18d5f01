"""What the viewer has chosen: the screen, the ranks, the time, and how things are shown. Never what was measured."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

SCREENS: Final = ("overview", "timeline", "kernels", "units", "links", "experts", "findings", "log")
"""In the order of their number keys."""

ScreenName = Literal["overview", "timeline", "kernels", "units", "links", "experts", "findings", "log", "help"]


@dataclass
class TableState:
    """Sort and cursor of one table; `descending` None is the column's own way round."""

    column: int = 0
    reverse: bool = False
    cursor: int = 0


def _first_order() -> dict[str, TableState]:
    """Ranks by exposed share, kernels by time."""
    return {"overview": TableState(column=1), "kernels": TableState(column=2)}


@dataclass
class ViewState:
    """Everything that keys change.

    window: ns since the epoch, None for all of a finished run or the recent past of a live one;
    span: the timeline's own window; cursor: its lane and cell, -1 for the middle; marks: times that `'` returns to
    """

    screen: ScreenName = "overview"
    before_help: ScreenName = "overview"
    rank: int | None = None
    window: tuple[int, int] | None = None
    frozen: bool = False
    filters: dict[str, str] = field(default_factory=dict)
    relative: bool = False
    other_peaks: bool = False
    layout: Literal["auto", "train", "decode"] = "auto"
    theme: str = "dark"
    fps: float = 4.0
    log_pane: bool = False
    span: tuple[int, int] | None = None
    cursor: tuple[int, int] = (1, -1)
    marks: list[int] = field(default_factory=list)
    tables: dict[str, TableState] = field(default_factory=_first_order)
    notice: str = ""

    @property
    def filter(self) -> str:
        """What names must hold on this screen; each screen has its own, so that none hides rows of another."""
        return self.filters.get(self.screen, "")

    @filter.setter
    def filter(self, text: str) -> None:
        self.filters[self.screen] = text

    def table(self, name: str) -> TableState:
        """Sort and cursor of the table `name`."""
        return self.tables.setdefault(name, TableState())

    @property
    def stage(self) -> str:
        """Whose words and advice the viewer wants; empty for the run's own."""
        return "" if self.layout == "auto" else self.layout
