"""Real ranks for tests: processes that find each other as torchrun's would."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def start_ranks(command: Sequence[str], count: int) -> list[subprocess.Popen[str]]:
    """Python on `command` in `count` processes of one thread each; the caller ends them."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    shared = os.environ | {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": "1",
    }
    return [
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


def finish_ranks(processes: list[subprocess.Popen[str]], timeout_s: float = 150) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each, killed where they take longer."""
    try:
        outputs = [p.communicate(timeout=timeout_s) for p in processes]
    finally:
        for p in processes:
            p.kill()
    return [(p.returncode, *o) for p, o in zip(processes, outputs, strict=True)]


def run_ranks(command: Sequence[str], count: int = 2) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each of `count` ranks."""
    return finish_ranks(start_ranks(command, count))
