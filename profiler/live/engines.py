"""Gauges of the engines: what is used of what there is, from which counter, against which peak."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import EVIDENCE, THROTTLED
from moescope.profiler.growing.columns import NULL, Columns
from moescope.profiler.growing.kernels import NOT_RECORDED
from moescope.profiler.hardware.table import Peak as DevicePeak
from moescope.profiler.hardware.table import hardware_of, peaks_from
from moescope.profiler.live.state import LiveState
from moescope.profiler.snapshot import Engine, Evidence, Figure, LinkRow, Units


@dataclass(frozen=True, slots=True)
class Peak:
    """A hardware peak of one device and where it comes from."""

    name: str
    value: float
    evidence: Evidence
    source: str


def peaks(meta: Mapping[str, Any]) -> dict[str, Peak]:
    """`meta["hardware"]["peaks"]`: by name, a number or a table with `value`, `evidence` and `source`."""
    hardware = meta.get("hardware")
    listed = hardware.get("peaks") if isinstance(hardware, Mapping) else None
    items: list[tuple[str, Any]] = []
    if isinstance(listed, Mapping):
        items = [(str(name), value) for name, value in listed.items()]
    elif isinstance(listed, Sequence) and not isinstance(listed, str):
        entries = [entry for entry in listed if isinstance(entry, Mapping)]
        items = [(str(entry.get("name", entry.get("dtype", ""))), entry) for entry in entries]
    found: dict[str, Peak] = {}
    for name, entry in items:
        table: Mapping[str, Any] = entry if isinstance(entry, Mapping) else {"value": entry}
        value = table.get("value", table.get("flops_per_s", table.get("bytes_per_s")))
        if not isinstance(value, (int, float)) or isinstance(value, bool) or value <= 0:
            continue
        label = table.get("evidence")
        evidence: Evidence = label if label in EVIDENCE else "modelled"
        found[name] = Peak(name, float(value), evidence, str(table.get("source", "meta.json")))
    return found


def known_peaks(state: LiveState) -> dict[str, Peak]:
    """Peaks of the devices that the ranks run on.

    On the CPU backend those that were measured there. On GPUs those of the hardware table, or as `calibrate` measured
    them, as the view asks; limits of power and clock are taken as they stand in `meta.json`.
    """
    told = peaks(state.source.meta)
    if state.unit_kind == "core":
        return told
    for rank in state.rank_numbers():
        held = state.ranks.get(rank)
        if held is not None and held.devices:
            device = state.names.text(state.first_device(held), "")
            hardware = hardware_of(state.source.meta, rank, device, peaks=peaks_from(other=state.other_peaks))
            found = {name: Peak(name, peak.value, _label(peak), peak.source) for name, peak in hardware.flops.items()}
            memory = hardware.memory_bytes_per_s
            if memory is not None:
                found["hbm"] = Peak("hbm", memory.value, _label(memory), memory.source)
            return _limits(state.source.meta, told) | found
    return _limits(state.source.meta, told)


def peaks_note(state: LiveState) -> str:
    """What shares are of, where it is not what it says on a GPU's data sheet."""
    if state.unit_kind == "core" or peaks_from(other=state.other_peaks) == "data-sheet":
        return ""
    measured = any(peak.evidence == "measured" and name not in _LIMITS for name, peak in known_peaks(state).items())
    return "measured peak" if measured else "peak, not measured"


def _limits(meta: Mapping[str, Any], told: Mapping[str, Peak]) -> dict[str, Peak]:
    """Limits of power and clock: as GPUs tell them, where all tell the same, else as `meta.json` does."""
    found = {name: peak for name, peak in told.items() if name in _LIMITS}
    hardware = meta.get("hardware")
    listed = hardware.get("gpu_devices") if isinstance(hardware, Mapping) else None
    gpus = [gpu for gpu in listed if isinstance(gpu, Mapping)] if isinstance(listed, Sequence) else []
    for column, key in (("power_w", "power_limit_w"), ("clock_hz", "clock_limit_hz")):
        values = {gpu.get(key) for gpu in gpus}
        value = values.pop() if len(values) == 1 else None
        if isinstance(value, (int, float)) and value > 0:
            found[column] = Peak(column, float(value), "measured", "limit that the GPU tells")
    return found


def _label(peak: DevicePeak) -> Evidence:
    return cast(Evidence, peak.evidence) if peak.evidence in EVIDENCE else "modelled"


_LIMITS: Final = ("power_w", "clock_hz", "power", "clock")

_ALIASES: Final = {
    "fp8": ("fp8_e4m3", "fp8", "e4m3", "float8"),
    "bf16": ("bf16", "bfloat16"),
    "f32": ("f32", "fp32", "float32"),
    "f16": ("f16", "fp16", "float16", "half"),
    "f64": ("f64", "fp64", "float64"),
    "tf32": ("tf32",),
}


def peak_flops(known: Mapping[str, Peak], dtype: str, *, emulated: bool) -> Peak | None:
    """The peak that matrix products of `dtype` are measured against.

    emulated: FP8 is computed in bf16 or f32, as on the CPU backend, so their peaks stand in where FP8 has none
    """
    family = next((name for name, words in _ALIASES.items() if any(dtype.startswith(word) for word in words)), dtype)
    order = [family]
    if emulated:
        order += ["bf16", "f32"]
    for name in order:
        for word in (dtype, *_ALIASES.get(name, (name,))) if name == family else _ALIASES[name]:
            for key in (word, f"{word}_flops_per_s", f"flops_per_s_{word}", f"{word}_flops"):
                if key in known:
                    return known[key]
    return None


def memory_peak(known: Mapping[str, Peak]) -> Peak | None:
    """The peak of the device's memory, bytes/s."""
    for key in (
        "copy_bytes_per_s",
        "memory_bytes_per_s",
        "memory",
        "dram_bytes_per_s",
        "dram",
        "hbm_bytes_per_s",
        "hbm",
        "bytes_per_s",
    ):
        if key in known:
            return known[key]
    return None


@dataclass(frozen=True, slots=True)
class MatrixUse:
    """Matrix products of some ranks: operations a second, the peak, and the share of it."""

    used: Figure
    peak: Figure
    share: Figure
    source: str


def matrix_use(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> MatrixUse:
    """Achieved FLOP/s inside the ranks' recorded windows over the peak of each product's dtype (derived).

    The FLOP/s and the peak are of one rank; ranks on the CPU backend share their host's peak.
    """
    counted, source = _flops(state, ranks, window)
    span = sum(
        state.ranks[rank].recorded.length(*window) * max(len(state.ranks[rank].devices), 1)
        for rank in ranks
        if rank in state.ranks
    )
    if not counted or not span:
        reason = "no model emitted its FLOPs: see moescope.collectors.emit.work" if span else "nothing recorded"
        none = Figure(None, "derived", reason)
        return MatrixUse(none, none, none, "")
    total = sum(counted.values())
    used = Figure(total / span * 1e9, "derived")
    known = known_peaks(state)
    sharing = ranks_sharing(state)
    needed, names = 0.0, []
    for dtype, flops in counted.items():
        peak = peak_flops(known, dtype, emulated=state.unit_kind == "core")
        if peak is None:
            none = Figure(None, "derived", f"no peak for {dtype or 'unnamed dtype'} is known: run moescope calibrate")
            return MatrixUse(used, none, none, source)
        needed += flops * sharing / peak.value
        names.append(f"{peak.name} peak: {peak.source}")
    share = needed / (span / 1e9)
    mean_peak = total / needed if needed else 0.0
    source = " · ".join([source, *sorted(set(names))])
    return MatrixUse(used, Figure(mean_peak, "derived"), Figure(share, "derived"), source)


def ranks_sharing(state: LiveState) -> float:
    """How many ranks share one peak: all of a host on the CPU backend, where the peak is the whole host's; else 1."""
    return sharing_a_peak(state.source.meta, len(state.rank_numbers())) if state.unit_kind == "core" else 1.0


def sharing_a_peak(meta: Mapping[str, Any], ranks: int) -> float:
    """Ranks of one host, the mean over hosts: on the CPU backend they share its peak."""
    hosts = {entry.get("host") for entry in meta.get("ranks") or () if isinstance(entry, Mapping)}
    return max(ranks / max(len(hosts), 1), 1.0)


def _flops(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> tuple[dict[str, int], str]:
    """FLOPs by dtype inside the recorded windows: as the model says, else as the kernels say."""
    totals: dict[str, int] = {}
    work = state.tables["work"]
    for rank in ranks:
        held = state.ranks.get(rank)
        if held is None:
            continue
        pick = (work["rank"] == rank) & (work["t_ns"] >= window[0]) & (work["t_ns"] < window[1]) & (work["flops"] > 0)
        pick[pick] = held.recorded.holds(work["t_ns"][pick])
        for code in np.unique(work["dtype"][pick]).tolist():
            name = state.names.text(code)
            totals[name] = totals.get(name, 0) + int(work["flops"][pick & (work["dtype"] == code)].sum())
    if totals:
        return totals, "FLOPs the model emits"
    for rank in ranks:
        held = state.ranks.get(rank)
        if held is None or not held.kernels.size:
            continue
        kernels = held.kernels
        low, high = np.searchsorted(kernels["start"], window)
        known = (kernels["flops"][low:high] > 0) & (kernels["inside"][low:high] > NOT_RECORDED)
        for code in np.unique(kernels["dtype"][low:high][known]).tolist():
            own = known & (kernels["dtype"][low:high] == code)
            name = state.names.text(code)
            totals[name] = totals.get(name, 0) + int(kernels["flops"][low:high][own].sum())
    return totals, "FLOPs of the kernels"


def engine_rows(
    state: LiveState,
    matrix: MatrixUse,
    units: Units | None,
    links: Sequence[LinkRow],
    window: tuple[int, int],
) -> tuple[Engine, ...]:
    """Every gauge that this source feeds, all over the one window; one without a source is left out or says why.

    Rates and shares are means over the window; what is filled, as memory, is told at its end.
    """
    samples = state.tables["device_samples"]
    known = known_peaks(state)
    on_cpu = state.unit_kind == "core"
    rows = [Engine("Matrix units", matrix.used, matrix.peak, "FLOP/s", matrix.share, matrix.source or "not recorded")]
    names = [name for name in _device_names(state, samples) if "/" not in name]
    gpus = [name for name in names if not name.startswith("cpu")]
    # A host's cores beside its GPUs are another device: no mean over both.
    devices = [name for name in names if name.startswith("cpu")] if on_cpu else gpus
    noun = "Cores" if on_cpu else "SM"
    for column, name, source in (
        ("tensor_active", "Tensor counter", "share of cycles with a matrix unit active"),
        ("sm_active", f"{noun} busy", "host's CPU time" if on_cpu else "counter of SM activity"),
    ):
        share = _mean(state, samples, gpus if column == "tensor_active" else devices, column, window)
        if share is not None:
            rows.append(_shared(name, share, source))
    rows += _gpu_state(state, samples, gpus, window)
    if units is not None and (units.comm_time_share.value is not None or not on_cpu):
        whole = Figure(units.total) if units.total else Figure(None, reason="number of units not known")
        rows.append(
            Engine(
                f"{noun} comm",
                units.comm_typical,
                whole,
                "cores" if on_cpu else "SMs",
                units.comm_time_share,
                "units held by communication",
            )
        )
    dram = _mean(state, samples, devices, "dram_active", window)
    if dram is not None:
        peak = memory_peak(known)
        rows.append(
            Engine(
                "DRAM" if on_cpu else "HBM",
                Figure(dram * peak.value, "derived") if peak else Figure(None, reason="peak not known"),
                Figure(peak.value, peak.evidence) if peak else Figure(None, reason="run moescope calibrate"),
                "bytes/s",
                Figure(dram),
                "memory bandwidth counter" + (f" · {peak.source}" if peak else ""),
            )
        )
    memory = _filled(state, samples, devices, "memory_bytes", "memory_total_bytes", window)
    if memory is not None:
        rows.append(
            Engine(
                "Memory",
                Figure(memory[0]),
                Figure(memory[1]),
                "bytes",
                Figure(memory[0] / memory[1]),
                "memory in use at the end",
            )
        )
    rows += [_link_engine(link) for link in links if link.peak_bytes_per_s.value]
    for column, name, unit in (("power_w", "Power", "W"), ("clock_hz", "Clock", "Hz")):
        engine = _against_limit(state, samples, devices, column, name, unit, known, window)
        if engine is not None:
            rows.append(engine)
    return tuple(rows)


def _gpu_state(state: LiveState, samples: Columns, gpus: Sequence[str], window: tuple[int, int]) -> Iterator[Engine]:
    """Use of GPUs that tell no more than whether any kernel ran, and how often clocks were held down."""
    busy = _mean(state, samples, gpus, "gpu_busy", window)
    if busy is not None and _mean(state, samples, gpus, "sm_active", window) is None:
        yield _shared("GPU busy", busy, "time with any kernel, not how many SMs (NVML utilisation)")
    told = samples["throttle"][_within(state, samples, gpus, window)]
    told = told[told >= 0]
    if len(told):
        words = [set(state.names.text(code).split(", ")) for code in told.tolist()]
        held = sorted({word for one in words for word in one if word in THROTTLED})
        share = sum(not one.isdisjoint(THROTTLED) for one in words) / len(words)
        yield _shared("Throttled", share, f"samples with a clock held down: {', '.join(held)}" if held else "never")


def _within(state: LiveState, samples: Columns, devices: Sequence[str], window: tuple[int, int]) -> NDArray[np.bool_]:
    """Rows of these devices in the window: [rows]."""
    codes = [state.names.code(device) for device in devices]
    return np.isin(samples["device"], codes) & (samples["t_ns"] >= window[0]) & (samples["t_ns"] < window[1])


def _link_engine(link: LinkRow) -> Engine:
    rate, peak = link.tx_bytes_per_s, link.peak_bytes_per_s
    share = (
        Figure(rate.value / peak.value, "derived")
        if rate.value is not None and peak.value
        else Figure(None, "derived", rate.reason or peak.reason)
    )
    return Engine(f"{link.link} tx", rate, peak, "bytes/s", share, f"counter of {link.host} over its line rate")


def _shared(name: str, share: float, source: str) -> Engine:
    return Engine(name, Figure(share), Figure(1.0), "", Figure(share), source)


def _device_names(state: LiveState, samples: Columns) -> list[str]:
    return sorted(state.names.text(code) for code in np.unique(samples["device"]).tolist())


def _samples(
    state: LiveState, samples: Columns, devices: Sequence[str], column: str, window: tuple[int, int]
) -> dict[tuple[int, int], list[float]]:
    """Known values of each host's devices over the window's samples, the oldest first."""
    values = samples[column]
    pick = _within(state, samples, devices, window)
    pick &= ~np.isnan(values) if values.dtype == np.float64 else values != NULL
    if not pick.any():
        return {}
    found: dict[tuple[int, int], list[float]] = {}
    for host, device, value in zip(
        samples["host"][pick].tolist(), samples["device"][pick].tolist(), values[pick].tolist(), strict=True
    ):
        found.setdefault((host, device), []).append(float(value))
    return found


def _mean(
    state: LiveState, samples: Columns, devices: Sequence[str], column: str, window: tuple[int, int]
) -> float | None:
    found = _samples(state, samples, devices, column, window)
    return float(np.mean([np.mean(values) for values in found.values()])) if found else None


def _filled(
    state: LiveState, samples: Columns, devices: Sequence[str], used: str, whole: str, window: tuple[int, int]
) -> tuple[float, float] | None:
    held = _samples(state, samples, devices, used, window)
    there = _samples(state, samples, devices, whole, window)
    both = held.keys() & there.keys()
    total = sum(there[key][-1] for key in both)
    return (sum(held[key][-1] for key in both), total) if total > 0 else None


def _against_limit(
    state: LiveState,
    samples: Columns,
    devices: Sequence[str],
    column: str,
    name: str,
    unit: str,
    known: Mapping[str, Peak],
    window: tuple[int, int],
) -> Engine | None:
    """Power or clock; a share only where the limit is known."""
    mean = _mean(state, samples, devices, column, window)
    if mean is None:
        return None
    limit = known.get(column) or known.get(name.lower())
    if limit is None:
        none = Figure(None, reason="no limit is known")
        return Engine(name, Figure(mean), none, unit, none, f"device samples, {column}")
    return Engine(
        name,
        Figure(mean),
        Figure(limit.value, limit.evidence),
        unit,
        Figure(mean / limit.value, "derived"),
        f"device samples, {column} · {limit.source}",
    )
