"""The recorder's side of PM sampling: starts the process that samples, and makes rows of what it says.

Not yet run on a GPU.
"""

from __future__ import annotations

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
from moescope.collectors.schema import arrow_schema

if TYPE_CHECKING:
    import pyarrow as pa

LEAST_PERIOD_S: Final = 0.001
"""Between two samples: CUPTI reads them one by one."""
CLOSE_S: Final = 5.0
"""How long the last samples are waited for."""
_PIPE_BYTES: Final = 1 << 20
_SET_PIPE_SIZE: Final = 1031
"""F_SETPIPE_SZ, which Python names from 3.10 on, on Linux."""
_INJECTED: Final = ("CUDA_INJECTION64_PATH", "NVTX_INJECTION64_PATH")
"""What loads other tools into a process that starts CUDA: they are for the target."""


@dataclass
class _Gpu:
    device: str
    uuid: str | None
    columns: list[str]
    clock: GpuClock | None = None
    waiting: list[list[Any]] = field(default_factory=list)
    gone: bool = False


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
                import fcntl

                fcntl.fcntl(descriptor, _SET_PIPE_SIZE, _PIPE_BYTES)

    def attach(self, pid: int) -> None:
        """GPUs are sampled whole."""

    def columns(self, device: str) -> Sequence[str]:
        """What is sampled of a device now."""
        return next((gpu.columns for gpu in self._gpus.values() if gpu.device == device and not gpu.gone), [])

    def poll(self) -> list[Row | Rows]:
        """What has been sampled, and said, since the last time."""
        if self._process is None:
            return []
        ended = self._process.poll() is not None
        self._read()
        if ended:
            self._ended()
        return self._rows()

    def close(self) -> list[Row | Rows]:
        """The last of it; the process ends."""
        process = self._process
        if process is None:
            return self._rows()
        if process.stdin is not None:
            process.stdin.close()
        until_s = time.monotonic() + CLOSE_S
        while self._read() and time.monotonic() < until_s:
            time.sleep(0.01)
        try:
            process.wait(0.5)
        except subprocess.TimeoutExpired:
            process.kill()
        self._let_go()
        for gpu in self._gpus.values():
            error_ns = gpu.clock.error_ns if gpu.clock is not None else None
            if error_ns is not None:
                text = f"times of {gpu.device}'s samples are at most {error_ns / 1000:.0f} us too late [measured]"
                self._tell("info", text)
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
        if line["lost"]:
            text = f"{line['lost']} samples of {gpu.device} are missing: they were not read in time"
            self._tell("warning", text, line["lost"])
        samples = line["samples"]
        if not samples:
            return
        if gpu.clock is None or gpu.clock.began_ns != line["began_ns"]:
            gpu.clock = GpuClock(line["began_ns"])
        gpu.clock.read(samples[0][0], samples[-1][1], line["read_ns"])
        shift = gpu.clock.offset_ns + self._clock.offset_ns
        gpu.waiting += [[end + shift, end - start, *values] for start, end, *values in samples]

    def _ended(self) -> None:
        """The process has ended by itself."""
        assert self._process is not None
        code = self._let_go()
        for gpu in self._gpus.values():
            gpu.gone = True
        if code or not self._heard:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
            self._tell("error", f"the process that samples {how}: no samples from here on")

    def _let_go(self) -> int:
        """The process has ended, or is about to; its exit code."""
        assert self._process is not None
        with self._process as process:  # closes what led to and from it, and waits
            self._process = None
        return process.returncode

    def _tell(self, level: str, message: str, dropped: int = 0) -> None:
        row = {"t_ns": self._clock.epoch_ns(time.monotonic_ns()), "rank": None, "level": level, "source": self.name}
        self._log.append(("log", None, row | {"message": message, "dropped": dropped}))

    def _rows(self) -> list[Row | Rows]:
        rows: list[Row | Rows] = [*self._log]
        self._log = []
        for gpu in self._gpus.values():
            if gpu.waiting:
                rows.append(("device_samples", None, self._batch(gpu)))
                gpu.waiting = []
        return rows

    def _batch(self, gpu: _Gpu) -> pa.RecordBatch:
        import pyarrow as pa

        schema = arrow_schema("device_samples")
        times, spans, *values = zip(*gpu.waiting, strict=True)
        count = len(times)
        fixed = {"host": self._host, "device": gpu.device, "uuid": gpu.uuid}
        told = {"t_ns": times, "span_ns": spans, **dict(zip(gpu.columns, values, strict=True))}

        def column(name: str, kind: pa.DataType) -> pa.Array:
            if name in fixed:
                return pa.repeat(pa.scalar(fixed[name], kind), count)
            return pa.array(told[name], kind) if name in told else pa.nulls(count, kind)

        return pa.RecordBatch.from_arrays([column(one.name, one.type) for one in schema], schema=schema)
