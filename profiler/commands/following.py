"""The last line that a command prints: what to type next."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from pathlib import Path

import click

from moescope.profiler.printable import printable


def say_next(command: str) -> None:
    """Prints the next command on stderr, below all results on stdout."""
    sys.stdout.flush()
    click.echo(f"moescope: next: {printable(command)}", err=True)


def words(paths: Iterable[Path], rules: Path | None = None) -> str:
    """Sources, and the rules they were read with, as a shell takes them."""
    return shlex.join([*map(str, paths), *(("--rules", str(rules)) if rules is not None else ())])
