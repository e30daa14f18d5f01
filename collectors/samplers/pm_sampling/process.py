"""Samples all GPUs' counters, and says so on standard output: a line of JSON for what it samples, then one a reading.

python -m moescope.collectors.samplers.pm_sampling.process PERIOD_NS

A process of its own, as CUPTI is a large library of another's, loads the driver, and may wait in it: what goes wrong
here costs the samples, never the recording or the run. Ends when its standard input does. Lines are dropped and
counted where nobody reads them. Not yet run on a GPU.

    {"gpus": [{"gpu": 0, "device": "cuda:0", "uuid": …, "chip": …, "columns": […], "refused": {column: why}}],
     "cupti": path, "problems": […]}
    {"gpu": 0, "began_ns": …, "read_ns": …, "lost": 0, "samples": [[start, end, value, …], …]}
    {"problem": …}
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from collections import Counter, deque
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
        """Writes the rest, waiting so long at most."""
        until_s = time.monotonic() + seconds
        while self._waiting and time.monotonic() < until_s:
            select.select([], [self._descriptor], [], 0.1)
            self.flush()


def opened(period_ns: int, output: Output) -> dict[int, GpuCounters]:
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


def _library(major: str) -> tuple[Any, list[str]]:
    """The first libcupti that goes with the driver; why none does."""
    problems = []
    for path in libraries(major):
        try:
            cupti = Cupti(path)
            cupti.call(Params())
        except (OSError, AttributeError) as error:
            problems.append(f"{path}: {error}")
        except Refused as error:
            problems.append(f"{path}: {error}")
        else:
            return cupti, []
    text = "no CUPTI of CUDA 12.6 or later goes with this driver: MOESCOPE_CUPTI=/path/libcupti.so.12 names one, and "
    return None, [f"{text}`pip install nvidia-cuda-cupti-cu12` has it ({'; '.join(problems)})"]


def _said(gpu: int, taken: Taken) -> dict[str, Any]:
    samples = [[start, end, *map(_short, values)] for start, end, values in taken.samples]
    times = {"began_ns": taken.began_ns, "read_ns": taken.read_ns}
    return {"gpu": gpu, **times, "lost": taken.lost, "samples": samples}


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def main(arguments: list[str]) -> int:
    """Samples until standard input ends; 0 also where nothing can be sampled, which is said."""
    output = Output(sys.stdout.fileno())
    sampled: dict[int, GpuCounters] = {}
    try:
        sampled = opened(int(arguments[0]), output)
    except OSError as error:
        output.say({"gpus": [], "cupti": "", "problems": [f"no NVIDIA driver on this machine ({error})"]})
    except Refused as error:
        output.say({"gpus": [], "cupti": "", "problems": [f"no PM sampling: {error}"]})
    try:
        while sampled and not select.select([sys.stdin], [], [], READ_S)[0]:
            for gpu in list(sampled):
                try:
                    output.say(_said(gpu, sampled[gpu].take()))
                except Refused as error:
                    output.say({"problem": f"cuda:{gpu} is not sampled any more: {error}", "gone": gpu})
                    sampled.pop(gpu).close()
            output.flush()
        for gpu, counters in sampled.items():
            try:
                output.say(_said(gpu, counters.stop()))
            except Refused as error:
                output.say({"problem": f"the last samples of cuda:{gpu} are missing: {error}"})
    except BrokenPipeError:
        return 0
    finally:
        for counters in sampled.values():
            counters.close()
    output.drain(2.0)
    return 0


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    os._exit(code)  # CUPTI's threads need not be waited for, nor the interpreter's own end
