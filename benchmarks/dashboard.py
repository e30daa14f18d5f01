"""The dashboard: its share of a core over a growing recording, on a terminal of 220x60, at 4 and 10 frames a second.

python -m benchmarks.dashboard [--seconds N]

The run that is watched is the demo's training on two ranks, recorded at the default budget. The same dashboard over the
finished recording is the baseline: what frames cost where nothing new arrives.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

from benchmarks.report import save
from moescope.profiler.commands.demo import target_command

WIDTH, HEIGHT = 220, 60
SCREENS = {"overview": b"1", "timeline": b"2", "kernels": b"3"}
SETTLE_S = 4.0


def cpu_s(pid: int) -> float:
    """CPU time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(recording: Path, fps: int, key: bytes, seconds: float) -> tuple[float, float]:
    """Opens the dashboard on a pseudo-terminal; share of a core and bytes a second it draws."""
    pid, terminal = pty.fork()
    if pid == 0:
        for name in ("COLUMNS", "LINES", "NO_COLOR"):
            os.environ.pop(name, None)
        os.environ["TERM"] = "xterm-256color"
        os.execv(sys.executable, [sys.executable, "-m", "moescope", "top", str(recording), "--fps", str(fps)])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", HEIGHT, WIDTH, 0, 0))

    def read(until: float) -> int:
        drawn = 0
        while (left := until - time.monotonic()) > 0:
            if select.select([terminal], [], [], left)[0]:
                drawn += len(os.read(terminal, 1 << 16))
        return drawn

    try:
        read(time.monotonic() + SETTLE_S)
        os.write(terminal, key)
        read(time.monotonic() + 2 * SETTLE_S)
        before, start = cpu_s(pid), time.monotonic()
        drawn = read(start + seconds)
        return (cpu_s(pid) - before) / (time.monotonic() - start), drawn / seconds
    finally:
        os.write(terminal, b"q")
        time.sleep(0.5)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(terminal)


def measure(recording: Path, seconds: float) -> list[dict[str, float | str]]:
    """Every screen at both rates."""
    rows: list[dict[str, float | str]] = []
    for fps in (4, 10):
        for screen, key in SCREENS.items():
            share, drawn = watch(recording, fps, key, seconds)
            rows.append({"screen": screen, "fps": fps, "core_share": round(share, 4), "bytes_per_s": round(drawn)})
    return rows


def main() -> None:
    """Prints and keeps the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="how long each screen is watched")
    seconds = parser.parse_args().seconds
    with tempfile.TemporaryDirectory() as name:
        recording = Path(name) / "rec"
        command = [sys.executable, "-m", "moescope", "run", "-o", str(recording), "--"]
        run = subprocess.Popen(
            [*command, *target_command("train", 2, 100_000, "overlapped")],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            time.sleep(12)
            live = measure(recording, seconds)
        finally:
            run.send_signal(signal.SIGINT)
            run.wait()
        finished = measure(recording, seconds)
    print(f"{'screen':10} {'fps':>4} {'live':>8} {'finished':>9} {'ratio':>6} {'KB/s':>6}")
    for a, b in zip(live, finished, strict=True):
        ratio = float(a["core_share"]) / max(float(b["core_share"]), 1e-4)
        print(
            f"{a['screen']:10} {a['fps']:4} {a['core_share']:8.1%} {b['core_share']:9.1%} {ratio:6.1f}"
            f" {float(a['bytes_per_s']) / 1e3:6.1f}"
        )
    save(
        "dashboard",
        "python -m benchmarks.dashboard",
        {"terminal": f"{WIDTH}x{HEIGHT}", "goal_core_share_at_10_fps": 0.10, "live": live, "finished": finished},
    )


if __name__ == "__main__":
    main()
