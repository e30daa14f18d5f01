"""What is loaded into the target process: standard library only, fail-open.

`install` runs at interpreter start and costs a finder on `sys.meta_path`. When the process imports torch, `start` opens
the ring and puts the collectors in place. A collector that breaks is switched off and says so in the log; the run goes
on.
"""

from __future__ import annotations

import os
import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from .settings import Settings

recorder: Any = None
"""The `Recorder` of this process (see collectors/emit.py), None until torch is imported."""

_LAUNCHERS = ("torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate", "deepspeed")


class _TorchFinder:
    """Notices `import torch`, wraps its loader's `exec_module`, and takes itself away."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name != "torch":
            return None
        sys.meta_path.remove(self)
        from importlib.util import find_spec

        spec = find_spec("torch")
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            start(module)

        loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def install() -> None:
    """Called once at interpreter start."""
    if os.environ.get("MOESCOPE_RING_DIR") and not _is_launcher():
        sys.meta_path.insert(0, _TorchFinder())


def _is_launcher() -> bool:
    """Whether this process only starts ranks: it imports torch too, and is no rank."""
    argv = list(getattr(sys, "orig_argv", []))[1:4]
    return any(word == name or word.endswith("/" + name) for word in argv for name in _LAUNCHERS)


def start(torch: ModuleType) -> None:
    """Opens the recorder and starts the collectors; never raises."""
    try:
        from .session import Session

        session = Session(Settings.from_environment(os.environ), torch)
        recorder_changed(session.recorder)
        session.start()
    except Exception as error:  # noqa: BLE001  fail open: the target must not notice
        recorder_changed(None)
        sys.stderr.write(f"moescope: process {os.getpid()} is not recorded: {error!r}\n")


def recorder_changed(new: Any) -> None:
    """The process has a recorder now, or none any more; a forked child one of its own."""
    global recorder
    recorder = new
    look_again = getattr(sys.modules.get("moescope.collectors.emit"), "look_again", None)
    if look_again is not None:
        look_again()
