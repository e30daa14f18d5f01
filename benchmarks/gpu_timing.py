"""Times of work on a device, by its own events; in a rehearsal without one, the host's clock. Not yet run on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from statistics import median
from typing import Any

import torch


class Bench:
    """Where the sections of a check run.

    device: the GPU, or the CPU for a rehearsal under Triton's interpreter, whose figures mean nothing
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.rehearsal = device, device.type == "cpu"
        self.generator = torch.Generator(device).manual_seed(0)

    def size(self, full: int, rehearsed: int) -> int:
        """A size of the real shapes, or a small one."""
        return rehearsed if self.rehearsal else full

    def random(self, *shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        """Normal numbers, which a product's power draw, and so its clock, depends on."""
        return torch.randn(*shape, generator=self.generator, device=self.device).to(dtype)

    def e4m3(self, *shape: int) -> torch.Tensor:
        """Values as quantising leaves them."""
        return self.random(*shape, dtype=torch.float32).mul_(100).clamp_(-448, 448).to(torch.float8_e4m3fn)

    def scales(self, *shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=self.generator, device=self.device) * 0.01 + 0.005

    def stream(self) -> AbstractContextManager[Any]:
        """Work inside runs beside that outside."""
        return nullcontext() if self.rehearsal else torch.cuda.stream(torch.cuda.Stream(self.device))

    def wait(self) -> None:
        if not self.rehearsal:
            torch.cuda.synchronize(self.device)

    def seconds(self, *works: Callable[[], Any], times: int = 20) -> list[float]:
        """Median time of each, taken in turns, after a few that are not counted."""
        times = 1 if self.rehearsal else times
        for _ in range(0 if self.rehearsal else 3):
            for work in works:
                work()
        taken: list[list[float]] = [[] for _ in works]
        for _ in range(times):
            for into, work in zip(taken, works, strict=True):
                into.append(self._once(work))
        return [median(times_of_one) for times_of_one in taken]

    def _once(self, work: Callable[[], Any]) -> float:
        if self.rehearsal:
            since = time.perf_counter()
            work()
            return time.perf_counter() - since
        before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        before.record()
        work()
        after.record()
        after.synchronize()
        return float(before.elapsed_time(after)) / 1e3

    def apart(self, work: Callable[[], Any], plain: Callable[[], Any], times: int = 40) -> float:
        """How much longer `work` takes than `plain`, as a share of it: the median of pairs."""
        pairs: Sequence[tuple[float, float]] = [
            (self._once(work), self._once(plain)) for _ in range(1 if self.rehearsal else times)
        ]
        return median(a / b - 1 for a, b in pairs)
