"""`moescope compare`: what differs between two runs, and whether it is more than a threshold allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moescope.profiler.commands.options import RULES, take_rules


@click.command()
@click.argument("a", type=click.Path(path_type=Path), metavar="A")
@click.argument("b", type=click.Path(path_type=Path), metavar="B")
@click.option("--json", "as_json", is_flag=True, help="Print JSON (schema 1), times in µs.")
@click.option(
    "--fail-if",
    "fail_if",
    multiple=True,
    metavar="CONDITION",
    help="End with exit code 4 where it holds, such as 'exposed>+1%'; may be given several times.",
)
@click.option("-j", "--jobs", type=click.IntRange(1), metavar="N", help="Processes for each side.")
@RULES
def command(a: Path, b: Path, as_json: bool, fail_if: tuple[str, ...], jobs: int | None, rules: Path | None) -> None:
    """Say what differs between two runs: step, communication, phases and operators, and what of it is noise.

    A and B are each a recording, a trace or a folder of traces as `summary` takes them, or a file that
    `summary --json` wrote. Where both have steps, figures are of a step, so that runs of different length compare.

    \b
    CONDITION is METRIC>AMOUNT or METRIC<AMOUNT:
      'exposed>+1%'  'step>+2ms'    a change from A to B: of A, or a time
      'overlap<-2pp'                a change of a share, in points
      'exposed>5%'   'step>120ms'   what B may be: of its step, or a time
      'operator:all_to_all>+5%'  'phase:dispatch(F)/exposed>+100us'
    """
    from moescope.profiler.compare.answer import comparison_json
    from moescope.profiler.compare.differences import compare
    from moescope.profiler.compare.text import render_comparison, verdict_line
    from moescope.profiler.compare.thresholds import judge, parse_threshold
    from moescope.profiler.errors import NoData, ThresholdFailed

    thresholds = [parse_threshold(text) for text in fail_if]
    take_rules(rules)
    found = compare(_summary(a, jobs), _summary(b, jobs))
    judged = [judge(threshold, found) for threshold in thresholds]
    if as_json:
        import json

        click.echo(json.dumps(comparison_json(found, judged), ensure_ascii=False, allow_nan=False))
    else:
        from moescope.profiler.commands.console import PlainConsole

        render_comparison(found, judged, PlainConsole())
    failed = [verdict_line(one) for one in judged if one.failed]
    if failed:
        raise ThresholdFailed("\n".join(failed))
    untold = [verdict_line(one) for one in judged if one.failed is None]
    if untold:
        raise NoData("\n".join(untold))
    if not as_json:
        from moescope.profiler.commands.following import say_next, words

        say_next(f"moescope summary {words([b], rules)}")


def _summary(path: Path, jobs: int | None) -> dict[str, Any]:
    """A side's summary: as a file holds it, else made now."""
    from moescope.profiler.commands.opening import prepare
    from moescope.profiler.commands.progress import shown_progress
    from moescope.profiler.compare.sides import kept_summary
    from moescope.profiler.summary.driver import divide, executor_for, summarise_over

    kept = kept_summary(path)
    if kept is not None:
        return kept
    prepare([path])
    work = divide([path])
    with executor_for(work, jobs) as executor, shown_progress("ranks") as progress:
        return summarise_over(work, executor, progress)
