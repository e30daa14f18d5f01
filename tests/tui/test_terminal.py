"""The dashboard in a real terminal, over a real run: keys pressed, screen read, signals sent."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from moescope.collectors.calibrate import _machine

pytestmark = pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")

PYTHON = sys.executable
TARGET = """
import pathlib, sys, time, torch
a = torch.ones(200, 200)
print("hello from the run", flush=True)
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end and not pathlib.Path("stop").exists():
    with torch.profiler.record_function("attn(F)"):
        a @ a
    time.sleep(0.002)
sys.exit(int(sys.argv[2]))
"""


class Terminal:
    """A tmux session with one shell in it."""

    def __init__(self, folder: Path, width: int, height: int) -> None:
        self._socket = f"moescope-{uuid.uuid4().hex[:12]}"
        self.folder = folder
        size = ("-x", str(width), "-y", str(height))
        unset = "env -u NO_COLOR -u COLUMNS -u LINES"
        env = f"{unset} OMP_NUM_THREADS=1 XDG_CACHE_HOME={folder / 'cache'} PS1='$ ' TERM=xterm-256color"
        self._tmux("-f", "/dev/null", "new-session", "-d", *size, "-c", str(folder), f"{env} sh")

    def _tmux(self, *words: str) -> str:
        done = subprocess.run(["tmux", "-L", self._socket, *words], capture_output=True, text=True, timeout=30)
        return done.stdout

    def type(self, *keys: str) -> None:
        """Presses keys, by tmux's names."""
        self._tmux("send-keys", *keys)

    def screen(self) -> str:
        """What the screen shows."""
        return self._tmux("capture-pane", "-p")

    def wait(self, found: str | Callable[[str], bool], seconds: float = 60.0) -> str:
        """The screen, once it holds `found`."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            shown = self.screen()
            if found in shown if isinstance(found, str) else found(shown):
                return shown
            time.sleep(0.1)
        raise AssertionError(f"{found!r} never came; the screen was:\n{self.screen()}")

    def alternate(self) -> bool:
        """Whether a full-screen program has the screen."""
        return self._tmux("display-message", "-p", "#{alternate_on}").strip() == "1"

    def close(self) -> None:
        """Ends the session and what runs in it."""
        self._tmux("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    opened = Terminal(tmp_path, 120, 40)
    yield opened
    opened.close()


def processes(text: str) -> list[int]:
    """Processes whose command line holds `text`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace"):
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


@pytest.mark.timeout(600)
def test_the_demo_from_the_first_frame_to_the_last_line(terminal: Terminal) -> None:
    kept = terminal.folder / "cache" / "moescope" / f"peaks-{socket.gethostname()}.json"
    kept.parent.mkdir(parents=True)
    kept.write_text(json.dumps({"machine": _machine(), "peaks": {}}))  # known peaks: nothing is measured first
    terminal.type(f"{PYTHON} -m moescope demo --steps 40 -o rec; echo code=$?", "Enter")
    terminal.wait("LIVE")
    terminal.type("1")  # a key: from here on it stays, even if the machine is so slow that the run ends first
    # In the legend, in the gauges and in the table of phases: whatever loss leads the headline.
    shown = terminal.wait(lambda text: all(part in text for part in ("EXPOSED", "Matrix units", "(F)")), seconds=120)
    assert "Where" in shown
    terminal.type("2")
    shown = terminal.wait("1 cell =")
    assert "phase" in shown
    terminal.type("n")
    terminal.wait("at the cursor")
    terminal.type("3")
    terminal.wait("aten::")
    terminal.type("/")
    terminal.type("gloo", "Enter")
    terminal.wait("/ gloo")
    terminal.type("4")
    terminal.wait("Cores held")
    terminal.type("5")
    terminal.wait("all_to_all")
    terminal.type("6")
    terminal.wait("Tokens per expert")
    terminal.type("7")
    terminal.wait("Evidence")
    terminal.type("8")
    terminal.wait("Output of the run")
    terminal.type("?")
    terminal.wait("Meaning")
    terminal.type("q")
    shown = terminal.wait("code=0", seconds=120)
    assert not terminal.alternate()
    assert "moescope top rec" in shown
    assert (terminal.folder / "rec" / "csv" / "kernels.csv").stat().st_size > 1000


def test_a_run_behind_the_dashboard_keeps_its_exit_code_and_its_output(terminal: Terminal) -> None:
    (terminal.folder / "work.py").write_text(TARGET)
    terminal.type(f"{PYTHON} -m moescope run --tui -o rec -- {PYTHON} work.py 6 7; echo code=$?", "Enter")
    shown = terminal.wait("hello from the run")
    assert "Output of the run" in shown
    terminal.wait("attn(F)")
    terminal.type("q")
    shown = terminal.wait("code=7")
    assert not terminal.alternate()
    assert "hello from the run" in shown


def test_ctrl_c_interrupts_the_run_behind_the_dashboard(terminal: Terminal) -> None:
    (terminal.folder / "work.py").write_text(TARGET)
    terminal.type(f"{PYTHON} -m moescope run --tui -o rec -- {PYTHON} work.py 600 0; echo code=$?", "Enter")
    terminal.wait("attn(F)")
    terminal.type("C-c")
    terminal.wait(lambda text: "FINISHED" in text or "interrupt sent" in text)
    terminal.wait("FINISHED")
    terminal.type("q")
    terminal.wait("code=130")
    assert not processes(f"{terminal.folder}/work.py")


def test_leaving_top_leaves_the_run_alone(terminal: Terminal) -> None:
    script = terminal.folder / "work.py"
    script.write_text(TARGET)
    command = [PYTHON, "-m", "moescope", "run", "-o", "rec", "--", PYTHON, str(script), "600", "0"]
    with subprocess.Popen(command, cwd=terminal.folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as run:
        while not (terminal.folder / "rec" / "meta.json").exists():
            assert run.poll() is None
            time.sleep(0.05)
        terminal.type(f"{PYTHON} -m moescope top rec; echo code=$?", "Enter")
        terminal.wait("attn(F)")
        terminal.type("q")
        terminal.wait("code=0")
        assert run.poll() is None
        (terminal.folder / "stop").touch()
        assert run.wait(60) == 0
    terminal.type(f"clear; {PYTHON} -m moescope top rec; echo code=$?", "Enter")
    terminal.wait("FINISHED")
    terminal.type("q")
    terminal.wait("code=0")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_leaves_the_terminal_as_it_was(terminal: Terminal, number: signal.Signals) -> None:
    (terminal.folder / "work.py").write_text(TARGET)
    terminal.type(f"{PYTHON} -m moescope run -o rec -- {PYTHON} work.py 1 0", "Enter")
    terminal.wait("moescope summary rec")
    terminal.type(f"clear; {PYTHON} -m moescope top rec; echo code=$?", "Enter")
    terminal.wait("FINISHED")
    assert terminal.alternate()
    shown = [pid for pid in processes("moescope top rec") if PYTHON in Path(f"/proc/{pid}/cmdline").read_text()]
    [dashboard] = [pid for pid in shown if Path(f"/proc/{pid}/cwd").resolve() == terminal.folder.resolve()]
    os.kill(dashboard, number)
    terminal.wait(f"code={128 + number}")
    assert not terminal.alternate()


def test_without_a_terminal_it_says_what_to_do_instead(tmp_path: Path) -> None:
    (tmp_path / "rec").mkdir()
    command = [PYTHON, "-m", "moescope", "top", "rec"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "moescope summary rec" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr
