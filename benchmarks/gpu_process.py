"""Runs of other processes within a time: what they have started ends with them, as a GPU is to be left free."""

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
        _end(process.pid)
        out, err = process.communicate()
        raise subprocess.TimeoutExpired(command, limit_s, out, err) from expired
    except BaseException:
        _end(process.pid)
        raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _end(group: int) -> None:
    """Ends all processes of a session, and those that have made sessions of their own below it."""
    from moescope.collectors.sidecar.processes import descendants, kill

    below = descendants(group)
    with suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)
    kill(below)
