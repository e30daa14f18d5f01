"""The line that asks: for a filter, which holds while one types, or for a time or rank to go to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from textual.events import Key
from textual.widgets import Input

from moescope.tui.screens import timeline

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp

Question: TypeAlias = Literal["filter", "go"]

_HINTS: Final = {
    "filter": "part of a name; enter keeps it, esc clears it",
    "go": "12.5s, 340ms, 1:02 since the start of the run, or r3 for a rank",
}


class Prompt:
    """Opens and closes the line.

    What is typed before the key that ends it is its text, in the line's own queue; so keys behind that one wait until
    the line has taken all of it, and are commands again.
    """

    def __init__(self, app: MoescopeApp) -> None:
        self._app = app
        self._asks: Question | None = None
        self._behind: list[Key] | None = None

    @property
    def _line(self) -> Input:
        return self._app.query_one("#prompt", Input)

    def ask(self, question: Question) -> None:
        """Opens the line."""
        self._asks = question
        line = self._line
        line.placeholder = _HINTS[question]
        line.value = self._app.view.filter if question == "filter" else ""
        line.display = True
        self._app.query_one("#keys").display = False
        self._app.screen.set_focus(line)  # at once: the next key is already its text

    def keeps_back(self, event: Key) -> bool:
        """Whether a key waits until the line is closed."""
        if self._behind is not None:
            self._behind.append(event)
            return True
        if self._app.focused is self._line and event.key in ("enter", "escape"):
            self._behind = []
        return False

    def typed(self, text: str) -> None:
        """The filter holds while one types."""
        if self._asks == "filter" and self._line.display:
            self._app.view.filter = text
            self._app.view.table(self._app.view.screen).cursor = 0
            self._app.frame()

    async def keep(self, text: str) -> None:
        """Closes the line and keeps the filter, or goes there."""
        if self._asks == "go":
            go(self._app, text.strip())
        await self._close()

    async def give_up(self) -> None:
        """Closes the line; a filter is cleared."""
        if self._asks == "filter":
            self._app.view.filter = ""
        await self._close()

    async def _close(self) -> None:
        self._asks = None
        self._line.display = False
        self._app.query_one("#keys").display = True
        self._app.set_focus(None)
        self._app.call_after_refresh(self._app.frame)
        behind, self._behind = self._behind or [], None
        for event in behind:
            await self._app.on_event(event)


def go(app: MoescopeApp, text: str) -> None:
    """Chooses the rank, or shows the time, that `text` names."""
    if app.seen is None or not text:
        return
    if text[:1] in "rR" and text[1:].isdigit():
        ranks = {row.rank for row in app.seen.ranks}
        if int(text[1:]) in ranks:
            app.view.rank = int(text[1:])
        else:
            app.say(f"no rank {text[1:]}: there are {min(ranks, default=0)} to {max(ranks, default=0)}")
        return
    t_ns = timeline.parse_time(text)
    if t_ns is None:
        app.say(f"“{text}” is no time and no rank: write 12.5s, 340ms, 1:02 or r3")
        return
    app.look_at(app.seen.start_ns + t_ns)
    app.view.screen = "timeline"
