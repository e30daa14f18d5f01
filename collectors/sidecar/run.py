"""`moescope run`: makes the recording, starts the command, drains what the ranks produce, returns the exit code."""

from __future__ import annotations

import os
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import GPU_PERIOD_S
from moescope.collectors.schema import META_FILE
from moescope.collectors.sidecar.keeper import Keeper
from moescope.collectors.sidecar.target import Target, TargetSettings, environment

T = TypeVar("T")

TICK_S: Final = 0.1
CALM_S: Final = 0.4
"""How often to look at the command and at how full its rings are, where nobody watches it here."""
TWICE_S: Final = 2.0
"""Two Ctrl-C within this time end the run at once. A later one is the command's own again: it may be a prompt that is
interrupted now and then, and a run that takes long to end is told what to press."""
PROBE_BYTES: Final = 64 << 10
"""What must fit for a folder to be recorded into."""
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
    gpu_period_s: float = GPU_PERIOD_S
    pm_period_s: float | None = None
    """Between two samples of a GPU's counters by PM sampling; None for none of these."""
    quiet: bool = False


ALL_COLLECTORS: Final = ("kernels", "phases", "communication", "units", "links", "device")


class _Recording:
    """The keeper, once it is open: whatever breaks in it costs the recording, never the run."""

    def __init__(self, options: RunOptions) -> None:
        self._options = options
        self._keeper: Keeper | None = None
        self._rings: tuple[Path, Path] | None = None
        self.env: Mapping[str, str] = os.environ

    def prepare(self) -> None:
        """Makes the folders and the target's environment, and writes that the recording has begun."""
        try:
            options = self._options
            clock = Clock.measure()
            folder, notes = recording_folder(options.folder)
            ring_dir, note = _ring_folder(folder)
            self._rings = folder, ring_dir
            collect = options.collect or ",".join(ALL_COLLECTORS)
            settings = TargetSettings(options.budget, options.steps, options.ranks, collect, ring_dir)
            env, env_notes = environment(os.environ, settings)
            self._keeper = Keeper(options, folder, ring_dir, clock, collect.split(","))
            for text in notes + note + env_notes:
                self._keeper.log("warning", "run", text)
            self.env = env
        except Exception as error:  # noqa: BLE001  the command runs, recorded or not
            _say(f"not recording ({_reason(error)}): the command runs without moescope")
            self._let_go()

    def call(self, action: Callable[[Keeper], T], otherwise: T) -> T:
        """What `action` returns; `otherwise` where nothing is recorded (any more)."""
        if self._keeper is None:
            return otherwise
        try:
            return action(self._keeper)
        except Exception as error:  # noqa: BLE001  the command runs on, recorded or not
            _say(f"recording has stopped ({_reason(error)}): the command runs on without moescope")
            self._keeper = None
            self._let_go()
            return otherwise

    def _let_go(self) -> None:
        """Removes the rings where no recording names them; else whoever opens it brings home what they hold."""
        if self._rings is not None and not (self._rings[0] / META_FILE).exists():
            shutil.rmtree(self._rings[1], ignore_errors=True)


class _Ticker:
    """Takes in what the ranks produce, on a thread of its own and in time that the target leaves over.

    Where cores are scarce a recorder that runs as an equal delays the ranks by as much as it works, and a delayed rank
    delays all. Rings hold what waits meanwhile; where one fills up, the caller's thread takes over.
    """

    def __init__(self, recording: _Recording, *, yields: bool) -> None:
        """yields: whether to run in left-over time alone"""
        self._recording = recording
        self._yields = yields
        self._lock = threading.Lock()
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._deaf: set[int] = set()
        """Files that nothing will ever be told by again."""
        self._thread = threading.Thread(target=self._run, name="moescope-drain", daemon=True)

    def __enter__(self) -> _Ticker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._stop, 1)
        self._thread.join()
        os.close(self._stop)

    def relieve(self) -> None:
        """Takes in at this thread's priority where a ring fills up."""
        if self._recording.call(lambda keeper: keeper.pressed(), False):
            self._tick()

    def survivors(self) -> list[int]:
        """Recorded processes that still run, between two ticks."""
        with self._lock:
            return self._recording.call(lambda keeper: keeper.survivors(), list[int]())

    def _run(self) -> None:
        if self._yields:
            try:
                os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))  # this thread's alone
            except OSError:
                pass  # a sandbox that forbids it: the recorder runs beside the target as an equal
        self._recording.call(lambda keeper: keeper.warm_up(), None)
        while self._wait(*self._recording.call(lambda keeper: keeper.next_tick(), (CALM_S, list[int]()))):
            self._tick()

    def _wait(self, timeout_s: float, wakes: list[int]) -> bool:
        """Until the time is over or one of these files is readable; False where the command has ended."""
        poll = select.poll()
        for file in {self._stop, *wakes} - self._deaf:
            poll.register(file, select.POLLIN)
        told = dict(poll.poll(timeout_s * 1e3))
        # A tree of processes that has ended is readable for good.
        self._deaf |= {file for file, events in told.items() if events & ~select.POLLIN}
        return self._stop not in told

    def _tick(self) -> None:
        with self._lock:
            self._recording.call(lambda keeper: keeper.tick(), None)


def run(options: RunOptions, on_tick: Callable[[float], None] | None = None, *, last: bool = False) -> int:
    """Runs the command under observation; its exit code, or 127 / 126 where it cannot be run.

    last: this process ends with it, and no Ctrl-C that was meant for the command takes the place of its exit code
    """
    recording = _Recording(options)
    recording.prepare()
    watched = {*FORWARDED, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, watched)
    try:
        target = Target(options.command, recording.env, watched)
        recording.call(lambda keeper: keeper.attach(target.pid), None)
        problem = target.release()
        code = None
        if problem is None:
            with _Ticker(recording, yields=options.budget != "full") as ticker:
                code = _watch(target, recording, ticker, watched, on_tick)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, watched - {signal.SIGINT})
        ended_with = code
        if ended_with is not None:
            # What the command has left is brought home, however often Ctrl-C is pressed.
            recording.call(lambda keeper: keeper.finish(ended_with), None)
            while signal.sigtimedwait({signal.SIGINT}, 0) is not None:
                pass
    finally:
        if not last:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, watched)
    if code is None:
        target.reap()
        recording.call(lambda keeper: keeper.abandon(), None)
        _say(f"cannot run {options.command[0]}: {problem}")
        return 127 if problem == os.strerror(2) else 126
    if not options.quiet:
        for text in recording.call(lambda keeper: keeper.last_words(), list[str]()):
            _say(text)
    return code


def _watch(
    target: Target,
    recording: _Recording,
    ticker: _Ticker,
    watched: set[signal.Signals],
    on_tick: Callable[[float], None] | None,
) -> int:
    """Forwards signals until the command has ended; its exit code."""
    interrupted_s: float | None = None
    told = False
    started_s = time.monotonic()
    while not target.reap():
        info = signal.sigtimedwait(watched, CALM_S if on_tick is None else TICK_S)
        if interrupted_s is not None and not told and time.monotonic() - interrupted_s >= TWICE_S:
            told = True
            _say(f"interrupted, and the command goes on; Ctrl-C twice within {TWICE_S:g} s ends it at once")
        # After a stop and a continue, Python's sigtimedwait returns a signal that is none.
        if info is None or info.si_signo not in watched:
            ticker.relieve()
            if on_tick is not None:
                on_tick(time.monotonic() - started_s)
            continue
        if info.si_signo == signal.SIGCHLD:
            continue
        now_s = time.monotonic()
        if info.si_signo == signal.SIGINT:
            if interrupted_s is not None and now_s - interrupted_s < TWICE_S:
                target.kill()
                recording.call(lambda keeper: keeper.kill_ranks(), None)
                continue
            interrupted_s = now_s
        if info.si_code != _FROM_TERMINAL:
            target.signal(info.si_signo)
    outlived_s = time.monotonic()
    while ticker.survivors() and time.monotonic() - outlived_s < GRACE_S:
        time.sleep(TICK_S)
    return target.exit_code()


def recording_folder(wanted: Path) -> tuple[Path, list[str]]:
    """The recording's folder; where nothing can be written there, one in the temporary folder, and a note."""
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        probe = wanted / ".writable"
        try:
            probe.write_bytes(bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
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
    folder = recording.resolve() / "rings"
    folder.mkdir(exist_ok=True)
    return folder, [note]


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, OSError) else repr(error)


def _say(text: str) -> None:
    sys.stderr.write(f"moescope: {text}\n")
    sys.stderr.flush()
