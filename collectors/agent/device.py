"""Records what the GPU does while CUDA is in use: CUPTI all the time, else PyTorch's profiler in windows.

Once CUDA has started, kernels are what happens on the GPU; operators of the host are no longer recorded, so that they
cost nothing. Not yet run on a GPU.
"""

from __future__ import annotations

import os
import threading
import time
from typing import TYPE_CHECKING, Any

from .cupti import Cupti, candidates
from .ring import WINDOW

if TYPE_CHECKING:
    from .session import Session

NAME = "cupti"
"""Source of these windows and kernels in the recording."""

AWAITED_S = 10.0
"""How long a process that can use CUDA is given to start it, before the host's operators are recorded instead."""

_TOLD_AT_MOST = 5


class DeviceKeeper:
    """One a process. Methods may be called from any thread."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._lock = threading.RLock()
        self._cupti: Cupti | None = None
        self._problem = ""
        self._used = False
        self._told_ns = 0
        """End of the last window."""
        self._aside = False
        self._returns = 0
        self._told: dict[str, int] = {}
        self._facts: dict[str, Any] = {}
        self._until_ns = time.monotonic_ns() + int(AWAITED_S * 1e9)
        settings = session.settings
        if session.ring.kind != "ring" or not settings.library:
            self._problem = "moescope's C library is missing"
            return
        try:
            self._cupti = Cupti(settings.library)
        except (OSError, AttributeError) as error:
            self._problem = f"moescope's C library was built without it ({error})"
            return
        # With --steps the windows open and close with the steps asked for.
        self._cupti.allow(candidates(session.torch), at_once=settings.steps is None)

    def used(self) -> bool:
        """Whether CUDA has started in this process."""
        if not self._used:
            cuda = getattr(self._session.torch, "cuda", None)
            recording = self._cupti is not None and self._cupti.facts().since_ns != 0
            self._used = recording or (cuda is not None and bool(cuda.is_initialized()))
        return self._used

    def records(self) -> bool:
        """Whether CUPTI can be used, as far as is known."""
        return not self._problem

    def awaited(self) -> bool:
        """Whether CUDA is likely to start soon: operators of the host are not recorded meanwhile."""
        return time.monotonic_ns() < self._until_ns and _has_gpu(self._session.torch)

    def turn(self) -> None:
        """Called a few times a second while CUDA is in use: begins, and tells of the time that has been recorded."""
        with self._lock:
            if self._cupti is None or self._aside or self._problem:
                return
            if not self._begin():
                return
            now = time.monotonic_ns()
            self._window(now)
            self._tell()

    def at_step(self, *, wanted: bool) -> None:
        """Recording goes on or off with a step, where steps were asked for."""
        with self._lock:
            if wanted:
                self.turn()
            else:
                self.stop()

    def step_aside(self) -> None:
        """The target's own profiler is about to start: CUPTI calls back one of us only."""
        with self._lock:
            if self._aside or self._cupti is None or not self.used():
                return
            self._aside = True
            self.stop()

    def come_back(self) -> None:
        """The target's profiler has ended: the callbacks are registered anew."""
        with self._lock:
            if not self._aside:
                return
            self._aside = False
            steps = self._session.settings.steps
            number = self._session.recorder.step_number
            if steps is not None and not steps[0] <= number <= steps[1]:
                return
            if self._cupti is not None and not self._problem and self._begin() and self._returns < _TOLD_AT_MOST:
                self._returns += 1
                self._log("info", "the target's own profiler has ended: kernels come from CUPTI again")

    def stop(self) -> None:
        """Everything that was recorded is written, and nothing more."""
        with self._lock:
            if self._cupti is None or not self._cupti.facts().since_ns:
                return
            self._window(time.monotonic_ns())
            self._cupti.end()
            self._tell()
            self._told_ns = 0

    def _begin(self) -> bool:
        assert self._cupti is not None
        if self._cupti.facts().since_ns:
            self._first()
            return True
        self._problem = self._cupti.begin()
        if self._problem:
            self._log(
                "warning", f"CUPTI cannot be used ({self._problem}): kernels come from PyTorch's profiler in windows"
            )
            return False
        self._first()
        return True

    def _first(self) -> None:
        if self._session.facts.get("source") == NAME:
            return
        assert self._cupti is not None
        facts = self._cupti.facts()
        text = f"kernels of the GPU come from CUPTI ({self._cupti.library()}, API {facts.version}), all the time"
        if facts.whole_apis:
            text += "; this CUPTI records all CUDA calls, not launches alone: CUDA 12.6 or later costs less"
        self._log("info", text)
        self._session.tell(source=NAME)

    def _window(self, now_ns: int) -> None:
        """Tells of the time since the last window, all of which was recorded."""
        assert self._cupti is not None
        begun = max(self._cupti.facts().since_ns, self._told_ns)
        if begun and now_ns > begun:
            self._session.ring.record(WINDOW, NAME, begun, now_ns - begun)
            self._told_ns = now_ns

    def _tell(self) -> None:
        """What is known of clocks and devices, where it is new; what was lost, in the log."""
        assert self._cupti is not None
        facts = self._cupti.facts()
        told = {"device_clock_error_ns": facts.clock_error_ns}
        known = self._facts.get("device_properties", {})
        devices = [f"cuda:{number}" for number in facts.devices]
        more = {name: _properties(self._session.torch, name) for name in devices if name not in known}
        if more or told["device_clock_error_ns"] != self._facts.get("device_clock_error_ns"):
            self._facts = {**told, "device_properties": {**known, **more}}
            self._session.tell(**self._facts)
        for name, count, text in (
            ("lost", facts.lost, "records of the GPU's work found no room, in CUPTI's buffers or in the ring"),
            (
                "untimed",
                facts.untimed,
                "kernels, copies or synchronisations had no times or had not ended, and are left out",
            ),
        ):
            if count > self._told.get(name, 0):
                self._log("warning", f"{count - self._told.get(name, 0)} {text}")
                self._told[name] = count

    def _log(self, level: str, message: str) -> None:
        self._session.recorder.log(level, "kernels", message)


def _has_gpu(torch: Any) -> bool:
    """Whether this process could use CUDA, told without starting it."""
    if not getattr(getattr(torch, "version", None), "cuda", None):
        return False
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return os.path.exists("/dev/nvidiactl") or os.path.exists("/dev/dxg")


def _properties(torch: Any, device: str) -> dict[str, Any]:
    """What tells a device's peaks and how many blocks a unit holds, by the names of PyTorch's traces."""
    try:
        if not torch.cuda.is_initialized():
            return {}
        told = torch.cuda.get_device_properties(device)
    except Exception:  # noqa: BLE001  fail open: shares of a peak are then not known
        return {}
    names = {
        "name": "name",
        "multi_processor_count": "numSms",
        "major": "computeMajor",
        "minor": "computeMinor",
        "max_threads_per_multi_processor": "maxThreadsPerMultiprocessor",
        "regs_per_multiprocessor": "regsPerMultiprocessor",
        "shared_memory_per_multiprocessor": "sharedMemPerMultiprocessor",
        "warp_size": "warpSize",
        "total_memory": "totalGlobalMem",
    }
    return {theirs: getattr(told, ours) for ours, theirs in names.items() if hasattr(told, ours)}
