"""PM sampling of one GPU: what it can sample is asked, sampling begins, and samples are read. Not yet run on a GPU.

What has been seen of CUPTI elsewhere and is heeded here: an image of counters must hold all that is read at once, or
what comes after it is lost; a hardware buffer that has overflowed gives nothing any more until sampling begins anew;
samples without times, or of no length, tell nothing.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from moescope.collectors.samplers.pm_sampling import cupti as abi
from moescope.collectors.samplers.pm_sampling.cupti import Cupti, Refused
from moescope.collectors.samplers.pm_sampling.metrics import Chosen, choose, in_our_unit

READ_S: Final = 0.25
"""Between two readings, seconds."""
LATE_S: Final = 4.0
"""How late a reading may be before samples are lost."""
_SAMPLE_BYTES: Final = 16 << 10
"""Of the hardware buffer for a sample: others have seen 7 KB with 4 metrics. CUPTI does not tell."""
_LEAST_BYTES, _MOST_BYTES = 8 << 20, 128 << 20


@dataclass
class Taken:
    """One reading.

    samples: (start, end, value by column), in the GPU's time, ns, and the columns' units; lost: those that are missing
    whole: whether all that there was has been read, so that the last sample was the newest
    read_ns: CLOCK_MONOTONIC after the reading; began_ns: before sampling began, which is anew after an overflow
    """

    samples: list[tuple[int, int, list[float | None]]] = field(default_factory=list)
    lost: int = 0
    whole: bool = True
    read_ns: int = 0
    began_ns: int = 0


class GpuCounters:
    """The counters of one GPU: what can be sampled is known at once; `prepare` and `start` go before samples."""

    def __init__(self, cupti: Cupti, index: int, period_ns: int) -> None:
        """index: as CUDA numbers GPUs. Raises Refused where nothing can be sampled. Nothing of the GPU is held yet."""
        self._cupti, self._index, self._period_ns = cupti, index, period_ns
        named = abi.GetChipName(deviceIndex=index)
        cupti.call(named)
        self.chip = bytes(named.pChipName)
        self._availability = self._available()
        self.chosen: Chosen = choose(lambda metrics: passes(cupti, self.chip, metrics, self._availability))
        if not self.chosen.metrics:
            raise Refused(f"PM sampling of {self.chip.decode()}", abi.NOT_SUPPORTED)
        self._metrics = list(self.chosen.metrics.values())
        self._names = _array(self._metrics)
        self._host, self._config = configured(cupti, self.chip, self._metrics, self._availability)
        self._values = (ctypes.c_double * len(self._metrics))()
        self._image: Any = None
        self._object = 0
        self._began_ns = self._read_ns = 0
        self._last_end = 0
        self._full = False

    def _available(self) -> Any:
        """Which counters this machine leaves to be sampled, as CUPTI keeps it."""
        asked = abi.GetCounterAvailability(deviceIndex=self._index)
        self._cupti.call(asked)
        image = (ctypes.c_uint8 * asked.counterAvailabilityImageSize)()
        asked.pCounterAvailabilityImage = ctypes.addressof(image)
        self._cupti.call(asked)
        return image

    def prepare(self) -> None:
        """Takes hold of the counters. Raises Refused."""
        enabled = abi.Enable(deviceIndex=self._index)
        self._cupti.call(enabled)
        self._object = int(enabled.pPmSamplingObject or 0)
        wanted = abi.SetConfig(
            pPmSamplingObject=self._object,
            configSize=len(self._config),
            pConfig=ctypes.addressof(self._config),
            hardwareBufferSize=_buffer_bytes(self._period_ns),
            samplingInterval=self._period_ns,
            triggerMode=abi.GPU_TIME_INTERVAL,
            hwBufferAppendMode=abi.KEEP_OLDEST,
        )
        short = self._cupti.version < abi.WITH_APPEND_MODE
        self._cupti.call(wanted, size=abi.SetConfig.size("triggerMode") if short else 0)
        if self._image is None:
            sized = abi.GetCounterDataSize(
                pPmSamplingObject=self._object,
                pMetricNames=self._names,
                numMetrics=len(self._metrics),
                maxSamples=_slots(self._period_ns),
            )
            self._cupti.call(sized)
            self._image = (ctypes.c_uint8 * sized.counterDataSize)()
        self._empty_image()

    def start(self) -> None:
        """Samples from now on. Raises Refused."""
        self._began_ns = self._read_ns = time.monotonic_ns()
        self._last_end = 0
        self._full = False
        self._cupti.call(abi.OnObject(pPmSamplingObject=self._object), "cuptiPmSamplingStart")

    def _empty_image(self) -> None:
        self._cupti.call(
            abi.ImageInitialize(
                pPmSamplingObject=self._object,
                counterDataSize=len(self._image),
                pCounterData=ctypes.addressof(self._image),
            )
        )

    def take(self) -> Taken:
        """What has been sampled since the last time; `renew` goes before the next. Raises Refused."""
        image = {"pCounterDataImage": ctypes.addressof(self._image), "counterDataImageSize": len(self._image)}
        decoded = abi.DecodeData(pPmSamplingObject=self._object, **image)
        try:
            self._cupti.call(decoded)
        except Refused as error:
            if error.code != abi.OUT_OF_MEMORY:
                raise
            return self._overflowed(Taken(read_ns=time.monotonic_ns(), began_ns=self._began_ns), self._read_ns)
        before_ns, self._read_ns = self._read_ns, time.monotonic_ns()
        taken = Taken(read_ns=self._read_ns, began_ns=self._began_ns)
        taken.whole = decoded.decodeStopReason != abi.IMAGE_FULL
        told = abi.GetCounterDataInfo(**image)
        self._cupti.call(told)
        for at in range(told.numCompletedSamples):
            self._take_one(at, image, taken)
        self._empty_image()
        return self._overflowed(taken, before_ns) if decoded.overflow else taken

    def _take_one(self, at: int, image: dict[str, int], taken: Taken) -> None:
        when = abi.GetSampleInfo(pPmSamplingObject=self._object, sampleIndex=at, **image)
        self._cupti.call(when)
        if not when.startTimestamp or when.endTimestamp <= when.startTimestamp:
            return
        self._cupti.call(
            abi.EvaluateToGpuValues(
                pHostObject=self._host,
                rangeIndex=at,
                ppMetricNames=self._names,
                numMetrics=len(self._metrics),
                pMetricValues=self._values,
                **image,
            )
        )
        values = [in_our_unit(name, value) for name, value in zip(self._metrics, self._values, strict=True)]
        if self._last_end:
            taken.lost += max(round((when.startTimestamp - self._last_end) / self._period_ns), 0)
        self._last_end = when.endTimestamp
        taken.samples.append((when.startTimestamp, when.endTimestamp, values))

    def _overflowed(self, taken: Taken, before_ns: int) -> Taken:
        """The hardware's buffer was full, and gives nothing any more. before_ns: the reading before"""
        expected = (time.monotonic_ns() - before_ns) / self._period_ns
        taken.lost = max(taken.lost, round(expected) - len(taken.samples), 1)
        self._full = True
        return taken

    def renew(self) -> None:
        """Begins anew where the hardware's buffer was full, with what it held lost. Raises Refused."""
        if self._full:
            self._end()
            self.prepare()
            self.start()

    def _end(self) -> None:
        for function in ("cuptiPmSamplingStop", "cuptiPmSamplingDisable"):
            with suppress(Refused):
                self._cupti.call(abi.OnObject(pPmSamplingObject=self._object), function)
        self._object = 0

    def stop(self) -> Taken:
        """Stops sampling, and reads the last of it. Raises Refused."""
        self._cupti.call(abi.OnObject(pPmSamplingObject=self._object), "cuptiPmSamplingStop")
        return self.take()

    def close(self) -> None:
        """Lets go of the GPU."""
        if self._object:
            self._end()
        if self._host:
            with suppress(Refused):
                self._cupti.call(abi.HostDeinitialize(pHostObject=self._host))
            self._host = 0


def configured(cupti: Cupti, chip: bytes, metrics: Sequence[str], availability: Any = None) -> tuple[int, Any]:
    """CUPTI's object of the host's side for a chip and some metrics, and their configuration.

    chip: as CUPTI names it, `GH100`; availability: what the machine leaves to be sampled. Raises Refused.
    """
    made = abi.HostInitialize(
        profilerType=abi.PM_SAMPLING,
        pChipName=chip,
        pCounterAvailabilityImage=None if availability is None else ctypes.addressof(availability),
    )
    cupti.call(made)
    host = int(made.pHostObject or 0)
    try:
        cupti.call(abi.ConfigAddMetrics(pHostObject=host, ppMetricNames=_array(metrics), numMetrics=len(metrics)))
        sized = abi.GetConfigImageSize(pHostObject=host)
        cupti.call(sized)
        config = (ctypes.c_uint8 * sized.configImageSize)()
        cupti.call(
            abi.GetConfigImage(pHostObject=host, configImageSize=len(config), pConfigImage=ctypes.addressof(config))
        )
    except Refused:
        cupti.call(abi.HostDeinitialize(pHostObject=host))
        raise
    return host, config


def passes(cupti: Cupti, chip: bytes, metrics: Sequence[str], availability: Any = None) -> int:
    """How many passes some metrics need together; 0 where they cannot be sampled at all."""
    try:
        host, config = configured(cupti, chip, metrics, availability)
    except Refused:
        return 0
    asked = abi.GetNumOfPasses(configImageSize=len(config), pConfigImage=ctypes.addressof(config))
    try:
        cupti.call(asked)
    except Refused:
        return 0
    finally:
        cupti.call(abi.HostDeinitialize(pHostObject=host))
    return int(asked.numOfPasses)


def _array(names: Sequence[str]) -> Any:
    return (ctypes.c_char_p * len(names))(*(name.encode() for name in names))


def _slots(period_ns: int) -> int:
    """Samples that an image holds: more than come between two readings, the last of them late."""
    return int(2 * READ_S * 1e9 / period_ns * 1.25) + 64


def _buffer_bytes(period_ns: int) -> int:
    return min(max(int(LATE_S * 1e9 / period_ns) * _SAMPLE_BYTES, _LEAST_BYTES), _MOST_BYTES)
