"""`moescope run`: wraps a command, with no change to its code."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import click

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Duration(click.ParamType[float]):
    """A length of time such as `10m`, in seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)(ms|s|m|h)", str(value))
        if match is None or float(match[1]) == 0:
            self.fail(f"{value!r} is no length of time: write 30s, 10m or 2h", param, ctx)
        return float(match[1]) * _UNITS[match[2]]


class Budget(click.ParamType[str]):
    """A share of the target's time such as `2%`, or `full`."""

    name = "budget"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        if text == "full":
            return text
        match = re.fullmatch(r"(\d+(?:\.\d+)?)%", text)
        if match is None or not 0 < float(match[1]) <= 100:
            self.fail(f"{value!r} is no budget: write a share such as 2%, or full", param, ctx)
        return str(float(match[1]) / 100)


def _pattern(expression: str, example: str) -> Any:
    def check(ctx: click.Context, param: click.Parameter, value: str) -> str:
        if value and not re.fullmatch(expression, value):
            raise click.BadParameter(f"{value!r}: write {example}", ctx, param)
        return value

    return check


def default_folder(command: tuple[str, ...], env: dict[str, str] | os._Environ[str] = os.environ) -> Path:
    """`moescope-<script>-<date>-<time>[-<job id>]`, and a number where that exists."""
    from moescope.collectors.sidecar.keeper import target_name

    script = re.sub(r"[^A-Za-z0-9_.-]", "_", target_name(command).removesuffix(".py"))[:40]
    job = env.get("SLURM_JOB_ID") or env.get("PBS_JOBID") or env.get("LSB_JOBID")
    name = f"moescope-{script}-{time.strftime('%Y%m%d-%H%M%S')}" + (f"-{job}" if job else "")
    folder, number = Path(name), 2
    while folder.exists():
        folder, number = Path(f"{name}-{number}"), number + 1
    return folder


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option(
    "-o",
    "--output",
    metavar="FOLDER",
    type=click.Path(path_type=Path),
    help="Where the recording goes.  [default: moescope-<script>-<date>-<time>, here]",
)
@click.option("-f", "--force", is_flag=True, help="Replace the recording that is there.")
@click.option(
    "--tui",
    is_flag=True,
    help="Open the dashboard at once: q leaves it and the run goes on, ^C there interrupts the run. The command's "
    "output goes into a pane and into FOLDER/target.log; it has no input.",
)
@click.option(
    "--budget",
    type=Budget(),
    default="2%",
    show_default=True,
    help="Share of the run's time that recording operators may cost; full records every one at any cost.",
)
@click.option(
    "--steps",
    metavar="A:B",
    default="",
    callback=_pattern(r"\d*:\d*", "a range such as 10:20"),
    help="Record operators from step A to step B only.",
)
@click.option(
    "--ranks",
    metavar="LIST",
    default="",
    callback=_pattern(r"\d+(,\d+)*", "a list such as 0,3"),
    help="Record these ranks only, such as 0,3.",
)
@click.option(
    "--collect",
    metavar="LIST",
    default="",
    help="Record these only, separated by commas, of: kernels (operators), phases, communication (calls of "
    "torch.distributed), units (which core ran which thread), links (bytes through network interfaces, NVLink and "
    "PCIe), device (CPU use, memory, a GPU's counters).  [default: all]",
)
@click.option(
    "--keep",
    metavar="TIME",
    type=Duration(),
    help="Keep only the last part of a long run: 30s, 10m, 2h.  [default: all]",
)
@click.option(
    "--gpu-period",
    metavar="TIME",
    type=Duration(),
    default="500ms",
    show_default=True,
    help="Time between two samples of a GPU's counters, at least 100ms.",
)
@click.option(
    "--pm-sampling",
    metavar="TIME",
    type=Duration(),
    help="Sample a GPU's counters every TIME, at least 1ms, by CUPTI's PM sampling besides NVML's. It needs root or "
    "CAP_PERFMON, keeps other profilers from the counters, and may keep kernels from being recorded.  [default: off]",
)
@click.argument("command_line", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND…")
def command(
    output: Path | None,
    force: bool,
    tui: bool,
    budget: str,
    steps: str,
    ranks: str,
    collect: str,
    keep: float | None,
    gpu_period: float,
    pm_sampling: float | None,
    command_line: tuple[str, ...],
) -> None:
    """Run COMMAND and record what its processes do.

    Every Python process that imports torch is recorded, children included, with no change to its code. Output,
    terminal, signals and exit code stay the command's own.
    Ctrl-C is for the command; two within 2 s end the run at once.

    \b
      moescope run -- python train.py
      moescope run -- torchrun --nproc-per-node 8 train.py

    Operators are recorded in short windows that keep to the budget; phases, steps and communication always.
    """
    from moescope.collectors.samplers.pm_sampling.sampler import LEAST_PERIOD_S
    from moescope.collectors.sidecar.run import ALL_COLLECTORS, RunOptions

    if command_line[0].startswith("-"):
        raise click.NoSuchOption(command_line[0])
    unknown = set(filter(None, collect.split(","))) - set(ALL_COLLECTORS)
    if unknown:
        raise click.BadParameter(
            f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(ALL_COLLECTORS)}", param_hint="--collect"
        )
    if gpu_period < 0.1:
        raise click.BadParameter("a GPU's counters need at least 100ms between two samples", param_hint="--gpu-period")
    if pm_sampling is not None and pm_sampling < LEAST_PERIOD_S:
        raise click.BadParameter("samples lie at least 1ms apart", param_hint="--pm-sampling")
    if pm_sampling is not None and collect and "device" not in collect.split(","):
        raise click.BadParameter("--collect leaves out `device`, which it belongs to", param_hint="--pm-sampling")
    folder = chosen_folder(output, command_line, force)
    options = RunOptions(command_line, folder, budget, steps, ranks, collect, keep, gpu_period, pm_sampling)
    if tui:
        from moescope.profiler.commands.watched import run_with_dashboard

        sys.exit(run_with_dashboard(options))
    from moescope.collectors.sidecar.run import run

    sys.exit(run(options, last=True))


def chosen_folder(output: Path | None, command_line: tuple[str, ...], force: bool) -> Path:
    """The folder to record into, which holds nothing: `output`, or one that is named after the command.

    Raises click.BadParameter where `output` holds something and may not be, or is not to be, overwritten.
    """
    folder = output or default_folder(command_line)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        if not force:
            raise click.BadParameter(
                f"{folder} exists and is not empty: choose another, or -f to overwrite it", param_hint="-o"
            )
        _clear(folder)
    return folder


def _clear(folder: Path) -> None:
    """Removes an old recording; anything else that bears this name is left alone."""
    import shutil

    if not (folder / "meta.json").is_file():
        raise click.BadParameter(f"{folder} is no recording: remove it yourself", param_hint="-o")
    shutil.rmtree(folder)
