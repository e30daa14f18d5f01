"""`moescope summary`: where the time of a run goes, as text or JSON."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moescope.profiler.commands.options import PEAKS, RULES, take_peaks, take_rules

if TYPE_CHECKING:
    from moescope.profiler.hardware.table import PeaksFrom


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1), times in µs.")
@click.option(
    "-j", "--jobs", type=click.IntRange(1), metavar="N", help="Processes.  [default: one a core for much work]"
)
@click.option("--scheduler", metavar="ADDRESS", help="Dask scheduler to analyse ranks on, tcp://HOST:PORT.")
@PEAKS
@RULES
def command(
    sources: tuple[Path, ...],
    as_json: bool,
    jobs: int | None,
    scheduler: str | None,
    peaks: PeaksFrom | None,
    rules: Path | None,
) -> None:
    """Say where the time of a run goes: compute, communication, what hides it, what lies exposed, and what to try.

    SOURCE is a recording, or traces: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`, by `nsys export`),
    files or a folder of them. Ranks are analysed one by one, on processes of this machine or a Dask cluster.
    """
    from moescope.profiler.commands.opening import prepare
    from moescope.profiler.commands.progress import shown_progress
    from moescope.profiler.report.text import render_text
    from moescope.profiler.summary.driver import divide, executor_for, summarise_over

    take_rules(rules)
    take_peaks(peaks)
    prepare(sources)
    work = divide(sources)
    with executor_for(work, jobs, scheduler) as executor, shown_progress("ranks") as progress:
        answer = summarise_over(work, executor, progress)
    if as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False, allow_nan=False))
        return
    from moescope.profiler.commands.console import PlainConsole
    from moescope.profiler.commands.following import say_next, words

    render_text(answer, PlainConsole())
    say_next(f"moescope top {words(sources, rules, peaks)}")
