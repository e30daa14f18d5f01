"""`moescope doctor`: what would be collected here, and why not the rest."""

from __future__ import annotations

import json
from dataclasses import asdict

import click

_MARKS = {"ok": ("●", "green"), "fallback": ("◐", "yellow"), "missing": ("○", "red")}


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(as_json: bool) -> None:
    """Try every source on this machine, and say what stands in the way of better."""
    from moescope.collectors.doctor import examine, package_state

    checks = examine()
    if as_json:
        click.echo(json.dumps({"package": package_state(), "signals": [asdict(check) for check in checks]}))
        return
    from rich.table import Table
    from rich.text import Text

    from moescope.profiler.commands.console import PlainConsole

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
