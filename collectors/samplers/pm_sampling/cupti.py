"""CUPTI's calls for PM sampling: their parameters as C has them, and what its refusals mean.

Layouts are those of `cupti_pmsampling.h`, `cupti_profiler_host.h` and `cupti_target.h` of CUDA 12.6 to 13.5; `python -m
benchmarks.pm_metrics` holds them against these. The target's side has not yet run on a GPU; the host's side (what a
chip can sample) needs none.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_double, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from typing import Any, ClassVar, Final

PM_SAMPLING: Final = 1
"""CUpti_ProfilerType"""
GPU_TIME_INTERVAL: Final = 1
"""CUpti_PmSampling_TriggerMode: the interval is in ns."""
KEEP_OLDEST: Final = 0
IMAGE_FULL: Final = 1
"""CUpti_PmSampling_DecodeStopReason: the image had no room for more."""
OUT_OF_MEMORY: Final = 8
"""CUptiResult of a decode whose hardware buffer has overflowed: that of every later one, too."""
NOT_SUPPORTED: Final = 27
WITH_APPEND_MODE: Final = 26
"""CUPTI_API_VERSION of CUDA 12.8: from here on a configuration says what a full buffer does."""

_ADMIN: Final = (
    "no permission: run as root or with CAP_PERFMON, or have the administrator load the driver with "
    "NVreg_RestrictProfilingToAdminUsers=0"
)
REMEDIES: Final = {
    15: "CUPTI does not find the driver, or not a driver as new as itself",
    26: "another profiler holds the counters (nsys, ncu, DCGM): end it; DCGM lets go with `dcgmi profiling --pause`",
    NOT_SUPPORTED: "this GPU, or this driver, does not have it",
    33: "a virtual GPU does not have it",
    35: _ADMIN,
    40: f"{_ADMIN}, and the hypervisor's for a virtual GPU",
    41: "a GPU in confidential computing does not have it",
    43: "the GPU is divided (MIG)",
    45: "Windows' Linux (WSL) does not have it",
}
"""By CUptiResult, what it means for whoever wants to sample."""
_OF_DRIVER: Final = {
    100: "no GPU is seen: `nvidia-smi` tells more, and CUDA_VISIBLE_DEVICES hides some",
    802: "the machine's NVSwitches are not ready: nvidia-fabricmanager must run",
    803: "the driver was updated while another one is loaded: restart the machine",
}


class Refused(Exception):
    """CUPTI or the driver has refused, with a result `code`; the message says what to do, where that is known."""

    def __init__(self, what: str, code: int, remedies: Mapping[int, str] = REMEDIES) -> None:
        remedy = remedies.get(code)
        super().__init__(f"{remedy} ({what}: {code})" if remedy else f"{what} failed with {code}")
        self.code = code


class Params(ctypes.Structure):
    """What every call takes: its own size, counted to the end of the last field."""

    _fields_: ClassVar[Sequence[tuple[str, Any]]] = (("structSize", c_size_t), ("pPriv", c_void_p))

    @classmethod
    def size(cls, last: str = "") -> int:
        """Bytes up to the end of a field, the last one where none is named."""
        field = getattr(cls, last or cls._fields_[-1][0])
        return int(field.offset + field.size)


class GetChipName(Params):
    _fields_ = (("deviceIndex", c_size_t), ("pChipName", c_char_p))


class GetCounterAvailability(Params):
    _fields_ = (
        ("deviceIndex", c_size_t),
        ("counterAvailabilityImageSize", c_size_t),
        ("pCounterAvailabilityImage", c_void_p),
    )


class HostInitialize(Params):
    _fields_ = (
        ("profilerType", c_int),
        ("pChipName", c_char_p),
        ("pCounterAvailabilityImage", c_void_p),
        ("pHostObject", c_void_p),
    )


class HostDeinitialize(Params):
    _fields_ = (("pHostObject", c_void_p),)


class ConfigAddMetrics(Params):
    _fields_ = (("pHostObject", c_void_p), ("ppMetricNames", POINTER(c_char_p)), ("numMetrics", c_size_t))


class GetConfigImageSize(Params):
    _fields_ = (("pHostObject", c_void_p), ("configImageSize", c_size_t))


class GetConfigImage(Params):
    _fields_ = (("pHostObject", c_void_p), ("configImageSize", c_size_t), ("pConfigImage", c_void_p))


class GetNumOfPasses(Params):
    _fields_ = (("configImageSize", c_size_t), ("pConfigImage", c_void_p), ("numOfPasses", c_size_t))


class EvaluateToGpuValues(Params):
    _fields_ = (
        ("pHostObject", c_void_p),
        ("pCounterDataImage", c_void_p),
        ("counterDataImageSize", c_size_t),
        ("rangeIndex", c_size_t),
        ("ppMetricNames", POINTER(c_char_p)),
        ("numMetrics", c_size_t),
        ("pMetricValues", POINTER(c_double)),
    )


class Enable(Params):
    _fields_ = (("deviceIndex", c_size_t), ("pPmSamplingObject", c_void_p))


class OnObject(Params):
    """Of Start, Stop and Disable."""

    _fields_ = (("pPmSamplingObject", c_void_p),)


class SetConfig(Params):
    _fields_ = (
        ("pPmSamplingObject", c_void_p),
        ("configSize", c_size_t),
        ("pConfig", c_void_p),
        ("hardwareBufferSize", c_size_t),
        ("samplingInterval", c_uint64),
        ("triggerMode", c_int),
        ("hwBufferAppendMode", c_int),
    )


class GetCounterDataSize(Params):
    _fields_ = (
        ("pPmSamplingObject", c_void_p),
        ("pMetricNames", POINTER(c_char_p)),
        ("numMetrics", c_size_t),
        ("maxSamples", c_uint32),
        ("counterDataSize", c_size_t),
    )


class ImageInitialize(Params):
    _fields_ = (("pPmSamplingObject", c_void_p), ("counterDataSize", c_size_t), ("pCounterData", c_void_p))


class DecodeData(Params):
    _fields_ = (
        ("pPmSamplingObject", c_void_p),
        ("pCounterDataImage", c_void_p),
        ("counterDataImageSize", c_size_t),
        ("decodeStopReason", c_int),
        ("overflow", c_uint8),
    )


class GetCounterDataInfo(Params):
    _fields_ = (
        ("pCounterDataImage", c_void_p),
        ("counterDataImageSize", c_size_t),
        ("numTotalSamples", c_size_t),
        ("numPopulatedSamples", c_size_t),
        ("numCompletedSamples", c_size_t),
    )


class GetSampleInfo(Params):
    _fields_ = (
        ("pPmSamplingObject", c_void_p),
        ("pCounterDataImage", c_void_p),
        ("counterDataImageSize", c_size_t),
        ("sampleIndex", c_size_t),
        ("startTimestamp", c_uint64),
        ("endTimestamp", c_uint64),
    )


NAMES: Final = {
    GetChipName: ("cuptiDeviceGetChipName", "CUpti_Device_GetChipName_Params"),
    GetCounterAvailability: (
        "cuptiPmSamplingGetCounterAvailability",
        "CUpti_PmSampling_GetCounterAvailability_Params",
    ),
    HostInitialize: ("cuptiProfilerHostInitialize", "CUpti_Profiler_Host_Initialize_Params"),
    HostDeinitialize: ("cuptiProfilerHostDeinitialize", "CUpti_Profiler_Host_Deinitialize_Params"),
    ConfigAddMetrics: ("cuptiProfilerHostConfigAddMetrics", "CUpti_Profiler_Host_ConfigAddMetrics_Params"),
    GetConfigImageSize: ("cuptiProfilerHostGetConfigImageSize", "CUpti_Profiler_Host_GetConfigImageSize_Params"),
    GetConfigImage: ("cuptiProfilerHostGetConfigImage", "CUpti_Profiler_Host_GetConfigImage_Params"),
    GetNumOfPasses: ("cuptiProfilerHostGetNumOfPasses", "CUpti_Profiler_Host_GetNumOfPasses_Params"),
    EvaluateToGpuValues: (
        "cuptiProfilerHostEvaluateToGpuValues",
        "CUpti_Profiler_Host_EvaluateToGpuValues_Params",
    ),
    Enable: ("cuptiPmSamplingEnable", "CUpti_PmSampling_Enable_Params"),
    OnObject: ("", "CUpti_PmSampling_Start_Params"),
    SetConfig: ("cuptiPmSamplingSetConfig", "CUpti_PmSampling_SetConfig_Params"),
    GetCounterDataSize: ("cuptiPmSamplingGetCounterDataSize", "CUpti_PmSampling_GetCounterDataSize_Params"),
    ImageInitialize: (
        "cuptiPmSamplingCounterDataImageInitialize",
        "CUpti_PmSampling_CounterDataImage_Initialize_Params",
    ),
    DecodeData: ("cuptiPmSamplingDecodeData", "CUpti_PmSampling_DecodeData_Params"),
    GetCounterDataInfo: ("cuptiPmSamplingGetCounterDataInfo", "CUpti_PmSampling_GetCounterDataInfo_Params"),
    GetSampleInfo: (
        "cuptiPmSamplingCounterDataGetSampleInfo",
        "CUpti_PmSampling_CounterData_GetSampleInfo_Params",
    ),
    Params: ("cuptiProfilerInitialize", "CUpti_Profiler_Initialize_Params"),
}
"""By parameters: CUPTI's function, and its name for them."""


class Cupti:
    """One libcupti, loaded."""

    def __init__(self, path: str) -> None:
        """Raises OSError where it cannot be loaded, AttributeError where it is older than PM sampling (CUDA 12.6)."""
        self._lib = ctypes.CDLL(path)
        for function, _ in NAMES.values():
            if function:
                getattr(self._lib, function)
        self.path = path
        version = c_uint32()
        self._lib.cuptiGetVersion(ctypes.byref(version))
        self.version = int(version.value)

    def call(self, params: Params, function: str = "", size: int = 0) -> None:
        """Calls with these parameters, which hold the answer then. Raises Refused.

        function: CUPTI's, where several take such; size: of what is told of the parameters, all where 0
        """
        name = function or NAMES[type(params)][0]
        params.structSize = size or params.size()
        code = int(getattr(self._lib, name)(ctypes.byref(params)))
        if code:
            raise Refused(name, code)


class Driver:
    """CUDA's driver, as far as it tells what GPUs there are: no context is made, and no memory of a GPU is taken."""

    def __init__(self) -> None:
        """Raises OSError where there is no driver, Refused where it does not start."""
        self._lib = ctypes.CDLL("libcuda.so.1")
        self._ask("cuInit", c_uint32(0))

    def _ask(self, function: str, *arguments: Any) -> None:
        code = int(getattr(self._lib, function)(*arguments))
        if code:
            raise Refused(function, code, _OF_DRIVER)

    def major(self) -> str:
        """Newest CUDA version that it runs, `12`."""
        version = c_int()
        self._ask("cuDriverGetVersion", ctypes.byref(version))
        return str(version.value // 1000)

    def count(self) -> int:
        """GPUs that this process sees."""
        count = c_int()
        self._ask("cuDeviceGetCount", ctypes.byref(count))
        return count.value

    def uuid(self, index: int) -> str:
        """`GPU-…`, as NVML tells it."""
        device, uuid = c_int(), (c_uint8 * 16)()
        self._ask("cuDeviceGet", ctypes.byref(device), c_int(index))
        self._ask("cuDeviceGetUuid", ctypes.byref(uuid), device)
        digits = bytes(uuid).hex()
        return "GPU-" + "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def libraries(major: str) -> list[str]:
    """Where libcupti may be, the best first. major: CUDA version of the driver, of which CUPTI must not be newer"""
    from moescope.collectors.agent.cupti import candidates

    named = os.environ.get("MOESCOPE_CUPTI")
    found = [path for path in candidates(None) if _major(path) <= int(major)]
    return ([named] if named else []) + sorted(found, key=lambda path: (-_major(path), not os.path.isfile(path)))


def _major(path: str) -> int:
    return int(path.rpartition(".")[2])
