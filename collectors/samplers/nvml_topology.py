"""What the GPUs of this machine are and how they reach one another, for meta.json. Not yet run on a GPU."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any, Final

from moescope.collectors.samplers.base import SamplerUnavailable
from moescope.collectors.samplers.nvml_devices import Gpu, gpus_of
from moescope.collectors.samplers.nvml_library import Nvml
from moescope.collectors.samplers.nvml_links import active_links, link_speeds, pcie_rate
from moescope.collectors.samplers.nvml_units import TOPOLOGY

SWITCH: Final = "NVSwitch"
_GPU_END, _SWITCH_END = 0, 2
_SM_CLOCK, _MEMORY_CLOCK = 1, 2


def describe_gpus() -> dict[str, Any]:
    """`gpus`, their names; `gpu_devices`, `gpu_topology`, `driver`; where there are none, null and the reason."""
    try:
        nvml = Nvml()
    except SamplerUnavailable as error:
        return {"gpus": None, "gpus_reason": str(error)}
    try:
        found = gpus_of(nvml)
        ends = {gpu.device: _link_ends(nvml, gpu) for gpu in found}
        return {
            "gpus": [gpu.name for gpu in found],
            "driver": nvml.ask("driver version", "nvmlSystemGetDriverVersion"),
            "gpu_devices": [_facts(nvml, gpu) for gpu in found],
            "gpu_topology": [_pair(nvml, a, b, ends) for a, b in combinations(found, 2)],
        }
    except SamplerUnavailable as error:
        return {"gpus": None, "gpus_reason": str(error)}
    finally:
        nvml.close()


def _facts(nvml: Nvml, gpu: Gpu) -> dict[str, Any]:
    """One GPU; null where it does not tell. Rates are of one direction."""

    def ask(question: str, *arguments: Any) -> Any:
        return nvml.ask(f"facts of {gpu.device}", question, gpu.handle, *arguments)

    links = active_links(nvml, gpu)
    speeds = [speed for speed in link_speeds(nvml, gpu, links).values() if speed is not None]
    pcie = pcie_rate(nvml, gpu)
    memory, limit = ask("nvmlDeviceGetMemoryInfo"), ask("nvmlDeviceGetEnforcedPowerLimit")
    clocks = [ask("nvmlDeviceGetMaxClockInfo", kind) for kind in (_SM_CLOCK, _MEMORY_CLOCK)]
    capability, mode, ecc = (
        ask("nvmlDeviceGetCudaComputeCapability"),
        ask("nvmlDeviceGetMigMode"),
        ask("nvmlDeviceGetEccMode"),
    )
    return {
        "device": gpu.device,
        "index": gpu.index,
        "uuid": gpu.uuid,
        "name": gpu.name,
        "bus_id": bus_id(ask("nvmlDeviceGetPciInfo")),
        "compute_capability": None if capability is None else f"{capability[0]}.{capability[1]}",
        "memory_bytes": None if memory is None else memory.total,
        "power_limit_w": None if limit is None else limit / 1000,
        "clock_limit_hz": None if clocks[0] is None else clocks[0] * 1_000_000,
        "memory_clock_limit_hz": None if clocks[1] is None else clocks[1] * 1_000_000,
        "nvlinks": len(links),
        "nvlink_bytes_per_s": sum(speeds) if speeds and len(speeds) == len(links) else None,
        "pcie": None if pcie is None else f"gen {pcie[0]} x{pcie[1]}",
        "pcie_bytes_per_s": None if pcie is None else pcie[2],
        "mig": None if mode is None else bool(mode[0]),
        "ecc": None if ecc is None else bool(ecc[0]),
    }


def bus_id(pci: Any) -> str:
    """`00000000:1B:00.0` of an nvmlPciInfo_t; empty for None."""
    if pci is None:
        return ""
    text = pci.busId.decode(errors="replace") if isinstance(pci.busId, bytes) else str(pci.busId)
    return text.upper()


def _link_ends(nvml: Nvml, gpu: Gpu) -> Counter[str]:
    """What the NVLinks of a GPU lead to, `NVSwitch` or a bus id, and how many do."""
    found: Counter[str] = Counter()
    for link in active_links(nvml, gpu):
        what = f"far ends of NVLinks of {gpu.device}"
        kind = nvml.ask(what, "nvmlDeviceGetNvLinkRemoteDeviceType", gpu.handle, link)
        if kind == _SWITCH_END:
            found[SWITCH] += 1
        elif kind == _GPU_END:
            found[bus_id(nvml.ask(what, "nvmlDeviceGetNvLinkRemotePciInfo", gpu.handle, link))] += 1
    return found


def _pair(nvml: Nvml, a: Gpu, b: Gpu, ends: Mapping[str, Counter[str]]) -> dict[str, Any]:
    """How two GPUs reach one another, and by how many NVLinks."""
    far = bus_id(nvml.ask("facts", "nvmlDeviceGetPciInfo", b.handle))
    found = nvlinks_between(ends[a.device], ends[b.device], far)
    if found is not None:
        by, links = found
        return {"a": a.device, "b": b.device, "by": by, "nvlinks": links}
    level = nvml.ask(f"way from {a.device} to {b.device}", "nvmlDeviceGetTopologyCommonAncestor", a.handle, b.handle)
    return {"a": a.device, "b": b.device, "by": TOPOLOGY.get(level) if level is not None else None, "nvlinks": 0}


def nvlinks_between(a: Counter[str], b: Counter[str], far: str) -> tuple[str, int] | None:
    """`NVLink` or `NVSwitch`, and the links that the way has; None where there is neither.

    a, b: what the links of each GPU lead to; far: b's bus id
    """
    if far and a[far]:
        return "NVLink", a[far]
    return (SWITCH, min(a[SWITCH], b[SWITCH])) if a[SWITCH] and b[SWITCH] else None


def words(topology: Sequence[Mapping[str, Any]]) -> str:
    """`8 GPUs, all by NVSwitch` or `cuda:0-cuda:1 NVLink`, for people."""
    ways = {pair["by"] or "–" for pair in topology}
    if len(ways) == 1:
        return f"all by {ways.pop()}"
    return ", ".join(f"{pair['a']}-{pair['b']} by {pair['by'] or '–'}" for pair in topology)
