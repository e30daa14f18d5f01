"""`moescope demo`: the FP8 MoE stack under the profiler, then the answer, the CSVs, and what to type next."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moescope.profiler.recorded.archive import Recorded

STEPS = {"train": 60, "prefill": 60, "decode": 200, "all": 40}
"""Steps that each stage runs for: with the environment ready the demo takes well under a minute on two cores."""

BUDGET = "0.05"
"""Share of the time that recording may cost: windows for 2 % of some seconds show shares that are ten points unsure."""

CLOSE_AFTER_S = 8.0
"""How long the dashboard stays after the run has ended, where nobody presses a key."""


@dataclass
class _Progress:
    """One line on stderr: rewritten on a terminal, every five seconds elsewhere."""

    told_s: float = field(default=-5.0)

    def __call__(self, elapsed_s: float) -> None:
        terminal = sys.stderr.isatty()
        if elapsed_s - self.told_s < (0.5 if terminal else 5.0):
            return
        self.told_s = elapsed_s
        sys.stderr.write(
            f"{chr(13) if terminal else ''}moescope: recording, {elapsed_s:.0f} s{'' if terminal else chr(10)}"
        )
        sys.stderr.flush()


def target_command(stage: str, ranks: int, steps: int, schedule: str) -> tuple[str, ...]:
    """The command line of the demo's target."""
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}")
    return (*launcher, "-m", "moescope.instrumented_model", stage, f"--steps={steps}", f"--schedule={schedule}")


@click.command()
@click.option(
    "--stage", type=click.Choice(list(STEPS)), default="train", show_default=True, help="What the model does."
)
@click.option(
    "--ranks",
    type=click.IntRange(1, 16),
    default=2,
    metavar="N",
    show_default=True,
    help="Processes that its experts are spread over, one thread each.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    metavar="N",
    help=f"Steps to run.  [default: {', '.join(f'{stage} {steps}' for stage, steps in STEPS.items())}]",
)
@click.option(
    "--schedule",
    type=click.Choice(["overlapped", "serial"]),
    default="overlapped",
    show_default=True,
    help="Whether communication runs beside compute or waits for it: run both and see what overlap brings.",
)
@click.option("--tui/--no-tui", default=None, help="Show the dashboard.  [default: on a terminal]")
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the recording goes.  [default: moescope-demo-<date>-<time>, here]",
)
@click.option("-f", "--force", is_flag=True, help="Replace the recording that is there.")
@click.option(
    "--recorded",
    is_flag=False,
    flag_value="",
    metavar="[NAME]",
    help="Run nothing: show a recording that ships with moescope; NAME `list` tells which there are.",
)
@click.pass_context
def command(
    context: click.Context,
    stage: str,
    ranks: int,
    steps: int | None,
    schedule: str,
    tui: bool | None,
    output: Path | None,
    force: bool,
    recorded: str | None,
) -> None:
    """Record the built-in FP8 mixture-of-experts model, and show the answer: as dashboard, text and CSV.

    Real processes do real work on this machine's cores. Only the wire between them is emulated, and labelled so. Takes
    under a minute on two cores. As it is over so soon, recording may cost 5 % of its time; `moescope run` keeps to 2 %.
    With --recorded nothing runs, and PyTorch is not needed.
    """
    if recorded is not None:
        _show_recorded(context, recorded, tui, output, force)
        return
    from moescope.collectors.sidecar.run import RunOptions, recording_folder, run
    from moescope.profiler.commands.run import chosen_folder
    from moescope.profiler.commands.watched import has_terminal, run_with_dashboard

    if tui and not has_terminal():
        raise click.UsageError("--tui needs a terminal: leave it out, and open `moescope top` elsewhere")
    _require_torch()
    folder, _ = recording_folder(chosen_folder(output, ("demo",), force))
    _calibrate_once()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    command_line = target_command(stage, ranks, steps or STEPS[stage], schedule)
    options = RunOptions(command_line, folder, BUDGET, quiet=True)
    if tui or (tui is None and has_terminal()):
        code = run_with_dashboard(options, close_after_s=CLOSE_AFTER_S)
    else:
        code = run(options, _Progress())
        sys.stderr.write("\n" if sys.stderr.isatty() else "")
    if code:
        click.echo(f"moescope: the demo's target failed with exit code {code}; see {folder}", err=True)
        sys.exit(code)
    _answer(folder)


def _require_torch() -> None:
    """Raises UsageError where this Python has no PyTorch, before anything is recorded."""
    try:
        there = find_spec("torch") is not None
    except ImportError:
        there = False
    if not there:
        raise click.UsageError(
            "the demo runs a model in PyTorch, which this Python does not have: `pip install 'moescope[model]'` brings "
            "it, and `moescope demo --recorded` shows a recorded run without it"
        )


def _show_recorded(context: click.Context, name: str, tui: bool | None, output: Path | None, force: bool) -> None:
    """Unpacks a recording that ships with moescope, and shows it as a run's is shown."""
    from moescope.profiler.commands.run import chosen_folder
    from moescope.profiler.commands.watched import exporter, has_terminal
    from moescope.profiler.recorded.archive import chosen, shipped, unpack

    for option in ("stage", "ranks", "steps", "schedule"):
        if context.get_parameter_source(option) is not click.core.ParameterSource.DEFAULT:
            raise click.UsageError(f"--{option} is for a run, and --recorded runs nothing: leave one of them out")
    if name == "list":
        for one in shipped():
            click.echo(f"{one.name}  ({', '.join(one.devices)})\n\n{one.about}\n")
        return
    if tui and not has_terminal():
        raise click.UsageError("--tui needs a terminal: leave it out for the answer as text")
    one = chosen(name)
    folder = chosen_folder(output, ("demo",), force)
    unpack(one.path, folder)
    click.echo(f"moescope: {one.name}, {_of_devices(one, shipped())}, unpacked into {folder}", err=True)
    if tui or (tui is None and has_terminal()):
        from moescope.profiler.commands.opening import open_for_reading
        from moescope.profiler.live.feed import LiveFeed
        from moescope.tui.app import run

        source = open_for_reading([folder])
        if code := run(LiveFeed(source), fps=4.0, rank=None, export=exporter(source, folder / "csv")):
            sys.exit(code)
    _answer(folder)


def _of_devices(one: Recorded, there: Sequence[Recorded]) -> str:
    """What it is a recording of; where none of a GPU ships that is said, as people come to see one."""
    if one.devices != ("cpu",):
        return f"a run recorded on {', '.join(one.devices)}"
    only = all(other.devices == ("cpu",) for other in there)
    return f"a run recorded on a CPU{' (no recording of a GPU ships yet)' if only else ''}"


def _calibrate_once() -> None:
    """Measures this machine's peaks where that was never done: gauges are shares of a measured peak."""
    from moescope.collectors.calibrate import calibrate, load_peaks

    if load_peaks() is None:
        click.echo("moescope: measuring this machine's peaks once (moescope calibrate) …", err=True)
        calibrate()


def _answer(folder: Path) -> None:
    from moescope.profiler.commands.console import PlainConsole
    from moescope.profiler.commands.opening import open_for_reading
    from moescope.profiler.export.csv_files import export_csv
    from moescope.profiler.report.text import render_text
    from moescope.profiler.summary.answer import summarise

    source = open_for_reading([folder])
    render_text(summarise(source), PlainConsole())
    click.echo("\nTimelines as CSV:")
    for path in export_csv(source, folder / "csv"):
        click.echo(f"  {path}")
    click.echo("\nNext:")
    following = (
        (f"moescope top {folder}", "the dashboard over this recording"),
        (f"moescope summary {folder} --json", "the same answer for programs"),
        ("moescope run -- torchrun …", "your own run"),
    )
    width = max(len(words) for words, _ in following)
    for words, what in following:
        click.echo(f"  {words:{width}}   {what}")
