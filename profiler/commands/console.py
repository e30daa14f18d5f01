"""The console that commands print with: no colour off a terminal, and no failure where the reader has gone away."""

from __future__ import annotations

from typing import NoReturn

from rich.console import Console


class PlainConsole(Console):
    """Rich's console; a closed pipe (`| head`) is left to `main`, which ends quietly with 0 where Rich ends with 1."""

    def __init__(self) -> None:
        super().__init__(highlight=False)

    def on_broken_pipe(self) -> NoReturn:
        """Called by Rich while the BrokenPipeError is handled."""
        raise BrokenPipeError
