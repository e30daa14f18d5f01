"""Runs the dashboard without a terminal and reads what it draws."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from textual.pilot import Pilot
from textual.widgets import Input

from moescope.tui.app import MoescopeApp
from moescope.tui.parts import PARTS, Painted
from tests.tui.synthetic import SyntheticFeed


def picture(app: MoescopeApp) -> str:
    """The screen as text, without trailing blanks."""
    lines: list[str] = []
    for name in PARTS:
        part = app.query_one(f"#{name}", Painted)
        if part.display and part.size.height:
            lines += [line.rstrip() for line in part.text().split("\n")]
    return "\n".join(lines) + "\n"


async def settle(pilot: Pilot[int], app: MoescopeApp) -> None:
    """Waits until the screen shows the answer to what it asks now."""
    for _ in range(1000):
        app.frame()
        answer = app.watcher.latest
        if app.watcher.problem or (answer is not None and app.seen is not None and answer.wish == app.wish()):
            app.frame()
            await asyncio.sleep(0)
            return
        await asyncio.sleep(0.002)
    raise AssertionError("the dashboard never got its answer")


class Driven(MoescopeApp):
    """The dashboard, with what it showed last and how many cells its timeline had."""

    last_picture = ""
    last_cells = 0


def drive(
    keys: list[str],
    *,
    size: tuple[int, int] = (120, 40),
    feed: SyntheticFeed | None = None,
    then: Callable[[MoescopeApp, Pilot[int]], Awaitable[None]] | None = None,
    **options: Any,
) -> Driven:
    """Opens the dashboard, presses keys, and closes it; the app, with its last state."""
    app = Driven(feed or SyntheticFeed(), fps=4.0, **options)

    async def session() -> None:
        async with app.run_test(size=size) as pilot:
            await settle(pilot, app)
            for key in keys:
                await pilot.press(key)
                if app.is_running:
                    await settle(pilot, app)
            if app.is_running:
                app.last_picture, app.last_cells = picture(app), app.cells()
            if then is not None:
                await then(app, pilot)

    asyncio.run(session())
    return app


def screen(keys: list[str], **options: Any) -> str:
    """What is on the screen after these keys."""
    return drive(keys, **options).last_picture


def prompt_text(app: MoescopeApp) -> str:
    """What stands in the prompt."""
    return app.query_one("#prompt", Input).value
