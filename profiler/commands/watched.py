"""`run --tui`: the recorder in a process of its own, the dashboard on the terminal, the target's output in a pane."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from moescope.collectors.sidecar.run import TWICE_S, RunOptions, recording_folder

if TYPE_CHECKING:
    from moescope.profiler.source import Source

TARGET_LOG = "target.log"


def run_with_dashboard(options: RunOptions, fps: float = 4.0, close_after_s: float | None = None) -> int:
    """Runs the command behind the dashboard; leaving the dashboard leaves the run alone. The command's exit code.

    close_after_s: the dashboard closes by itself this long after the run has ended, unless a key is pressed
    """
    if not has_terminal():
        raise click.UsageError("--tui needs a terminal: leave it out, and open `moescope top` elsewhere")
    # The recorder runs in a process of its own: both must know where it records to.
    folder, _ = recording_folder(options.folder)
    options = replace(options, folder=folder)
    log_path = options.folder / TARGET_LOG
    spec = asdict(options) | {"folder": str(options.folder)}
    with open(log_path, "wb") as log:
        # Its own session: the terminal's Ctrl-C belongs to the dashboard, which passes it on.
        recorder = subprocess.Popen(
            [sys.executable, "-m", "moescope.profiler.commands.watched", json.dumps(spec)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    # Before and after the dashboard, too, Ctrl-C is for the run, however often.
    before = signal.signal(signal.SIGINT, lambda *_: recorder.send_signal(signal.SIGINT))
    try:
        _show(options.folder, log_path, recorder, fps, close_after_s)
        if recorder.poll() is None:
            click.echo(f"moescope: the run goes on; its output follows (also in {log_path})", err=True)
        _follow(log_path, recorder)
        return recorder.wait()
    finally:
        signal.signal(signal.SIGINT, before)


def _interrupt(recorder: subprocess.Popen[bytes]) -> str:
    """What the dashboard's ^C does, and what it says then."""
    recorder.send_signal(signal.SIGINT)
    return f"interrupt sent to the run; ^C twice within {TWICE_S:g} s ends it at once"


def has_terminal() -> bool:
    """Whether a dashboard can be drawn: it reads keys from stdin and draws on stderr, but results go to stdout."""
    return sys.stdin.isatty() and sys.stdout.isatty() and sys.stderr.isatty()


def exporter(source: Source, folder: Path) -> Callable[[], str]:
    """What the dashboard's `e` does: writes the timelines of `source` into `folder` and says where."""

    def export() -> str:
        from moescope.profiler.export.csv_files import export_csv

        return f"wrote {len(export_csv(source, folder))} CSV files into {folder}"

    return export


def _show(
    folder: Path, log_path: Path, recorder: subprocess.Popen[bytes], fps: float, close_after_s: float | None
) -> None:
    """The dashboard, once the recording can be opened."""
    from moescope.profiler.live.feed import LiveFeed
    from moescope.profiler.source import open_source
    from moescope.tui.app import run

    while not (folder / "meta.json").exists():
        if recorder.poll() is not None:
            return
        time.sleep(0.05)
    source = open_source([folder])
    run(
        LiveFeed(source),
        fps=fps,
        log_path=log_path,
        on_interrupt=lambda: _interrupt(recorder),
        export=exporter(source, folder / "csv"),
        close_after_s=close_after_s,
    )


def _follow(log_path: Path, recorder: subprocess.Popen[bytes]) -> None:
    """Copies the target's output to the terminal until it ends: all of it, so that nothing is lost to the screen."""
    with open(log_path, "rb") as log:
        while True:
            ended = recorder.poll() is not None
            data = log.read()
            if data:
                sys.stdout.buffer.write(data)
                sys.stdout.flush()
            if ended:
                return
            time.sleep(0.1)


def _record() -> int:
    from moescope.collectors.sidecar.run import run

    spec = json.loads(sys.argv[1])
    spec |= {"command": tuple(spec["command"]), "folder": Path(spec["folder"])}
    return run(RunOptions(**spec), last=True)


if __name__ == "__main__":
    sys.exit(_record())
