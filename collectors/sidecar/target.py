"""Starts the command: its environment, a child held back until the samplers are ready, and how it ended."""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import moescope.collectors as collectors
from moescope.collectors.native import injection_path, library_path
from moescope.collectors.sidecar.processes import descendants, kill

ITT_VARIABLE: Final = "INTEL_LIBITTNOTIFY64"
CUDA_VARIABLE: Final = "CUDA_INJECTION64_PATH"
"""What the CUDA driver loads into a process as that starts to use it."""


@dataclass(frozen=True)
class TargetSettings:
    """What the agent in the target is told; see collectors/agent/settings.py."""

    budget: str
    steps: str
    ranks: str
    collect: str
    ring_dir: Path


def environment(base: Mapping[str, str], settings: TargetSettings) -> tuple[dict[str, str], list[str]]:
    """The target's environment, and what in `base` stands in the way of recording."""
    env = dict(base)
    notes: list[str] = []
    folder = Path(collectors.__file__).resolve().parent
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(folder / "inject"), base.get("PYTHONPATH", "")]))
    env["MOESCOPE_AGENT"] = str(folder / "agent")
    env["MOESCOPE_RING_DIR"] = str(settings.ring_dir)
    env["MOESCOPE_BUDGET"] = settings.budget
    env["MOESCOPE_STEPS"] = settings.steps
    env["MOESCOPE_RANKS"] = settings.ranks
    env["MOESCOPE_COLLECT"] = settings.collect
    library = library_path()
    if library is None:
        notes.append("moescope was installed without its C library (no compiler): operators come from Kineto windows")
    else:
        env["MOESCOPE_LIBRARY"] = str(library)
        other = base.get(ITT_VARIABLE)
        if other and other != str(library):
            notes.append(f"{ITT_VARIABLE} is already set ({other}): it stays, operators come from Kineto windows")
        else:
            env[ITT_VARIABLE] = str(library)
        _inject_into_cuda(env, notes)
    # Kineto writes a line to stderr for each window otherwise; the target's own choice stands.
    env.setdefault("KINETO_LOG_LEVEL", "6")
    return env, notes


def _inject_into_cuda(env: dict[str, str], notes: list[str]) -> None:
    """Has recording begin with the first kernel; without it the agent begins up to half a second later."""
    injection = injection_path()
    other = env.get(CUDA_VARIABLE)
    if other and other != str(injection):
        notes.append(f"{CUDA_VARIABLE} is already set ({other}): it stays, the first kernels may not be recorded")
    elif injection is not None:
        env[CUDA_VARIABLE] = str(injection)


class Target:
    """The command as a child process in the same process group and session: the terminal stays its own."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], restore: set[signal.Signals]) -> None:
        """Forks; the child waits for `release`. restore: signals to unblock in the child."""
        go_read, self._go = os.pipe()
        self._failed, failed_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._child(command, env, restore, go_read, failed_write)
        os.close(go_read)
        os.close(failed_write)
        self.pid = pid
        self.status: int | None = None

    def _child(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        restore: set[signal.Signals],
        go: int,
        failed: int,
    ) -> None:
        code = 127
        try:
            os.close(self._go)
            os.set_inheritable(failed, False)
            for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGXFSZ):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, restore)
            if os.read(go, 1):
                os.execvpe(command[0], list(command), dict(env))
        except OSError as error:
            code = 127 if error.errno == errno.ENOENT else 126
            os.write(failed, str(error.errno).encode())
        finally:
            os._exit(code)

    def release(self) -> str | None:
        """Lets the child run the command; the reason where it cannot be run."""
        os.write(self._go, b"g")
        os.close(self._go)
        reason = os.read(self._failed, 16)  # closed by a successful exec
        os.close(self._failed)
        return os.strerror(int(reason)) if reason else None

    def reap(self) -> bool:
        """Whether the command has ended; never waits."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def exit_code(self) -> int:
        """The command's exit code; 128 + n for a death by signal n, as a shell has it."""
        assert self.status is not None
        code = os.waitstatus_to_exitcode(self.status)
        return code if code >= 0 else 128 - code

    def kill(self) -> None:
        """Ends the command and whatever it has started, at once."""
        kill([self.pid, *descendants(self.pid)])

    def signal(self, number: int) -> None:
        """Passes a signal on."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass  # it has just ended
