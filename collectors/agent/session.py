"""One recorded process: its ring, who it is, and the collectors that run in it."""

from __future__ import annotations

import atexit
import os
import platform
import socket
import sys
import time
from collections.abc import Callable
from multiprocessing.util import Finalize, register_after_fork
from types import ModuleType
from typing import Any

from . import comm, hooks
from .file_ring import FileRing
from .flight import FlightReader
from .process import is_spawned
from .recorder import Recorder
from .ring import NativeRing, Ring
from .settings import Settings
from .windows import WindowKeeper


class Session:
    """Opens the ring when made; `start` puts the collectors in place: one that fails leaves the rest alone."""

    def __init__(self, settings: Settings, torch: ModuleType) -> None:
        self.settings = settings
        self.torch = torch
        self._forked = False
        self._calls: comm.Calls | None = None
        self._flight: FlightReader | None = None
        self._open()
        os.register_at_fork(before=self._before_fork, after_in_child=self._in_child)
        register_after_fork(self, Session._in_worker)

    def _open(self) -> None:
        self.ring, note = _open_ring(self.settings)
        self.recorder = Recorder(self.ring)
        self.facts: dict[str, Any] = {
            "pid": os.getpid(),
            "ppid": os.getppid(),
            "host": socket.gethostname(),
            "argv": sys.argv[:8],
            "python": platform.python_version(),
            "torch": str(getattr(self.torch, "__version__", "")),
            "start_ns": time.monotonic_ns(),
            "ring": self.ring.kind,
            "source": "",
            "role": "worker" if self._forked or is_spawned() else "main",
        }
        for key, variable in (("rank", "RANK"), ("local_rank", "LOCAL_RANK"), ("world_size", "WORLD_SIZE")):
            value = os.environ.get(variable, "")
            if value.isdigit() and self.facts["role"] == "main":
                self.facts[key] = int(value)
        if note:
            self.recorder.log("warning", "ring", note)
        self.tell()

    def tell(self, **facts: Any) -> None:
        """Adds what has become known of this process to its identity."""
        self.facts.update(facts)
        self.ring.identity(self.facts)

    def start(self) -> None:
        """Starts what was asked for; a collector that fails is logged and left out."""
        wanted = self.settings.collect
        rank = self.facts.get("rank")
        if self.settings.ranks is not None and rank is not None and rank not in self.settings.ranks:
            self.recorder.log("info", "agent", f"rank {rank} is not among the ranks asked for (--ranks)")
            return
        self.windows = WindowKeeper(self)
        if "communication" in wanted:
            self._guarded("communication", self._watch_calls)
        if "phases" in wanted:
            self._guarded("phases", lambda: hooks.install_phases(self))
        self._guarded("phases", lambda: hooks.install_steps(self))
        if "kernels" in wanted:
            self._guarded("kernels", lambda: hooks.install_profiler_guard(self))
            self._guarded("kernels", lambda: hooks.install_backward(self))
            self._guarded("kernels", self.windows.start)
        atexit.register(self._at_exit)

    def _watch_calls(self) -> None:
        calls = comm.install(self)
        if calls is None or self.ring.kind != "ring":
            return  # without the library no execution range comes
        try:
            self._flight = FlightReader(self, calls)
        except (AttributeError, ValueError) as error:
            text = f"calls that C++ issues have no group: torch's flight recorder cannot be read ({error})"
            self.recorder.log("info", "communication", text)
            return
        self._calls = calls
        self._flight.start()

    def _guarded(self, collector: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001  fail open: the target goes on without this collector
            self.recorder.log("error", collector, f"not collecting: {error!r}")

    def learn_rank(self, rank: int, world_size: int) -> None:
        """What `init_process_group` said, for processes without RANK in their environment."""
        if self.facts.get("rank") != rank or self.facts.get("world_size") != world_size:
            self.tell(rank=rank, world_size=world_size, role="main")

    def _before_fork(self) -> None:
        windows = getattr(self, "windows", None)
        if windows is not None:
            windows.leave()

    def _in_child(self) -> None:
        """A forked child is recorded in a ring of its own; DataLoader workers sort themselves out in `windows`."""
        self._forked = True
        try:
            from . import recorder_changed

            self._open()
            recorder_changed(self.recorder)
            if hasattr(self, "windows"):
                self.windows = WindowKeeper(self)
                if "kernels" in self.settings.collect:
                    self.windows.start()
            if self._calls is not None:
                self._follow_calls_in_child(self._calls)
        except Exception as error:  # noqa: BLE001  fail open
            sys.stderr.write(f"moescope: forked process {os.getpid()} is not recorded: {error!r}\n")

    def _follow_calls_in_child(self, calls: comm.Calls) -> None:
        """Where the parent is in groups already, what torch remembers is the parent's: the child feeds it with data."""
        self._flight = None
        self.ring.follow_calls(0)
        if not self.torch.distributed.is_initialized():
            self._flight = FlightReader(self, calls)
            self._flight.start()

    def _in_worker(self) -> None:
        """A process that multiprocessing has forked ends without `atexit`."""
        Finalize(None, self._at_exit, exitpriority=0)

    def _at_exit(self) -> None:
        if hasattr(self, "windows"):
            self.windows.stop()
        if self._flight is not None:
            self._flight.stop()
        self.ring.close()


def _open_ring(settings: Settings) -> tuple[Ring, str]:
    """The best way out there is, and what to say where it is not the first choice."""
    base = os.path.join(settings.ring_dir, f"{os.getpid()}-{time.monotonic_ns()}")
    if settings.library:
        try:
            return NativeRing(settings.library, base + ".ring", settings.ring_chunks), ""
        except OSError as error:
            reason = f"the C library's ring cannot be used ({error}); events go to a file, operators come from Kineto"
    else:
        reason = "moescope was installed without its C library; events go to a file, operators come from Kineto"
    return FileRing(base + ".events"), reason
