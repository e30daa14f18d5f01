"""What reaches out of the dashboard: files that are written, the run that is interrupted, the way out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp


def export(app: MoescopeApp) -> None:
    """Writes the CSV timelines."""
    write = app.write_export
    if write is None:
        app.say("leave with q and use: moescope export RECORDING --to csv")
        return
    app.say("writing CSV …")
    app.watcher.ask(lambda _: _attempt(write), app.say)


def _attempt(write: Callable[[], str]) -> str:
    try:
        return write()
    except Exception as error:  # noqa: BLE001  told on the screen
        return f"not written: {error}"


def screenshot(app: MoescopeApp) -> None:
    """Saves this screen as SVG."""
    try:
        app.say(f"saved {app.save_screenshot()}")
    except OSError as error:
        app.say(f"not saved: {error}")


def leave(app: MoescopeApp) -> None:
    """Leaves; the run goes on."""
    app.exit(0)


def interrupt(app: MoescopeApp) -> None:
    """Interrupts the run that the dashboard belongs to; leaves where there is none."""
    if app.on_interrupt is None or (app.seen is not None and app.seen.state != "live"):
        app.exit(0)
        return
    app.say(app.on_interrupt())
