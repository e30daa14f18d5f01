"""`moescope top`: the dashboard over a recording, growing or finished; leaving it leaves the run alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moescope.profiler.commands.following import say_next, words
from moescope.profiler.commands.options import PEAKS, RULES, take_peaks, take_rules
from moescope.profiler.commands.watched import exporter, has_terminal
from moescope.profiler.errors import UsageProblem

if TYPE_CHECKING:
    from moescope.profiler.hardware.table import PeaksFrom


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option("--rank", type=click.IntRange(min=0), metavar="N", help="Begin with this rank alone.")
@click.option(
    "--fps", type=click.FloatRange(0.1, 60), default=4.0, show_default=True, metavar="N", help="Frames a second."
)
@PEAKS
@RULES
def command(
    sources: tuple[Path, ...], rank: int | None, fps: float, peaks: PeaksFrom | None, rules: Path | None
) -> None:
    """Open the dashboard over a run, while it goes on or afterwards.

    SOURCE is a recording, or traces: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`, by `nsys export`),
    files or a folder of them.

    ? tells the keys; q leaves, and a run that goes on is left alone.
    """
    again = words(sources, rules, peaks)
    if not has_terminal():
        raise UsageProblem(f"the dashboard needs a terminal; use `moescope summary {again}` for plain text")
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.live.feed import LiveFeed
    from moescope.tui.app import run

    take_rules(rules)
    take_peaks(peaks)
    source = open_for_reading(sources)
    code = run(LiveFeed(source), fps=fps, rank=rank, export=exporter(source, _csv_folder(sources[0])))
    if not code:
        source.poll()
        say_next(f"moescope {'top' if source.state == 'live' else 'summary'} {again}")
    raise SystemExit(code)


def _csv_folder(source: Path) -> Path:
    """Where `e` writes: into a recording, else into a new folder here: traces belong to others."""
    from moescope.profiler.source import is_recording

    if is_recording(source):
        return source / "csv"
    name = source.resolve().name.removesuffix(".gz").removesuffix(".json")
    folder, number = Path(f"{name}-csv"), 2
    while folder.exists():
        folder, number = Path(f"{name}-csv-{number}"), number + 1
    return folder
