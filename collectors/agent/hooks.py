"""Where the target names its own ranges and steps: `record_function`, NVTX, optimizers; and its own profiler."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from .ring import STEP

if TYPE_CHECKING:
    from .session import Session


STEP_RANGE = "ProfilerStep#"


def install_phases(session: Session) -> None:
    """`record_function` and NVTX ranges become phases, inside windows and outside."""
    record_function = session.torch.autograd.profiler.record_function
    enter, leave = record_function.__enter__, record_function.__exit__

    def begin(name: str) -> int:
        # A profiler's schedule names each step by its number.
        return 0 if name.startswith(STEP_RANGE) else session.ring.phase_begin(name, 0)

    def __enter__(self: Any) -> Any:
        self._moescope_phase = begin(self.name)
        return enter(self)

    def __exit__(self: Any, *exc: Any) -> Any:
        try:
            return leave(self, *exc)
        finally:
            session.ring.phase_end(getattr(self, "_moescope_phase", 0))

    record_function.__enter__, record_function.__exit__ = __enter__, __exit__

    nvtx = session.torch.cuda.nvtx
    push, pop = nvtx.range_push, nvtx.range_pop
    open_ranges: list[int] = []

    def range_push(msg: str) -> Any:
        result = push(msg)
        open_ranges.append(begin(str(msg)))
        return result

    def range_pop() -> Any:
        if open_ranges:
            session.ring.phase_end(open_ranges.pop())
        return pop()

    nvtx.range_push, nvtx.range_pop = range_push, range_pop


def install_steps(session: Session) -> None:
    """Where nothing else names steps, one ends with each step of the process's first optimizer."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    first: list[int] = []
    last_ns = [time.monotonic_ns()]

    def after_step(optimizer: Any, *_: Any) -> None:
        if not first:
            first.append(id(optimizer))
        recorder = session.recorder
        if first[0] != id(optimizer) or recorder.steps_from == "emit":
            return
        now = time.monotonic_ns()
        number = recorder.step_number
        if number < 0:
            recorder.set_step(0, "optimizer")
            number = 0
        session.ring.record(STEP, "optimizer", last_ns[0], now - last_ns[0])
        last_ns[0] = now
        recorder.set_step(number + 1, "optimizer")

    register_optimizer_step_post_hook(after_step)


BACKWARD = "backward"
"""Phase of a backward pass that is in none of the model's."""


def install_backward(session: Session) -> None:
    """Windows cannot open or close inside a backward pass: where one ends, what waits for that is done.

    A pass is a phase where nobody has named one around it. A model that names its steps names its phases, too: what it
    leaves out of them stays out.
    """
    named = "phases" in session.settings.collect
    autograd = session.torch.autograd
    original = getattr(autograd, "_engine_run_backward", None)
    if original is None:
        return  # another version of torch: the timer asks again and again

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        ring, phase = session.ring, 0
        if named and session.recorder.steps_from != "emit" and not ring.current_phase():
            phase = ring.phase_begin(BACKWARD, 0)
        try:
            return original(*args, **kwargs)
        finally:
            if phase:
                ring.phase_end(phase)
            session.windows.settle_owed()

    autograd._engine_run_backward = run_backward


def install_profiler_guard(session: Session) -> None:
    """While the target runs a profiler of its own, ours is closed: both would count the same events wrongly."""
    module = session.torch.autograd.profiler
    told: list[bool] = []

    def enabling(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            session.windows.pause()
            if not told:
                told.append(True)
                session.recorder.log(
                    "warning",
                    "kernels",
                    "the target runs torch.profiler itself: operators and kernels are not recorded meanwhile",
                )
            return original(*args, **kwargs)

        return call

    def disabling(original: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return original(*args, **kwargs)
            finally:
                session.windows.resume()

        return call

    module._enable_profiler = enabling(module._enable_profiler)
    module._disable_profiler = disabling(module._disable_profiler)
    legacy: Any = getattr(session.torch.autograd, "profiler_legacy", None)
    if hasattr(legacy, "_enable_profiler_legacy") and hasattr(legacy, "_disable_profiler_legacy"):
        legacy._enable_profiler_legacy = enabling(legacy._enable_profiler_legacy)
        legacy._disable_profiler_legacy = disabling(legacy._disable_profiler_legacy)
    prepare = module._prepare_profiler

    def preparing(*args: Any, **kwargs: Any) -> Any:
        session.windows.prepare_pause()
        return prepare(*args, **kwargs)

    module._prepare_profiler = preparing
