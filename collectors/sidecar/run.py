"""`moescope run`: makes the recording, starts the command, drains what the ranks produce, returns the exit code."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from moescope.collectors.clock import Clock
from moescope.collectors.sidecar.keeper import Keeper
from moescope.collectors.sidecar.target import Target, TargetSettings, environment

TICK_S: Final = 0.1
TWICE_S: Final = 2.0
GRACE_S: Final = 2.0
"""How long ranks that outlive their launcher are waited for."""
FORWARDED: Final = {
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
}
_FROM_TERMINAL: Final = 128
"""si_code SI_KERNEL: the terminal has sent the signal to the whole process group, the target included."""


@dataclass(frozen=True)
class RunOptions:
    """What `moescope run` was asked for."""

    command: tuple[str, ...]
    folder: Path
    budget: str = "0.02"
    steps: str = ""
    ranks: str = ""
    collect: str = ""
    keep_s: float | None = None
    quiet: bool = False


ALL_COLLECTORS: Final = ("kernels", "phases", "communication", "units", "links", "device")


def run(options: RunOptions, on_tick: Callable[[float], None] | None = None) -> int:
    """Runs the command under observation; its exit code, or 127 / 126 where it cannot be run."""
    clock = Clock.measure()
    folder, notes = _recording_folder(options.folder)
    ring_dir, note = _ring_folder(folder)
    notes += note
    collect = options.collect or ",".join(ALL_COLLECTORS)
    settings = TargetSettings(options.budget, options.steps, options.ranks, collect, ring_dir)
    env, env_notes = environment(os.environ, settings)
    watched = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    target = Target(options.command, env, watched)
    try:
        keeper = Keeper(options, folder, ring_dir, clock, collect.split(","))
        for text in notes + env_notes:
            keeper.log("warning", "run", text)
        keeper.attach(target.pid)
        problem = target.release()
        code = _watch(target, keeper, watched, on_tick) if problem is None else None
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
    if code is None:
        target.reap()
        keeper.abandon()
        _say(f"cannot run {options.command[0]}: {problem}")
        return 127 if problem == os.strerror(2) else 126
    keeper.finish(code)
    if not options.quiet:
        for text in keeper.last_words():
            _say(text)
    return code


def _watch(
    target: Target, keeper: Keeper, watched: set[signal.Signals], on_tick: Callable[[float], None] | None
) -> int:
    """Drains and forwards until the command has ended; its exit code."""
    interrupted_s = 0.0
    started_s = time.monotonic()
    while not target.reap():
        info = signal.sigtimedwait(watched, TICK_S)
        if info is None:
            keeper.tick()
            if on_tick is not None:
                on_tick(time.monotonic() - started_s)
            continue
        if info.si_signo == signal.SIGCHLD:
            continue
        now_s = time.monotonic()
        if info.si_signo == signal.SIGINT:
            if now_s - interrupted_s < TWICE_S:
                keeper.kill_all(target.pid)
                continue
            interrupted_s = now_s
        if info.si_code != _FROM_TERMINAL:
            target.signal(info.si_signo)
    outlived_s = time.monotonic()
    while keeper.survivors() and time.monotonic() - outlived_s < GRACE_S:
        keeper.tick()
        time.sleep(TICK_S)
    return target.exit_code()


def _recording_folder(wanted: Path) -> tuple[Path, list[str]]:
    """The recording's folder; where it cannot be made, one in the temporary folder, and a note: the run goes on."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        probe = wanted / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        folder = Path(tempfile.mkdtemp(prefix=wanted.name + "-"))
        text = f"cannot record into {wanted} ({error.strerror}): recording into {folder}"
        _say(text)
        return folder, [text]
    return wanted, []


def _ring_folder(recording: Path) -> tuple[Path, list[str]]:
    """Where the ranks' rings lie: shared memory, or the recording where that is small."""
    shared = Path("/dev/shm")
    try:
        if shutil.disk_usage(shared).free > 512 << 20:
            return Path(tempfile.mkdtemp(prefix=f"moescope-{socket.gethostname()}-", dir=shared)), []
        note = "less than 512 MB are free in /dev/shm: rings lie in the recording, on its file system"
    except OSError as error:
        note = f"/dev/shm cannot be used ({error.strerror}): rings lie in the recording, on its file system"
    folder = recording / "rings"
    folder.mkdir(exist_ok=True)
    return folder, [note]


def _say(text: str) -> None:
    sys.stderr.write(f"moescope: {text}\n")
    sys.stderr.flush()
