"""Real ranks for tests: processes that find each other as torchrun's would."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODEL = "moescope.instrumented_model.__main__"


def _meeting_point(count: int) -> dict[str, str]:
    """The environment that `count` ranks share, as torchrun sets it."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    return {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(count), "OMP_NUM_THREADS": "1"}


def spawned_ranks(command: Sequence[str], count: int = 2, timeout_s: float = 150) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each of `count` ranks that start as interpreters of their own: a recorder only
    sees such. Killed where they take longer.
    """
    shared = os.environ | _meeting_point(count)
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=shared | {"RANK": str(r)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for r in range(count)
    ]
    try:
        outputs = [p.communicate(timeout=timeout_s) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *o) for p, o in zip(processes, outputs, strict=True)]


class ForkedRank:
    """A rank that runs a module as a program in a process of its own, forked from one that has imported the model:
    importing it anew in every rank would take longer than most tests do. What it prints must fit into a pipe, 64 KiB,
    where nobody reads before it ends.
    """

    def __init__(self, module: str, arguments: Sequence[str], environment: dict[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload([MODEL])
        out, its_out = context.Pipe(duplex=False)
        err, its_err = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_run_forked, args=(module, list(arguments), environment, its_out, its_err)
        )
        self.process.start()
        its_out.close()
        its_err.close()
        self._out, self._err = (os.fdopen(os.dup(end.fileno())) for end in (out, err))

    def read_until(self, beginning: str) -> None:
        """Read what it prints up to a line that begins so. Raises AssertionError where it ends before."""
        for line in self._out:
            if line.startswith(beginning):
                return
        raise AssertionError(self._err.read())

    def signal(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def finish(self, timeout_s: float = 60) -> tuple[int | None, str, str]:
        """Exit code, rest of stdout, stderr; None, and it is killed, where it takes longer."""
        self.process.join(timeout_s)
        code = self.process.exitcode
        self.process.kill()
        self.process.join()
        with self._out, self._err:
            return code, self._out.read(), self._err.read()


def fork_ranks(arguments: Sequence[str], count: int, module: str = MODEL) -> list[ForkedRank]:
    """`python -m MODULE ARGUMENTS…` on `count` ranks; the caller finishes them all."""
    shared = _meeting_point(count)
    return [ForkedRank(module, arguments, shared | {"RANK": str(r)}) for r in range(count)]


def run_ranks(
    arguments: Sequence[str], count: int = 2, module: str = MODEL, timeout_s: float = 150
) -> list[tuple[int | None, str, str]]:
    """Exit code, stdout and stderr of each of `count` ranks; None for the code of one that was killed as it took
    longer."""
    ranks = fork_ranks(arguments, count, module)
    return [rank.finish(timeout_s) for rank in ranks]


def _run_forked(
    module: str, arguments: list[str], environment: dict[str, str], out: Connection, err: Connection
) -> None:
    os.environ.update(environment)
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.argv[1:] = arguments
    # As a program, however often the process that this one was forked from has imported it.
    sys.modules.pop(module, None)
    runpy.run_module(module, run_name="__main__", alter_sys=True)
