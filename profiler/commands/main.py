"""The `moescope` command: loads a subcommand when it is called, and prints every error once."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

COMMANDS: Final = {
    "Record": {
        "run": "Run a command and record what its processes do.",
        "demo": "Record the built-in mixture-of-experts model, and show the answer.",
        "import": "Turn traces of PyTorch or Nsight Systems into a recording.",
    },
    "Look": {
        "top": "Open the dashboard, while the run goes on or afterwards.",
        "summary": "Say where the time goes, and what to try.",
        "compare": "Say what differs between two runs, and fail where it is too much.",
        "whatif": "Say what a change would bring: schedule, links, SMs, casts, balance.",
        "export": "Write the timelines as CSV files.",
        "explain": "Say what a kernel name is taken for, by which rule, and why.",
    },
    "This machine": {
        "doctor": "Say what can be recorded here, and why not the rest.",
        "calibrate": "Measure the peaks that use is a share of.",
    },
}
"""Subcommands by what they are for, each with a line of help; `profiler.commands.<name>.command` is the command."""

_MODULES: Final = {"import": "import_"}
_EXAMPLES: Final = (
    ("moescope demo", "see it at work, in under a minute"),
    ("moescope run -- python train.py", "record a run of your own"),
    ("moescope summary trace.json.gz", "the same answer from a PyTorch trace"),
)


class _Lazy(click.Group):
    """Lists what there is and imports only what is called, so that `moescope --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for room in COMMANDS.values() for name in room]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in self.list_commands(ctx):
            module = _MODULES.get(cmd_name, cmd_name)
            command = importlib.import_module(f"moescope.profiler.commands.{module}").command
            assert isinstance(command, click.Command)
            return command
        return None

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _leave_quietly()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        widest = max(map(len, self.list_commands(ctx)))
        for room, commands in COMMANDS.items():
            with formatter.section(room):
                formatter.write_dl([(name.ljust(widest), text) for name, text in commands.items()])
        with formatter.section("Begin with"):
            formatter.write_dl(_EXAMPLES, col_max=36)
        formatter.write_paragraph()
        with formatter.indentation():
            formatter.write_text("`moescope COMMAND --help` tells more about each.")


def _version(ctx: click.Context, _: click.Parameter, wanted: bool) -> None:
    if wanted and not ctx.resilient_parsing:
        from moescope import __version__

        click.echo(f"moescope {__version__}")
        ctx.exit()


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_version, help="Print the version."
)
def cli() -> None:
    """Profiler for FP8 mixture-of-experts training and inference.

    Records a run with no change to its code, and says whether communication is hidden behind compute, how many cores or
    SMs it holds, how well the matrix units are used, and which rank, link or expert is to blame.
    """


def _leave_quietly() -> NoReturn:
    """The reader went away (`| head`): leave without a word, and keep the interpreter from flushing into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def _problem(error: click.UsageError) -> str:
    """A usage error in one line: where, what, and what tells more."""
    path = error.ctx.command_path if error.ctx is not None else "moescope"
    told = " ".join(error.format_message().split()).rstrip(".")
    return f"{path.removeprefix('moescope').strip()}: {told}; see `{path} --help`".removeprefix(": ")


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 1 an error, 2 usage, 3 no data, 4 a threshold failed."""
    from moescope.profiler.errors import MoescopeError
    from moescope.profiler.printable import printable

    try:
        result = cli.main(args=list(args) if args is not None else None, prog_name="moescope", standalone_mode=False)
        sys.stdout.flush()
    except MoescopeError as error:
        click.echo(f"moescope: {printable(str(error), keep=chr(10))}", err=True)
        sys.exit(error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        sys.exit(2)
    except click.UsageError as error:
        click.echo(f"moescope: {printable(_problem(error))}", err=True)
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        _leave_quietly()
    sys.exit(result if isinstance(result, int) else 0)
