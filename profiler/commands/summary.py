"""`moescope summary`: where the time of a run goes, as text or JSON."""

from __future__ import annotations

from pathlib import Path

import click

from moescope.profiler.commands.options import RULES, take_rules


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1), times in µs.")
@RULES
def command(sources: tuple[Path, ...], as_json: bool, rules: Path | None) -> None:
    """Say where the time of a run goes: compute, communication, what hides it, what lies exposed, and what to try.

    SOURCE is a recording, or traces: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`, by `nsys export`),
    files or a folder of them.
    """
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.summary import render_text, summarise

    take_rules(rules)
    answer = summarise(open_for_reading(sources))
    if as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False, allow_nan=False))
        return
    from moescope.profiler.commands.console import PlainConsole
    from moescope.profiler.commands.following import say_next, words

    render_text(answer, PlainConsole())
    say_next(f"moescope top {words(sources, rules)}")
