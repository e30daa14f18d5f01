"""The recorder's side of PM sampling: starts the process that samples, and makes rows of what it says.

Not yet run on a GPU.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.clock import Clock
from moescope.collectors.samplers.base import Row, Rows, SamplerUnavailable
from moescope.collectors.samplers.pm_sampling.clock import GpuClock
from moescope.collectors.samplers.pm_sampling.metrics import COLUMNS
from moescope.collectors.schema import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

LEAST_PERIOD_S: Final = 0.001
"""Between two samples: CUPTI reads them one by one."""
CLOSE_S, UNHEARD_S, ENDING_S = 5.0, 1.0, 0.5
"""How long the last samples are waited for, the first word of a process, and its end."""
UNWATCHED_S: Final = 3.0
LOST_S: Final = 30.0
"""Between two lines of the log about samples that are missing."""
_PIPE_BYTES: Final = 1 << 20
_INJECTED: Final = ("CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH")
"""What loads other tools into a process that starts CUDA: they are for the target."""


@dataclass
class _Gpu:
    device: str
    uuid: str | None
    columns: list[str]
    clocks: list[GpuClock] = field(default_factory=list)
    waiting: list[list[Any]] = field(default_factory=list)
    lost: int = 0
    told_s: float = float("-inf")
    gone: bool = False

    def error_ns(self) -> int | None:
        """The largest of all clocks'."""
        return max((clock.error_ns for clock in self.clocks if clock.error_ns is not None), default=None)


def command(period_s: float) -> list[str]:
    """What samples; it says lines of JSON (`process`), and ends with its standard input."""
    module = "moescope.collectors.samplers.pm_sampling.process"
    return [sys.executable, "-m", module, str(round(period_s * 1e9))]


def environment() -> dict[str, str]:
    """Of the process that samples: without what is loaded into processes that start CUDA."""
    return {name: value for name, value in os.environ.items() if name not in _INJECTED}


class PmSampler:
    """Rows of `device_samples`, one a sample of one GPU. What cannot be sampled is told in the log."""

    name = "gpu_pm"

    def __init__(self, clock: Clock, host: str, period_s: float) -> None:
        """period_s: between two samples, at least LEAST_PERIOD_S"""
        self._clock, self._host = clock, host
        self._period_s = max(period_s, LEAST_PERIOD_S)
        self.source = f"CUPTI PM sampling, every {self._period_s * 1000:g} ms"
        self._process: subprocess.Popen[bytes] | None = None
        self._text = b""
        self._gpus: dict[int, _Gpu] = {}
        self._log: list[Row] = []
        self._heard = False

    def open(self) -> None:
        """Raises SamplerUnavailable where no process can be started. What there is to sample turns out later."""
        try:
            self._process = subprocess.Popen(
                command(self._period_s),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment(),
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )
        except OSError as error:
            raise SamplerUnavailable(f"no process can be started for it: {error.strerror}") from error
        if self._process.stdout is not None:
            descriptor = self._process.stdout.fileno()
            os.set_blocking(descriptor, False)
            with suppress(OSError):
                fcntl.fcntl(descriptor, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)

    @property
    def unwatched_s(self) -> float:
        """Seconds between two polls while nobody looks: a batch has a price of its own."""
        return UNWATCHED_S if self._heard else 0.0

    def attach(self, pid: int) -> None:
        """GPUs are sampled whole."""

    def columns(self, device: str) -> Sequence[str]:
        """What is sampled of a device now; all that may be, while that has yet to be heard."""
        if self._process is None:
            return []
        if not self._heard:
            return list(COLUMNS)
        return next((gpu.columns for gpu in self._gpus.values() if gpu.device == device and not gpu.gone), [])

    def poll(self) -> list[Row | Rows]:
        """What has been sampled, and said, since the last time."""
        if self._process is None:
            return []
        ended = self._process.poll() is not None
        self._read()
        if ended:
            self._let_go()
        self._tell_lost(every_s=LOST_S)
        return self._rows()

    def close(self) -> list[Row | Rows]:
        """The last of it; the process ends."""
        process = self._process
        if process is None:
            return self._rows()
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        # What has not begun to sample when the run is over has nothing to say.
        until_s = time.monotonic() + (CLOSE_S if self._heard else UNHEARD_S)
        while self._read() and time.monotonic() < until_s:
            time.sleep(0.01)
        if not self._heard:
            self._tell("info", "the run was over before sampling had begun")
            process.kill()
        self._let_go(expected=not self._heard)
        self._tell_lost(every_s=0.0)
        for gpu in self._gpus.values():
            error_ns = gpu.error_ns()
            if error_ns is not None:
                text = (
                    f"times of {gpu.device}'s samples were at most {error_ns / 1000:.0f} us too late at the beginning"
                )
                self._tell("info", f"{text} [derived]")
        return self._rows()

    def _read(self) -> bool:
        """Takes in what the process has said; whether it may say more."""
        assert self._process is not None
        assert self._process.stdout is not None
        while True:
            try:
                data = os.read(self._process.stdout.fileno(), _PIPE_BYTES)
            except BlockingIOError:
                return True
            if not data:
                return False
            *lines, self._text = (self._text + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))

    def _hear(self, line: dict[str, Any]) -> None:
        if "gpus" in line:
            self._heard = True
            self._meet(line)
        elif "samples" in line:
            self._take(self._gpus[line["gpu"]], line)
        else:
            self._tell("warning", line["problem"])
            if "gone" in line:
                self._gpus[line["gone"]].gone = True

    def _meet(self, line: dict[str, Any]) -> None:
        for problem in line["problems"]:
            self._tell("warning", problem)
        for about in line["gpus"]:
            self._gpus[about["gpu"]] = _Gpu(about["device"], about["uuid"], about["columns"])
            whole = f"{about['device']} ({about['chip']}) is sampled by {line['cupti']}: {', '.join(about['columns'])}"
            left = "; ".join(f"no {column}: {why}" for column, why in about["refused"].items())
            self._tell("info", f"{whole}{'; ' if left else ''}{left}")

    def _take(self, gpu: _Gpu, line: dict[str, Any]) -> None:
        gpu.lost += line["lost"]
        samples = line["samples"]
        if not samples:
            return
        # Sampling has begun, or begun anew.
        if not gpu.clocks or gpu.clocks[-1].began_ns != line["began_ns"]:
            gpu.clocks.append(GpuClock(line["began_ns"]))
        clock = gpu.clocks[-1]
        if line["whole"]:
            clock.read(samples[0][0], samples[-1][1], line["read_ns"])
        if clock.error_ns is None:
            gpu.lost += len(samples)  # when they were is not known
            return
        shift = clock.offset_ns + self._clock.offset_ns
        gpu.waiting += [[end + shift, end - start, *values] for start, end, *values in samples]

    def _tell_lost(self, every_s: float) -> None:
        now_s = time.monotonic()
        for gpu in self._gpus.values():
            if gpu.lost and now_s - gpu.told_s >= every_s:
                text = f"{gpu.lost} samples of {gpu.device} are missing: they were not read in time"
                self._tell("warning", text, gpu.lost)
                gpu.lost, gpu.told_s = 0, now_s

    def _let_go(self, *, expected: bool = False) -> None:
        """The process has ended, or ends now; says so where that was not by itself and in order, nor expected."""
        process, self._process = self._process, None
        assert process is not None
        try:
            process.wait(ENDING_S)
        except subprocess.TimeoutExpired:
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # stuck in the driver: it is left behind
                process.wait(ENDING_S)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()
        code = process.returncode
        if not expected and (code or code is None or not self._heard):
            how = (
                "does not end" if code is None else f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
            )
            self._tell("error", f"the process that samples {how}: no samples from here on")

    def _tell(self, level: str, message: str, dropped: int = 0) -> None:
        row = {"t_ns": self._clock.epoch_ns(time.monotonic_ns()), "rank": None, "level": level, "source": self.name}
        self._log.append(("log", None, row | {"message": message, "dropped": dropped}))

    def _rows(self) -> list[Row | Rows]:
        rows: list[Row | Rows] = [*self._log]
        self._log = []
        ready = [gpu for gpu in self._gpus.values() if gpu.waiting]
        if ready:
            rows.append(("device_samples", None, self._batch(ready)))
        for gpu in ready:
            gpu.waiting = []
        return rows

    def _batch(self, gpus: list[_Gpu]) -> pa.RecordBatch:
        import pyarrow as pa

        schema = arrow_schema("device_samples")
        parts = []
        for gpu in gpus:
            times, spans, *values = zip(*gpu.waiting, strict=True)
            told: dict[str, Sequence[Any]] = {"t_ns": times, "span_ns": spans}
            told |= dict(zip(gpu.columns, values, strict=True))
            fixed = {"host": self._host, "device": gpu.device, "uuid": gpu.uuid}
            told |= {name: [value] * len(times) for name, value in fixed.items()}
            arrays = [pa.array(told.get(one.name, [None] * len(times)), one.type) for one in schema]
            parts.append(pa.RecordBatch.from_arrays(arrays, schema=schema))
        return pa.Table.from_batches(parts).combine_chunks().to_batches()[0]
