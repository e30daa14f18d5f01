"""How a GPU is now: power, clocks and what holds them, temperature, memory, ECC errors. Not yet run on a GPU."""

from __future__ import annotations

from typing import Any, Final

from moescope.collectors.samplers.nvml_devices import Gpu
from moescope.collectors.samplers.nvml_library import Nvml
from moescope.collectors.samplers.nvml_units import share, throttle_words

_SM_CLOCK, _MEMORY_CLOCK, _GPU_SENSOR = 1, 2, 0
_CORRECTED, _UNCORRECTED, _VOLATILE = 0, 1, 0
_MHZ: Final = 1_000_000


def state_columns(nvml: Nvml, gpu: Gpu) -> dict[str, Any]:
    """Columns of `device_samples`; what the GPU does not tell is null.

    `gpu_busy` and `memory_busy` are NVML's utilisation: any kernel, any access, over its own last sixth of a second to
    second. They are no measure of how many SMs or how much bandwidth are in use.
    """

    def ask(what: str, question: str, *arguments: Any) -> Any:
        return nvml.ask(f"{what} of {gpu.device}", question, gpu.handle, *arguments)

    milliwatts = ask("power", "nvmlDeviceGetPowerUsage")
    clock = ask("SM clock", "nvmlDeviceGetClockInfo", _SM_CLOCK)
    memory_clock = ask("memory clock", "nvmlDeviceGetClockInfo", _MEMORY_CLOCK)
    memory = ask("memory", "nvmlDeviceGetMemoryInfo")
    use = ask("utilisation", "nvmlDeviceGetUtilizationRates")
    reasons = _throttle(nvml, gpu)
    return {
        "power_w": None if milliwatts is None else milliwatts / 1000,
        "clock_hz": None if clock is None else clock * _MHZ,
        "memory_clock_hz": None if memory_clock is None else memory_clock * _MHZ,
        "memory_bytes": None if memory is None else memory.used,
        "memory_total_bytes": None if memory is None else memory.total,
        "gpu_busy": None if use is None else share(use.gpu),
        "memory_busy": None if use is None else share(use.memory),
        "throttle": None if reasons is None else throttle_words(reasons),
        "temperature_c": ask("temperature", "nvmlDeviceGetTemperature", _GPU_SENSOR),
        "ecc_corrected": ask("ECC errors", "nvmlDeviceGetTotalEccErrors", _CORRECTED, _VOLATILE),
        "ecc_uncorrected": ask("ECC errors", "nvmlDeviceGetTotalEccErrors", _UNCORRECTED, _VOLATILE),
    }


def _throttle(nvml: Nvml, gpu: Gpu) -> int | None:
    """The mask, under the name that drivers since 535 have or the one before it."""
    api = nvml.api
    try:
        return int(api.nvmlDeviceGetCurrentClocksEventReasons(gpu.handle))
    except (api.NVMLError, AttributeError):
        what = f"throttle reasons of {gpu.device}"
        found = nvml.ask(what, "nvmlDeviceGetCurrentClocksThrottleReasons", gpu.handle)
        return None if found is None else int(found)
