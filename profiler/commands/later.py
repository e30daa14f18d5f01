"""What is planned and not built yet: who asks for it is told so, and what can be done today."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import click

from moescope.profiler.errors import UsageProblem

COMMANDS: Final[Mapping[str, str]] = {
    "whatif": "`moescope summary SOURCE` tells with each finding how much it can bring at most",
}
"""Command to what can be done today."""

FORMATS: Final[Mapping[str, str]] = {
    "parquet": "write --to csv and convert it: duckdb -c \"COPY (FROM 'DIR/kernels.csv') TO 'kernels.parquet'\"",
    "perfetto": "look at the timeline in `moescope top SOURCE`; a PyTorch trace opens in ui.perfetto.dev as it is",
    "html": "write `moescope summary SOURCE` to a file, or save screens of `moescope top SOURCE` as SVG with p",
}
"""Format of `export` to what can be done today."""


def command(name: str) -> click.Command:
    """Takes the place of a command that is not built yet: says so, whatever it is given, with exit code 2."""

    @click.command(
        name, hidden=True, add_help_option=False, context_settings={"ignore_unknown_options": True}, help=COMMANDS[name]
    )
    @click.argument("_arguments", nargs=-1, type=click.UNPROCESSED)
    def told(_arguments: tuple[str, ...]) -> None:
        raise UsageProblem(f"{name} is not built yet and comes in a later version; today: {COMMANDS[name]}")

    return told


class Format(click.Choice[str]):
    """A format of `export`; one that is planned is told from one that is mistyped."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value in FORMATS:
            raise UsageProblem(f"--to {value} is not built yet and comes in a later version; today: {FORMATS[value]}")
        return super().convert(value, param, ctx)
