"""`moescope top`: the dashboard over a recording, growing or finished; leaving it leaves the run alone."""

from __future__ import annotations

from pathlib import Path

import click

from moescope.profiler.commands.watched import exporter, has_terminal
from moescope.profiler.errors import UsageProblem


@click.command()
@click.argument("recording", type=click.Path(path_type=Path))
@click.option("--rank", type=click.IntRange(min=0), help="Show this rank alone.")
@click.option("--fps", type=click.FloatRange(min=0.1, max=60), default=4.0, show_default=True, help="Frames a second.")
def command(recording: Path, rank: int | None, fps: float) -> None:
    """Watch RECORDING, or traces of other tools, in the terminal. `q` leaves; the run goes on."""
    if not has_terminal():
        raise UsageProblem(f"the dashboard needs a terminal; use `moescope summary {recording}` for plain text")
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.live import LiveFeed
    from moescope.tui.app import run

    source = open_for_reading([recording])
    folder = recording / "csv" if recording.is_dir() else Path(f"{recording.name}-csv")
    raise SystemExit(run(LiveFeed(source), fps=fps, rank=rank, export=exporter(source, folder)))
