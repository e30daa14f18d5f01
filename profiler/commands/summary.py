"""`moescope summary`: where the time of a run goes, as text or JSON."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="SOURCE…")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1).")
@click.option("--rules", type=click.Path(path_type=Path), help="TOML file of classifier rules that go before ours.")
def command(sources: tuple[Path, ...], as_json: bool, rules: Path | None) -> None:
    """Say where the time of SOURCE goes: a recording, a folder of traces, or trace files."""
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.summary import render_text, summarise

    take_rules(rules)
    answer = summarise(open_for_reading(sources))
    if as_json:
        import json

        click.echo(json.dumps(answer, ensure_ascii=False, allow_nan=False))
        return
    from moescope.profiler.commands.console import PlainConsole

    render_text(answer, PlainConsole())


def take_rules(rules: Path | None) -> None:
    """Put a user's rules before the built-in ones."""
    if rules is not None:
        from moescope.profiler.classify import read_rules, use_rules

        use_rules(read_rules(rules))
