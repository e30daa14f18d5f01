"""Opens what a command is to read, after bringing home what a killed recorder has left behind."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from moescope.profiler.source import Source


def open_for_reading(paths: Sequence[Path]) -> Source:
    """`profiler.source.open_source` of what `prepare` has prepared."""
    from moescope.profiler.source import open_source

    prepare(paths)
    return open_source(paths)


def prepare(paths: Sequence[Path]) -> None:
    """Complete a recording whose recorder was killed from its ranks' rings, and take the rules that it bears.

    Says on stderr what was done, or why it could not be: the command goes on with what is stored.
    """
    from moescope.profiler.source import is_recording
    from moescope.profiler.sources.recording import Recording

    if len(paths) == 1 and is_recording(paths[0]):
        _complete(paths[0])
        about = Recording(paths[0], ())
        about.poll()
        _take_stored_rules(about)


def _take_stored_rules(source: Source) -> None:
    """Rules that a recording was imported with go behind the user's and before the built-in ones."""
    entries = source.meta.get("rules")
    if isinstance(entries, list) and entries:
        from moescope.profiler.classify.classifier import stored_rules, use_rules, user_rules
        from moescope.profiler.classify.user import rules_from

        known = stored_rules()
        rules = rules_from(entries, f"{source.name}/meta.json")
        use_rules(user_rules(), stored=(*known, *(rule for rule in rules if rule not in known)))


def _complete(recording: Path) -> None:
    from moescope.collectors.recovery import recover

    try:
        done = recover(recording)
    except OSError as error:
        click.echo(
            f"moescope: {recording}: what its ranks still had in memory when recording ended could not be brought home "
            f"({error.strerror or error}): make room, or copy it to where it can be written to, on this host",
            err=True,
        )
        return
    if done is not None:
        click.echo(f"moescope: {recording}: {done}", err=True)
