"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

RULES: Final = click.option(
    "--rules",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="TOML file of classifier rules that go before ours.",
)


def take_rules(rules: Path | None) -> None:
    """Put a user's rules before the built-in ones."""
    if rules is not None:
        from moescope.profiler.classify.classifier import read_rules, use_rules

        use_rules(read_rules(rules))
