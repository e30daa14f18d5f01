"""Which part of recording costs a training step what: parts are switched off by turns within one recorded run.

    python -m benchmarks.overhead_parts [--steps 2400]

Two runs differ by more than recording costs; blocks of steps of one run do not. Every block of 8 steps another part is
off in both ranks (its first step is left out): operators' windows, calls of torch.distributed, the model's own events,
all three, and the recorder besides, which stands still meanwhile and catches up in the block after. What cannot be
switched off within a run stays in all of them: the kernel's context-switch records, and wrappers that look whether they
are on. So this attributes; what it all costs beside a run without moescope `benchmarks.overhead` tells.

Blocks differ, whatever is on: each ratio of means has a standard error, from the spread of its blocks. Parts that lie
within twice that of each other are not told apart.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
from math import hypot
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from benchmarks.report import save

BLOCK = 8
WARM_UP = 16
PARTS = {
    "everything on": "",
    "without windows": "w",
    "without calls": "c",
    "without the model's events": "e",
    "none of the three": "wce",
    "none, and the recorder stands still": "wcer",
}


class Switches:
    """Switches parts of this process's moescope, and from rank 0 the recorder."""

    def __init__(self) -> None:
        self._session = _found("Session")
        self._calls = _found("Calls")
        self._off = ""

    def set(self, off: str, rank: int) -> None:
        """off: letters of the parts that are to be off"""
        from moescope.collectors import emit

        changed, self._off = set(off) ^ set(self._off), off
        if "w" in changed:
            # Not paused: calls would lose their ranges with that, and be told by callbacks, which cost more.
            windows = self._session.windows
            if "w" in off:
                windows._open = lambda **_: None
                windows.close_window()
            else:
                del windows._open
        if "c" in changed:
            self._calls._failed = "c" in off
            self._calls._usual.clear()
        if "e" in changed:
            emit._recorder = emit._NULL_RECORDER if "e" in off else self._session.recorder
        if rank == 0 and "r" in changed:
            os.kill(_recorder(), signal.SIGSTOP if "r" in off else signal.SIGCONT)


def _found(name: str) -> Any:
    return next(
        one for one in gc.get_objects() if type(one).__name__ == name and type(one).__module__.startswith("_moe")
    )


def _recorder() -> int:
    """The process above that runs `moescope run`."""
    pid = os.getppid()
    while b"moescope" not in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0"):
        pid = int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return pid


def _used() -> tuple[int, int]:
    """CPU of this thread so far, ns, and how often it has gone to sleep."""
    return time.thread_time_ns(), resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw


def target(output: Path, steps: int) -> None:
    """A rank: trains, switches, and writes by part of each step its ns, the computing thread's CPU and its sleeps."""
    from moescope.instrumented_model import observe
    from moescope.instrumented_model.config import size
    from moescope.instrumented_model.layers.model import Model
    from moescope.instrumented_model.parallel.link import DEFAULT_LINK, parse_link
    from moescope.instrumented_model.parallel.open import open_exchange
    from moescope.instrumented_model.parallel.ranks import joined, world
    from moescope.instrumented_model.training import train

    observe.SAMPLE_EVERY = 10**9  # what is counted of quantisations takes time by itself
    ranks, switches, order = world(), Switches(), list(PARTS)
    taken: dict[str, list[tuple[int, int, int]]] = {part: [] for part in PARTS}
    with joined(ranks, 120.0):
        c = size("tiny")
        exchange = open_exchange(c, ranks, parse_link(DEFAULT_LINK))
        model = Model(c, rank=ranks.rank, ranks=ranks.count, seed=0)
        part, (cpu_ns, sleeps) = order[0], _used()
        for i, step in enumerate(train.train(model, exchange, steps=steps, schedule="overlapped", seed=0)):
            if i >= WARM_UP and i % BLOCK:
                now_ns, now_sleeps = _used()
                taken[part].append((step.dur_ns, now_ns - cpu_ns, now_sleeps - sleeps))
            if (i + 1) % BLOCK == 0:
                turn, place = divmod((i + 1) // BLOCK, len(order))
                part = order[place] if turn % 2 == 0 else order[-1 - place]
                switches.set(PARTS[part], ranks.rank)
            cpu_ns, sleeps = _used()
        switches.set("", ranks.rank)
        exchange.close()
        del model
    output.with_suffix(f".{ranks.rank}").write_text(json.dumps(taken))


def main() -> None:
    """Runs, prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--target", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.target is not None:
        target(a.target, a.steps)
        return
    with tempfile.TemporaryDirectory() as name:
        ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "benchmarks.overhead_parts"]
        own = [sys.executable, "-m", "moescope", "run", "-o", f"{name}/rec", "--"]
        command = [*own, sys.executable, *ranks, "--steps", str(a.steps), "--target", f"{name}/steps"]
        subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
        meta = json.loads(Path(name, "rec/meta.json").read_text())
        taken = [json.loads(Path(name, f"steps.{rank}").read_text()) for rank in (0, 1)]
    steps = {part: [ns for ns, _, _ in taken[0][part]] for part in PARTS}
    least = list(PARTS)[-1]
    means = {part: _of_blocks(steps[part]) for part in PARTS}
    cpu = {part: _of_blocks([ns for rank in taken for _, ns, _ in rank[part]]) for part in PARTS}
    rows = [
        {
            "part": part,
            "steps": len(steps[part]),
            "median_step_ms": median(steps[part]) / 1e6,
            "mean_step_ms": means[part][0] / 1e6,
            "median_over_least": median(steps[part]) / median(steps[least]),
            "mean_over_least": means[part][0] / means[least][0],
            "standard_error": 0.0 if part == least else _error(means[part], means[least]),
            "main_thread_cpu_ms": cpu[part][0] / 1e6,
            "main_thread_cpu_error_ms": cpu[part][1] / 1e6,
            "main_thread_sleeps": mean(count for rank in taken for _, _, count in rank[part]),
        }
        for part in PARTS
    ]
    for row in rows:
        print(
            f"{row['part']:<36} median step {row['median_step_ms']:7.2f} ms ({row['median_over_least']:.4f}), mean "
            f"{row['mean_step_ms']:7.2f} ms ({row['mean_over_least']:.4f} ± {row['standard_error']:.4f}), "
            f"computing thread {row['main_thread_cpu_ms']:6.2f} ± {row['main_thread_cpu_error_ms']:.2f} ms, "
            f"asleep {row['main_thread_sleeps']:.0f} times"
        )
    lasted_s = (meta["ended_ns"] - meta["started_ns"]) / 1e9
    print(f"the recorder: {meta['sidecar_cpu_s'] / lasted_s:.2%} of a core")
    result = {"parts": rows, "recorder_share_of_a_core": meta["sidecar_cpu_s"] / lasted_s}
    save("overhead_parts", "python -m benchmarks.overhead_parts", result)


def _of_blocks(values: list[int]) -> tuple[float, float]:
    """Mean over the blocks, without the twentieth of them at either end, and its standard error."""
    one = BLOCK - 1
    blocks = sorted(mean(values[i : i + one]) for i in range(0, len(values) - one + 1, one))
    cut = len(blocks) // 20
    kept = blocks[cut : len(blocks) - cut]
    return mean(kept), stdev(kept) / len(kept) ** 0.5


def _error(value: tuple[float, float], base: tuple[float, float]) -> float:
    """Standard error of value over base; each a mean and its standard error."""
    return value[0] / base[0] * hypot(value[1] / value[0], base[1] / base[0])


if __name__ == "__main__":
    main()
