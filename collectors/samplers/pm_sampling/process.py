"""Samples all GPUs' counters, and says so on standard output: a line of JSON for what it samples, then one a reading.

python -m moescope.collectors.samplers.pm_sampling.process PERIOD_NS [--probe]

With --probe it only says what it would sample, and takes hold of nothing. A process of its own, as CUPTI is a large
library of another's, loads the driver, and may wait in it: what goes wrong here costs the samples, never the recording
or the run. Ends when its standard input does. Lines are dropped and counted where nobody reads them. Not yet run on a
GPU.

    {"gpus": [{"gpu": 0, "device": "cuda:0", "uuid": …, "chip": …, "columns": […], "refused": {column: why}}],
     "cupti": path, "problems": […]}
    {"gpu": 0, "began_ns": …, "read_ns": …, "whole": true, "lost": 0, "samples": [[start, end, value, …], …]}
    {"problem": …}
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Final

from moescope.collectors.samplers.pm_sampling.cupti import Cupti, Driver, Params, Refused, libraries
from moescope.collectors.samplers.pm_sampling.gpu import READ_S, GpuCounters, Taken

KEPT_BYTES: Final = 32 << 20
"""What waits for a reader at most."""


class Output:
    """Lines for whoever reads standard output, which is never waited for."""

    def __init__(self, descriptor: int) -> None:
        os.set_blocking(descriptor, False)
        self._descriptor = descriptor
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._dropped: Counter[Any] = Counter()

    def say(self, line: dict[str, Any]) -> None:
        """Raises BrokenPipeError where nobody will read it any more."""
        gpu, samples = line.get("gpu"), line.get("samples")
        if samples is not None:
            line = line | {"lost": line["lost"] + self._dropped[gpu]}
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if samples is not None:
            if self._bytes + len(data) > KEPT_BYTES:
                self._dropped[gpu] = line["lost"] + len(samples)
                return
            self._dropped[gpu] = 0
        self._waiting.append(data)
        self._bytes += len(data)
        self.flush()

    def flush(self) -> None:
        """Writes what fits."""
        while self._waiting:
            data = self._waiting.popleft()
            try:
                written = os.write(self._descriptor, data)
            except BlockingIOError:
                written = 0
            self._bytes -= written
            if written < len(data):
                self._waiting.appendleft(data[written:])
                return

    def drain(self, seconds: float) -> None:
        """Writes the rest, what is missing of it too, waiting so long at most."""
        for gpu, dropped in self._dropped.items():
            if dropped:
                self._waiting.append(json.dumps({"gpu": gpu, "lost": dropped, "samples": []}).encode() + b"\n")
        until_s = time.monotonic() + seconds
        while self._waiting and time.monotonic() < until_s:
            select.select([], [self._descriptor], [], 0.1)
            self.flush()


def examined(period_ns: int, output: Output) -> dict[int, GpuCounters]:
    """The GPUs that can be sampled, by number, said on `output`. Raises OSError or Refused where there is no driver."""
    driver = Driver()
    cupti, problems = _library(driver.major())
    found: dict[int, GpuCounters] = {}
    told = []
    for index in range(driver.count()) if cupti is not None else ():
        about: dict[str, Any] = {"device": f"cuda:{index}", "uuid": driver.uuid(index)}
        try:
            found[index] = gpu = GpuCounters(cupti, index, period_ns)
        except Refused as error:
            problems.append(f"no PM sampling of {about['device']}: {error}")
            continue
        about |= {"gpu": index, "chip": gpu.chip.decode("ascii", "replace")}
        told.append(about | {"columns": list(gpu.chosen.metrics), "refused": gpu.chosen.refused})
    output.say({"gpus": told, "cupti": cupti.path if cupti is not None else "", "problems": problems})
    return found


def _each(sampled: dict[int, GpuCounters], output: Output, action: Callable[[int, GpuCounters], object]) -> None:
    """Does something with every GPU; one that refuses is said, and not sampled any more."""
    for gpu, counters in list(sampled.items()):
        try:
            action(gpu, counters)
        except Refused as error:
            output.say({"problem": f"cuda:{gpu} is not sampled any more: {error}", "gone": gpu})
            sampled.pop(gpu).close()


def sample(sampled: dict[int, GpuCounters], output: Output) -> None:
    """Samples until standard input ends, and says the last of it. Raises BrokenPipeError where nobody reads."""
    _each(sampled, output, lambda _, counters: counters.prepare())
    if _over(0.0):
        return
    _each(sampled, output, lambda _, counters: counters.start())

    def read(gpu: int, counters: GpuCounters) -> None:
        output.say(_said(gpu, counters.take()))
        counters.renew()

    while sampled and not _over(READ_S):
        _each(sampled, output, read)
        output.flush()
    _each(sampled, output, lambda gpu, counters: output.say(_said(gpu, counters.stop())))


def _over(seconds: float) -> bool:
    """Whether standard input has ended, or does within so long."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _library(major: str) -> tuple[Any, list[str]]:
    """The first libcupti that goes with the driver; why none does."""
    problems = []
    for path in libraries(major):
        try:
            cupti = Cupti(path)
            cupti.call(Params())
        except (OSError, AttributeError, Refused) as error:
            problems.append(f"{path}: {error}")
        else:
            return cupti, []
    text = "no CUPTI of CUDA 12.6 or later goes with this driver: MOESCOPE_CUPTI=/path/libcupti.so.12 names one, and "
    return None, [f"{text}`pip install nvidia-cuda-cupti-cu12` has it ({'; '.join(problems)})"]


def _said(gpu: int, taken: Taken) -> dict[str, Any]:
    samples = [[start, end, *map(_short, values)] for start, end, values in taken.samples]
    times = {"began_ns": taken.began_ns, "read_ns": taken.read_ns, "whole": taken.whole}
    return {"gpu": gpu, **times, "lost": taken.lost, "samples": samples}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def main(arguments: list[str]) -> int:
    """Samples until standard input ends; 0 also where nothing can be sampled, which is said."""
    # The recorder blocks what is for its target, and a child inherits that.
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    # What libraries print is none of our lines.
    output = Output(os.dup(sys.stdout.fileno()))
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sampled: dict[int, GpuCounters] = {}
    try:
        try:
            sampled = examined(int(arguments[0]), output)
        except OSError as error:
            output.say({"gpus": [], "cupti": "", "problems": [f"no NVIDIA driver on this machine ({error})"]})
        except Refused as error:
            output.say({"gpus": [], "cupti": "", "problems": [f"no PM sampling: {error}"]})
        if "--probe" not in arguments:
            sample(sampled, output)
        output.drain(2.0)
    except BrokenPipeError:
        pass
    finally:
        for counters in sampled.values():
            counters.close()
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    os._exit(code)  # CUPTI's threads need not be waited for, nor the interpreter's own end
