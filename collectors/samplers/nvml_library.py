"""NVML through nvidia-ml-py: loaded where the driver's library is, its refusals told with what to do.

Not yet run on a GPU: held against a library of the same entry points in the tests.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from moescope.collectors.samplers.base import NothingThere, SamplerUnavailable

LIBRARY: Final = "libnvidia-ml.so.1"

NOT_SUPPORTED, NO_PERMISSION, LIB_MISMATCH, IN_USE = 3, 4, 18, 19
_REMEDIES: Final = {
    2: "this driver does not take the question: update it",
    NO_PERMISSION: "no permission: run as root, or have the administrator load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0",
    9: "the driver is not loaded: `nvidia-smi` tells more; a container must be started with its GPUs (--gpus all)",
    12: f"{LIBRARY} is not there: install NVIDIA's driver; a container needs NVIDIA_DRIVER_CAPABILITIES=utility",
    13: "this driver does not have it: update the driver",
    15: "the GPU is lost: `nvidia-smi` tells more, and the machine must be restarted",
    16: "the GPU must be reset before it tells anything: `nvidia-smi` tells more",
    LIB_MISMATCH: "the driver was updated while another one is loaded: restart the machine",
    IN_USE: "another profiler holds the counters (nsys, ncu, DCGM): end it; DCGM lets go with "
    "`dcgmi profiling --pause`",
    23: "the counters are taken, as another profiler takes them (nsys, ncu, DCGM): end it",
}


class Nvml:
    """NVML, initialised. What a device does not tell is None; each reason is kept once, in `reasons`."""

    def __init__(self) -> None:
        """Raises NothingThere where this machine has no NVIDIA GPU, SamplerUnavailable where it does not tell."""
        self.api = _loaded()
        self.reasons: dict[str, str] = {}
        try:
            self.api.nvmlInit()
        except self.api.NVMLError as error:
            raise SamplerUnavailable(f"NVML does not start: {self.remedy(error)}") from error

    def close(self) -> None:
        """Lets go of the library."""
        with suppress(self.api.NVMLError):
            self.api.nvmlShutdown()

    def ask(self, what: str, question: str, *arguments: Any) -> Any:
        """What `pynvml.<question>(*arguments)` returns; None, and the reason in `reasons`, where it is refused."""
        return self.attempt(what, lambda: getattr(self.api, question)(*arguments))

    def attempt(self, what: str, action: Callable[[], Any]) -> Any:
        """What `action` returns; None, and the reason under `what`, where NVML refuses."""
        try:
            return action()
        except self.api.NVMLError as error:
            self.refused(what, error)
        except AttributeError as error:
            self.reasons.setdefault(what, f"this nvidia-ml-py does not have it ({error}): update it")
        return None

    def refused(self, what: str, error: Any) -> None:
        """Keeps why `what` is not told. Only what is unsupported by design is not worth a word."""
        if int(getattr(error, "value", 0)) != NOT_SUPPORTED:
            self.reasons.setdefault(what, self.remedy(error))

    def failed(self, what: str, code: int) -> None:
        """The same for a code that stands in a struct."""
        if code not in (0, NOT_SUPPORTED):
            self.refused(what, self.api.NVMLError(code))

    def remedy(self, error: Any) -> str:
        """What NVML says, and what to do about it."""
        code = int(getattr(error, "value", 0))
        return _REMEDIES.get(code) or f"NVML says {error}"


def _loaded() -> Any:
    """The module pynvml. The library is looked for first: where there is none, nothing is imported."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError as error:
        if Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidiactl").exists():
            raise SamplerUnavailable(_REMEDIES[12]) from error
        raise NothingThere("no NVIDIA driver on this machine") from error
    try:
        import pynvml
    except ImportError as error:
        text = "a driver is here, but not nvidia-ml-py: pip install 'moescope[gpu]'"
        raise SamplerUnavailable(text) from error
    return pynvml
