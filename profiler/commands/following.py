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


def words(paths: Iterable[Path], rules: Path | None = None, peaks: str | None = None) -> str:
    """Sources, and the rules and peaks they were read with, as a shell takes them."""
    options = (("--rules", rules), ("--peaks", peaks))
    return shlex.join([*map(str, paths), *(str(w) for name, at in options if at is not None for w in (name, at))])
