"""`moescope export`: the timelines of a run as files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from moescope.profiler.commands.later import Format
from moescope.profiler.commands.options import RULES, take_rules
from moescope.profiler.errors import UsageProblem

if TYPE_CHECKING:
    from moescope.profiler.source import Source


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option("--to", "form", type=Format(["csv"]), required=True, help="Format.")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Folder to write to.  [default: <source>-csv, here]",
)
@click.option(
    "--window",
    metavar="A:B",
    help="Only rows that touch this time, in seconds from the first kernel: 1.5:2, 10: for the rest.",
)
@RULES
@click.option(
    "-f", "--force", is_flag=True, help="Write into a folder that holds something; an earlier export is replaced."
)
def command(
    sources: tuple[Path, ...], form: str, output: Path | None, window: str | None, rules: Path | None, force: bool
) -> None:
    """Write the timelines of a run: a table a file, with a header, times in ns; they load in pandas and DuckDB.

    SOURCE is a recording, or traces: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`, by `nsys export`),
    files or a folder of them. docs/data-dictionary.md tells each column.
    """
    from moescope.profiler.commands.following import say_next, words
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.errors import NoData
    from moescope.profiler.export.csv_files import export_csv
    from moescope.profiler.summary.answer import no_kernels

    take_rules(rules)
    source = open_for_reading(sources)
    if not source.table("kernels").num_rows:
        raise NoData(no_kernels(source))
    name = sources[0].resolve().name.removesuffix(".gz").removesuffix(".json")
    folder = output if output is not None else Path(f"{name}-{form}")
    if folder.exists() and not folder.is_dir():
        raise UsageProblem(f"{folder}: is a file; name a folder with -o")
    if folder.is_dir() and any(folder.iterdir()) and not force:
        raise UsageProblem(f"{folder}: holds files already; choose another folder with -o, or write over them with -f")
    for path in export_csv(source, folder, _chosen(source, window) if window else None):
        click.echo(str(path))
    say_next(f"column -s, -t {words([folder / 'overlap.csv'])} | less -S")


def _chosen(source: Source, window: str) -> tuple[int, int]:
    """The window in ns since the epoch. Raises NoData where it lies outside of the run."""
    from moescope.profiler.errors import NoData

    kernels = source.table("kernels")
    starts = kernels.column("start_ns").to_numpy()
    first, last = int(starts.min()), int((starts + kernels.column("dur_ns").fill_null(0).to_numpy()).max())
    low, high = parse_window(window, first)
    if low > last:
        raise NoData(f"--window {window}: the run is over by then: it lasts {(last - first) / 1e9:.3f} s")
    return low, high


def parse_window(text: str, origin_ns: int) -> tuple[int, int]:
    """`A:B` in seconds from the origin as ns since the epoch; either side may be left out."""
    first, colon, last = text.partition(":")
    try:
        low = float(first) if first else 0.0
        high = float(last) if last else float("inf")
    except ValueError:
        colon = ""
        low = high = 0.0
    if not colon or not low < high or low < 0:
        raise UsageProblem(f"--window {text}: give A:B in seconds with A before B, such as 1.5:2")
    end = origin_ns + round(high * 1e9) if high != float("inf") else 2**62
    return origin_ns + round(low * 1e9), end
