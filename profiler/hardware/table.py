"""What a device can do: dense peaks by type, memory, units and links, each figure with the document it comes from.

The figures stand in `hardware.toml` beside this file. A device that is not in there is not guessed at.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

from moescope.collectors.schema import EVIDENCE

_FILE: Final = Path(__file__).with_name("hardware.toml")
_SLICE: Final = re.compile(r"\bMIG\b", re.IGNORECASE)
_FALLBACKS: Final = {"fp8_e4m3": ("fp8",), "fp8_e5m2": ("fp8",), "u8": ("i8",)}
"""Types that a peak of another name is for."""

_MOST_UNITS: Final = 1 << 16
"""A device with more execution units is a damaged file."""

_EMULATED: Final = ("bf16", "f32")
"""What stands in, in this order, for a type that a CPU computes by way of another."""


@dataclass(frozen=True, slots=True)
class Peak:
    """A rate or size of one device, one direction where it is a link.

    value: FLOP/s, bytes/s or bytes; source: the document and what was done to the figure it prints
    """

    value: float
    source: str
    evidence: str = "modelled"


@dataclass(frozen=True, slots=True)
class UnitLimits:
    """What one execution unit holds at once; None where that is not known.

    warp: threads that share an instruction; reserved_bytes: shared memory that the system takes for each block
    """

    threads: int
    ctas: int | None
    registers: int | None
    shared_bytes: int | None
    reserved_bytes: int
    warp: int = 32


@dataclass(frozen=True, slots=True)
class Hardware:
    """One device.

    name: as the table calls it, else as the source does; flops: peak by type (`fp8`, `bf16`, `tf32` …), dense;
    memory_bytes_per_s, memory_bytes: None where not known; units: SMs, compute units or cores; links: by name, one
    direction; reason: why figures are missing, empty where none is; sharing: ranks that share these peaks
    """

    name: str
    kind: str
    flops: Mapping[str, Peak]
    memory_bytes_per_s: Peak | None
    memory_bytes: Peak | None
    units: int | None
    unit_limits: UnitLimits | None
    links: Mapping[str, Peak]
    reason: str = ""
    sharing: float = 1.0

    def peak(self, dtype: str) -> Peak | None:
        """Peak FLOP/s of one rank for products of this type; None where the device has none or it is not known.

        A CPU computes narrow types by way of wider ones, whose peaks stand in.
        """
        order = (dtype, *_FALLBACKS.get(dtype, ()), *(_EMULATED if self.kind == "core" else ()))
        found = next((self.flops[name] for name in order if name in self.flops), None)
        return found if found is None else replace(found, value=found.value / self.sharing)

    @property
    def bytes_per_s(self) -> float | None:
        """Memory bandwidth of one rank, bytes/s."""
        return self.memory_bytes_per_s.value / self.sharing if self.memory_bytes_per_s is not None else None


def unknown_hardware(name: str, reason: str, kind: str = "sm") -> Hardware:
    """A device of which nothing is known."""
    return Hardware(name, kind, {}, None, None, None, None, {}, reason)


def hardware_named(name: str, units: int | None = None) -> Hardware | None:
    """The device of this name (`NVIDIA H100 80GB HBM3`, `AMD Instinct MI300X`); None where the table has none.

    units: as the source tells; they decide between devices of a family where the name leaves that open
    """
    if not name or _SLICE.search(name):
        return None
    for device in _devices():
        if any(pattern.search(name) for pattern in device.match):
            return device.hardware
    family = [device.hardware for device in _devices() if any(pattern.search(name) for pattern in device.family)]
    return next((one for one in family if one.units == units), family[0] if family else None)


PeaksFrom = Literal["data-sheet", "measured"]
"""Where peaks of a GPU come from where both are known: its maker's document, or `moescope calibrate` on it."""

_chosen: PeaksFrom = "data-sheet"


def use_peaks(which: PeaksFrom) -> None:
    """Which peaks are taken from now on, in this process."""
    global _chosen
    _chosen = which


def peaks_from(*, other: bool = False) -> PeaksFrom:
    """Which peaks are taken, or which are not."""
    return _chosen if not other else "measured" if _chosen == "data-sheet" else "data-sheet"


def hardware_of(
    meta: Mapping[str, Any], rank: int, device: str, ranks: int = 1, peaks: PeaksFrom | None = None
) -> Hardware:
    """The device that a rank ran on: what the source tells of it, over what the table knows of its name.

    meta: of a recording or trace; ranks: of the run, who share a host's peaks on the CPU backend; peaks: which of a
    GPU's to take where both are known, None for what `use_peaks` says. What was not measured is the document's
    """
    if device.startswith("cpu"):
        return _this_cpu(meta, ranks)
    properties = _properties(meta, rank, device)
    told = _count(properties.get("numSms", _hardware(meta).get("sms")), _MOST_UNITS)
    name = _name(meta, properties, device)
    known, measured = hardware_named(name, told), _measured(meta, name)
    if known is None:
        known = measured or unknown_hardware(name or device, _not_known(name))
    elif measured is not None and (peaks or _chosen) == "measured":
        memory = measured.memory_bytes_per_s or known.memory_bytes_per_s
        known = replace(known, flops={**known.flops, **measured.flops}, memory_bytes_per_s=memory)
    return replace(known, units=told or known.units, unit_limits=_limits_told(properties, known.unit_limits))


def _measured(meta: Mapping[str, Any], name: str) -> Hardware | None:
    """A GPU as `moescope calibrate` measured it; None where it did not."""
    listed = _hardware(meta).get("gpu_peaks")
    for entry in listed if isinstance(listed, list) else ():
        if not name or not isinstance(entry, Mapping) or entry.get("name") != name:
            continue
        told = {key: _told_peak(entry.get(key)) for key in ("fp8", "bf16", "copy_bytes_per_s")}
        flops = {key: peak for key in ("fp8", "bf16") if (peak := told[key]) is not None}
        if flops:
            return Hardware(name, "sm", flops, told["copy_bytes_per_s"], None, None, None, {})
    return None


def _told_peak(entry: object) -> Peak | None:
    if not isinstance(entry, Mapping):
        return None
    value = entry.get("flops_per_s", entry.get("value"))
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
        return None
    return Peak(float(value), str(entry.get("source", "meta.json")), "measured")


def link_rates() -> dict[str, Peak]:
    """Line rates of links that belong to no device, one direction: `pcie5`, `infiniband_ndr` …"""
    return {name: _peak(figure, 1e9) for name, figure in _table()["links"].items()}


def _not_known(name: str) -> str:
    if not name:
        return "the source does not tell the device's name"
    if _SLICE.search(name):
        return f"{name} is a slice of a device, for which no document tells peaks"
    return f"no peaks of {name} in the hardware table (profiler/hardware/hardware.toml)"


def _hardware(meta: Mapping[str, Any]) -> Mapping[str, Any]:
    found = meta.get("hardware")
    return found if isinstance(found, Mapping) else {}


def _properties(meta: Mapping[str, Any], rank: int, device: str) -> Mapping[str, Any]:
    for entry in meta.get("ranks") or ():
        if isinstance(entry, Mapping) and entry.get("rank") == rank:
            listed = entry.get("device_properties")
            found = listed.get(device) if isinstance(listed, Mapping) else None
            return found if isinstance(found, Mapping) else {}
    return {}


def _name(meta: Mapping[str, Any], properties: Mapping[str, Any], device: str) -> str:
    if isinstance(properties.get("name"), str):
        return str(properties["name"])
    hardware = _hardware(meta)
    listed = hardware.get("gpus")
    number = device.rpartition(":")[2]
    if isinstance(listed, list) and number.isdigit() and int(number) < len(listed):
        return str(listed[int(number)])
    return str(hardware.get("gpu", ""))


def _count(value: object, most: int = 2**62) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most else None


def _limits_told(properties: Mapping[str, Any], known: UnitLimits | None) -> UnitLimits | None:
    """The unit's limits by compute capability, and what the trace's `deviceProperties` tell over them."""
    if known is None:
        known = _units().get(f"{properties.get('computeMajor')}.{properties.get('computeMinor')}")
    threads = _count(properties.get("maxThreadsPerMultiprocessor"))
    if known is None:
        if threads is None:
            return None
        known = UnitLimits(threads, None, None, None, 0)
    return replace(
        known,
        threads=threads or known.threads,
        registers=_count(properties.get("regsPerMultiprocessor")) or known.registers,
        shared_bytes=_count(properties.get("sharedMemPerMultiprocessor")) or known.shared_bytes,
        warp=_count(properties.get("warpSize")) or known.warp,
    )


def _this_cpu(meta: Mapping[str, Any], ranks: int) -> Hardware:
    """The processor as `moescope calibrate` measured it, its peaks shared by the host's ranks."""
    hardware = _hardware(meta)
    hosts = {entry.get("host") for entry in meta.get("ranks") or () if isinstance(entry, Mapping)}
    listed = hardware.get("peaks")
    flops: dict[str, Peak] = {}
    memory: Peak | None = None
    for name, entry in listed.items() if isinstance(listed, Mapping) else ():
        table = entry if isinstance(entry, Mapping) else {"value": entry}
        value = table.get("flops_per_s", table.get("bytes_per_s", table.get("value")))
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            continue
        label = table.get("evidence")
        peak = Peak(float(value), str(table.get("source", "meta.json")), label if label in EVIDENCE else "modelled")
        if "bytes" in name:
            memory = memory or peak
        else:
            flops[str(name)] = peak
    reason = "" if flops and memory else str(hardware.get("peaks_reason", "not measured: run `moescope calibrate`"))
    size = _count(hardware.get("memory_bytes"))
    return Hardware(
        name=str(hardware.get("cpu", "this CPU")),
        kind="core",
        flops=flops,
        memory_bytes_per_s=memory,
        memory_bytes=Peak(size, "the system", "measured") if size else None,
        units=_count(hardware.get("cores")),
        unit_limits=None,
        links={},
        reason=reason,
        sharing=max(ranks / max(len(hosts), 1), 1.0),
    )


@dataclass(frozen=True, slots=True)
class _Device:
    hardware: Hardware
    match: tuple[re.Pattern[str], ...]
    family: tuple[re.Pattern[str], ...]


@cache
def _table() -> dict[str, Any]:
    return tomllib.loads(_FILE.read_text(encoding="utf-8"))


def _peak(figure: Mapping[str, Any], unit: float) -> Peak:
    over = figure.get("over", 1)
    told = f"{figure['told']:g}" + (f" / {over:g}" if over != 1 else "")
    why = f": {figure['why']}" if "why" in figure else ""
    return Peak(figure["told"] * unit / over, f"{_table()['sources'][figure['source']]} ({told}{why})")


@cache
def _units() -> dict[str, UnitLimits]:
    return {
        name: UnitLimits(
            entry["threads"], entry.get("ctas"), entry.get("registers"), entry.get("shared_bytes"),
            entry["reserved_bytes"], entry.get("warp", 32),
        )
        for name, entry in _table()["unit"].items()
    }  # fmt: skip


@cache
def _devices() -> tuple[_Device, ...]:
    return tuple(_device(entry) for entry in _table()["device"])


def _device(entry: Mapping[str, Any]) -> _Device:
    memory = entry.get("memory", {})
    hardware = Hardware(
        name=entry["name"],
        kind="sm",
        flops={name: _peak(figure, 1e12) for name, figure in entry.get("flops", {}).items()},
        memory_bytes_per_s=_peak(memory["bandwidth"], 1e12) if "bandwidth" in memory else None,
        memory_bytes=_peak(memory["size"], 1e9) if "size" in memory else None,
        units=entry["units"]["told"] if "units" in entry else None,
        unit_limits=_units()[entry["unit"]],
        links={name: _peak(figure, 1e9) for name, figure in entry.get("links", {}).items()},
        reason="" if "flops" in entry else f"of {entry['name']} only the number of units is in the hardware table",
    )
    patterns = [tuple(re.compile(text, re.IGNORECASE) for text in entry.get(key, ())) for key in ("match", "family")]
    return _Device(hardware, patterns[0], patterns[1])


def all_hardware() -> tuple[Hardware, ...]:
    """Every device of the table, in its order."""
    return tuple(device.hardware for device in _devices())
