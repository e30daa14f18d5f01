"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

if TYPE_CHECKING:
    from moescope.profiler.hardware.table import PeaksFrom

RULES: Final = click.option(
    "--rules",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file of classifier rules that go before ours.",
)

PEAKS: Final = click.option(
    "--peaks",
    type=click.Choice(["data-sheet", "measured"]),
    help="Peaks of a GPU: its maker's, or as `moescope calibrate` measured them before the run.  [default: data-sheet]",
)


def take_peaks(which: PeaksFrom | None) -> None:
    """Take a GPU's peaks from there."""
    if which is not None:
        from moescope.profiler.hardware.table import use_peaks

        use_peaks(which)


def take_rules(rules: Path | None) -> None:
    """Put a user's rules before the built-in ones."""
    if rules is not None:
        from moescope.profiler.classify.classifier import read_rules, use_rules

        use_rules(read_rules(rules))
