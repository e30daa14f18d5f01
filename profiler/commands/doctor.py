"""`moescope doctor`: what would be collected here, and why not the rest."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moescope.collectors.doctor import Check

_MARKS = {"ok": ("●", "green"), "fallback": ("◐", "yellow"), "missing": ("○", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Try every source of events and counters on this machine: what a recording would hold, and why not the rest.

    ● recorded from the best source  ◐ from another one, told in the note  ○ not recorded
    """
    from moescope.collectors.doctor import examine, package_state

    checks = examine()
    if as_json:
        click.echo(json.dumps({"package": package_state(), "signals": [asdict(check) for check in checks]}))
        return
    from rich.table import Table
    from rich.text import Text

    from moescope.profiler.commands.console import PlainConsole
    from moescope.profiler.commands.following import say_next

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "signal", "source here", "note"):
        table.add_column(title, overflow="fold")
    for check in checks:
        mark, colour = _MARKS[check.state]
        state = Text(f"{mark} {check.state}", style=colour)
        table.add_row(state, Text(check.signal), Text(check.source), Text(check.note))
    console = PlainConsole()
    console.print("  ".join(f"{key} {value}" for key, value in package_state().items()), highlight=False, markup=False)
    console.print(table)
    say_next(_next(checks))


def _next(checks: Sequence[Check]) -> str:
    """What to do with this machine: measure its peaks, see the demo, or record a run that brings torch itself."""
    from moescope.collectors.calibrate import load_peaks

    if any(check.state == "missing" and check.signal.startswith("operators") for check in checks):
        return "moescope run -- python train.py"
    return "moescope demo" if load_peaks() is not None else "moescope calibrate"
