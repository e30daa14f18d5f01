"""What is shown, and how: filter and ranks, frozen or not, units, words, colours, frames a second, panes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from moescope.tui.theme import THEMES

if TYPE_CHECKING:
    from moescope.tui.app import MoescopeApp


def filter(app: MoescopeApp) -> None:
    """Asks for a part of a name."""
    app.prompt.ask("filter")


def rank(app: MoescopeApp) -> None:
    """The next rank alone; after the last, all."""
    ranks = [row.rank for row in app.seen.ranks] if app.seen is not None else []
    later = [number for number in ranks if app.view.rank is None or number > app.view.rank]
    app.view.rank = min(later, default=None)
    app.view.cursor = (1, app.view.cursor[1])


def all_ranks(app: MoescopeApp) -> None:
    """All ranks together."""
    app.view.rank = None


def freeze(app: MoescopeApp) -> None:
    """Stops or resumes taking in what is new."""
    app.view.frozen = not app.view.frozen


def units(app: MoescopeApp) -> None:
    """Absolute figures, or shares of a peak."""
    app.view.relative = not app.view.relative


def peaks(app: MoescopeApp) -> None:
    """A GPU's peaks from the other place: its data sheet, or as measured here."""
    if app.seen is not None and all(row.units.kind == "core" for row in app.seen.ranks):
        app.say("a processor's peaks are always those that were measured on it (`moescope calibrate`)")
        return
    app.view.other_peaks = not app.view.other_peaks
    app.say("GPU peaks switched: the data sheet's, or what `moescope calibrate` measured before the run")


def layout(app: MoescopeApp) -> None:
    """Words and order for training, or for decoding."""
    if app.seen is not None:
        app.view.layout = "train" if app.seen.words_of == "decode" else "decode"


def theme(app: MoescopeApp) -> None:
    """The next theme."""
    app.view.theme = THEMES[(THEMES.index(app.view.theme) + 1) % len(THEMES)]
    app.colour()
    app.say(f"theme {app.view.theme}")


def rate(app: MoescopeApp, factor: float) -> None:
    """Frames a second."""
    app.view.fps = min(max(app.view.fps * factor, 0.5), 30.0)
    app.watcher.interval_s = 1 / app.view.fps
    app.say(f"{app.view.fps:g} frames a second")


def log_pane(app: MoescopeApp) -> None:
    """Shows or hides the run's output."""
    if app.output is None:
        app.say("the run's output is not ours to show: it goes where the run was started (8 has the log)")
    else:
        app.view.log_pane = not app.view.log_pane


def command_palette(app: MoescopeApp) -> None:
    """Every command by name."""
    app.action_command_palette()
