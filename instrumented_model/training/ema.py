"""An average of the weights in the CPU's memory, kept up to date while the next step runs (section 3.2.3).

After each step a snapshot goes into one of two buffers: on the CPU a thread copies it, on a GPU a side stream does,
into pinned memory. The thread averages from the buffer. The snapshot must be whole before the weights change again,
which is a whole forward and backward later; nothing else waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from moescope.collectors import emit


@torch.no_grad()
def average(averages: list[torch.Tensor], weights: list[torch.Tensor], decay: float) -> None:
    """average = decay * average + (1 - decay) * weights, in place (section 3.2.3).

    averages, weights: [tensors] float32, shape by shape alike; decay: 0 to 1
    """
    torch._foreach_mul_(averages, decay)
    torch._foreach_add_(averages, weights, alpha=1 - decay)


class Ema:
    """The averages of `weights`, bit-equal to calling `average` on the spot after each step.

        ema.before_update()
        optimizer.step()
        ema.after_update()

    weights: float32, all on one device; the averages, float32 on the CPU, begin as their values. Beside the averages
    two snapshots are held.
    """

    def __init__(self, weights: Sequence[torch.Tensor], decay: float) -> None:
        self.decay = decay
        self.waited_ns = 0
        """What the training thread has waited for all of it, in total."""
        self._weights = [w.detach() for w in weights]
        self._averages = [w.to("cpu", copy=True) for w in self._weights]
        on_gpu = bool(self._weights) and self._weights[0].is_cuda
        self._copier: _ThreadCopier | _StreamCopier = _StreamCopier() if on_gpu else _ThreadCopier()
        self._buffers = deque(
            [torch.empty_like(w, device="cpu", pin_memory=on_gpu) for w in self._weights] for _ in range(2)
        )
        self._jobs: deque[Future[None]] = deque()
        self._thread = ThreadPoolExecutor(1, "moescope-ema", initializer=_one_thread)

    def before_update(self) -> None:
        """Call before the weights are changed: waits until the last snapshot, begun a step ago, is whole."""
        start_ns = emit.clock_ns()
        self._copier.hold()
        self.waited_ns += emit.clock_ns() - start_ns

    def after_update(self) -> None:
        """Begin to average the weights as they are now. Returns at once, unless the averages are two steps behind.

        Raises what went wrong with an earlier one.
        """
        start_ns = emit.clock_ns()
        if len(self._jobs) == len(self._buffers):
            self._jobs.popleft().result()
        buffer = self._buffers[0]
        self._buffers.rotate(1)
        take = self._copier.begin(buffer, self._weights)
        self.waited_ns += emit.clock_ns() - start_ns

        def job() -> None:
            with emit.phase("ema"):
                take()
                average(self._averages, buffer, self.decay)

        self._jobs.append(self._thread.submit(job))

    def averages(self) -> list[torch.Tensor]:
        """The averages up to the last `after_update`, waited for; the tensors themselves, not copies."""
        while self._jobs:
            self._jobs.popleft().result()
        return self._averages

    @torch.no_grad()
    def restore(self, averages: Sequence[torch.Tensor]) -> None:
        """averages: [tensors] of the same weights, shape by shape. Raises ValueError where there are more or fewer."""
        for to, source in zip(self.averages(), averages, strict=True):
            to.copy_(source)

    def close(self) -> None:
        """Finish what was begun and end the thread."""
        self._thread.shutdown(wait=True)


def _one_thread() -> None:
    torch.set_num_threads(1)


class _ThreadCopier:
    """Weights on the CPU: the averaging thread copies them itself."""

    def __init__(self) -> None:
        self._copied: Future[None] | None = None

    def begin(self, buffer: list[torch.Tensor], weights: list[torch.Tensor]) -> Callable[[], None]:
        copied = self._copied = Future()

        @torch.no_grad()
        def take() -> None:
            try:
                torch._foreach_copy_(buffer, weights)
            except BaseException as error:
                copied.set_exception(error)
                raise
            copied.set_result(None)

        return take

    def hold(self) -> None:
        if self._copied is not None:
            self._copied.result()


class _StreamCopier:
    """Weights on a GPU: a side stream copies them into pinned memory, in the order of the program.

    Not yet run on a GPU.
    """

    def __init__(self) -> None:
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._copied: torch.cuda.Event | None = None

    @torch.no_grad()
    def begin(self, buffer: list[torch.Tensor], weights: list[torch.Tensor]) -> Callable[[], None]:
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            for to, source in zip(buffer, weights, strict=True):
                to.copy_(source, non_blocking=True)
            copied = self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            copied.record()
        return copied.synchronize

    def hold(self) -> None:
        """The training stream waits for the copy, the host does not."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)
