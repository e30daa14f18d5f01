"""The `moescope` command: loads a subcommand when it is called, and prints every error once."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Any, Final, NoReturn

import click

COMMANDS: Final = {
    "run": "run",
    "demo": "demo",
    "top": "top",
    "summary": "summary",
    "export": "export",
    "import": "import_",
    "explain": "explain",
    "compare": "compare",
    "whatif": "whatif",
    "doctor": "doctor",
    "calibrate": "calibrate",
}
"""Subcommand to module of this package; the module's `command` is the click command."""

SHORT_HELP: Final = {
    "run": "Run a command and record it.",
    "demo": "Run and record the built-in FP8 mixture-of-experts model.",
    "top": "Watch a recording in the terminal, live or finished.",
    "summary": "Say where the time goes: compute, communication, what is hidden.",
    "export": "Write the timelines as files.",
    "import": "Turn traces of other tools into a recording.",
    "explain": "Say how a kernel name is classified, and why.",
    "compare": "Compare two runs.",
    "whatif": "Estimate what a change would bring.",
    "doctor": "Say which collectors work here, and why others do not.",
    "calibrate": "Measure this machine's peaks.",
}


class _Lazy(click.Group):
    """Lists what is installed and imports only what is called, so that `moescope --help` is quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [name for name, module in COMMANDS.items() if _installed(module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        module = COMMANDS.get(cmd_name)
        if module is None or not _installed(module):
            return None
        command = importlib.import_module(f"moescope.profiler.commands.{module}").command
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            _leave_quietly()

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, SHORT_HELP[name]) for name in self.list_commands(ctx)])


def _installed(module: str) -> bool:
    return importlib.util.find_spec(f"moescope.profiler.commands.{module}") is not None


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
    """Profiler and observability for FP8 mixture-of-experts training and inference."""


def _leave_quietly() -> NoReturn:
    """The reader went away (`| head`): leave without a word, and keep the interpreter from flushing into the pipe."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(0)


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code: 0, 1 an error, 2 usage, 3 no data, 4 a threshold failed."""
    from moescope.profiler.errors import MoescopeError

    try:
        result = cli.main(args=list(args) if args is not None else None, prog_name="moescope", standalone_mode=False)
        sys.stdout.flush()
    except MoescopeError as error:
        click.echo(f"moescope: {error}", err=True)
        sys.exit(error.exit_code)
    except click.UsageError as error:
        error.show()
        sys.exit(2)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except click.exceptions.Abort:
        sys.exit(130)
    except BrokenPipeError:
        _leave_quietly()
    sys.exit(result if isinstance(result, int) else 0)
