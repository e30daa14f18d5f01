"""`moescope whatif`: what a change of schedule, links or hardware would bring, from the recorded dependencies."""

from __future__ import annotations

import math
from pathlib import Path

import click

from moescope.profiler.commands.options import RULES, take_rules


def _finite(ctx: click.Context, param: click.Parameter, values: tuple[float, ...]) -> tuple[float, ...]:
    if not all(map(math.isfinite, values)):
        raise click.BadParameter("not a number", ctx, param)
    return values


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option(
    "--comm-sms",
    multiple=True,
    type=click.IntRange(1, 1_000_000),
    metavar="N",
    help="Communication on N SMs; may be given several times.",
)
@click.option(
    "--link-factor",
    multiple=True,
    type=click.FloatRange(0.001, 1_000_000),
    default=(2.0,),
    callback=_finite,
    metavar="F",
    help="Links F times as fast; may be given several times.  [default: 2]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1), times in µs.")
@RULES
def command(
    sources: tuple[Path, ...],
    comm_sms: tuple[int, ...],
    link_factor: tuple[float, ...],
    as_json: bool,
    rules: Path | None,
) -> None:
    """Say what would be gained if something were different, each figure with its bounds and what it assumes.

    The recorded kernels of all ranks are run again with changed durations, in the order and with the waits that were
    recorded: communication off the SMs or on N of them, faster links, perfect overlap, casts and transposes without
    kernels of their own, experts in balance. Everything printed is modelled.

    SOURCE is a recording, or traces: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`, by `nsys export`),
    files or a folder of them.
    """
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.errors import NoData
    from moescope.profiler.summary.answer import no_kernels
    from moescope.profiler.whatif.answer import told
    from moescope.profiler.whatif.project import project

    take_rules(rules)
    source = open_for_reading(sources)
    if not source.table("kernels").num_rows:
        raise NoData(no_kernels(source))
    found = project(source, dict.fromkeys(comm_sms), dict.fromkeys(link_factor))
    if found is None:
        raise NoData(
            f"{source.name}: no kernel lies in a stretch of time that all ranks recorded; record with --budget full"
        )
    answer = told(found, source.name)
    if as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False, allow_nan=False))
        return
    from moescope.profiler.commands.console import PlainConsole
    from moescope.profiler.commands.following import say_next, words
    from moescope.profiler.whatif.report import render_text

    render_text(answer, PlainConsole())
    say_next(f"moescope summary {words(sources, rules)}")
