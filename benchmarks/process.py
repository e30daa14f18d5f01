"""Runs of other processes within a time: what they have started ends with them, and leaves the machine free."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path


def run(
    command: Sequence[str], limit_s: float, *, env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run`, output captured. Raises subprocess.TimeoutExpired, with what was said until then."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env, cwd=cwd, start_new_session=True
    )
    try:
        out, err = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as expired:
        end(process.pid)
        out, err = process.communicate()
        raise subprocess.TimeoutExpired(command, limit_s, out, err) from expired
    except BaseException:  # Ctrl-C too: what has been started must not hold the GPU; raised again
        end(process.pid)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


class Failed(Exception):
    """A run ended with an error, or did not end; the message is the last of what it said."""


def output_of(command: Sequence[str], limit_s: float) -> str:
    """What a run prints. Raises Failed; what moescope itself says besides is no reason."""
    try:
        done = run(command, limit_s)
    except subprocess.TimeoutExpired as error:
        raise Failed(f"a run took longer than {limit_s:.0f} s") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith("moescope:")]
        raise Failed((lines or ["nothing was said"])[-1])
    return done.stdout


def end(group: int) -> None:
    """Ends all processes of a session, and those that have made sessions of their own below it."""
    from moescope.collectors.sidecar.processes import descendants, kill

    below = descendants(group)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    kill(below)
