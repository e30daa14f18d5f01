"""Use of the matrix units: by their counter, and by the operations achieved against the peak of their type.

The two are never mixed: the counter tells how long the units were busy, the other what the busy time was worth.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from moescope.profiler.hardware.samples import floats_of, mean_by_weight
from moescope.profiler.hardware.table import Hardware
from moescope.profiler.labels import Labels
from moescope.profiler.overlap.intervals import covered_within
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.roofline.answer import DeviceRoofline, products_done
from moescope.profiler.roofline.operands import dtype_named

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source


def matrix_use(source: Source, device: DeviceKernels, swept: Sweep, roofline: DeviceRoofline) -> dict[str, Any]:
    """`matrix_use` of one device: `achieved` (derived) and `counter` (measured), each null with a reason.

    Operations are those that the model tells (`work`), else those of the kernels; `flops_known_share` says how much of
    the products' time their operations are known for: below 1, `achieved` is a lower bound.
    """
    return _achieved(source, device, swept, roofline) | _counter(source, device, swept) | {"evidence": "derived"}


def _achieved(source: Source, device: DeviceKernels, swept: Sweep, roofline: DeviceRoofline) -> dict[str, Any]:
    counted, share = _told_by_model(source.table("work"), device.rank, swept), 1.0
    if not counted:
        done = products_done(roofline)
        if done.known_share is None:
            return _unknown(None, "no matrix products were recorded", done.known_share)
        if not done.flops:
            return _unknown(None, _why(roofline), done.known_share)
        counted, share = done.flops, done.known_share
    if not swept.span_ns:
        return _unknown(None, "nothing was recorded", share)
    seconds = swept.span_ns / 1e9
    achieved = sum(counted.values()) / seconds
    hardware, at_peak, by_dtype = roofline.hardware, 0.0, {}
    for dtype, flops in counted.items():
        peak = hardware.peak(dtype_named(dtype) or dtype)
        if peak is None:
            return _unknown(achieved, _no_peak(hardware, dtype), share)
        at_peak += flops / peak.value
        by_dtype[dtype or "unnamed"] = {"flops": flops, "peak_flops_per_s": peak.value, "peak_source": peak.source}
    return {
        "achieved": at_peak / seconds,
        "flops_per_s": achieved,
        "flops_known_share": share,
        "by_dtype": by_dtype,
    }


def _told_by_model(work: pa.Table, rank: int, swept: Sweep) -> dict[str, float]:
    """Operations by type that the model emitted inside the counted time."""
    if not work.num_rows:
        return {}
    times = work.column("t_ns").to_numpy()
    own = (work.column("rank").to_numpy() == rank) & (covered_within(swept.recorded, times, times + 1) > 0)
    rows = work.filter(own)
    counted: dict[str, float] = {}
    for flops, dtype in zip(rows.column("flops").to_pylist(), rows.column("dtype").to_pylist(), strict=True):
        if flops:
            counted[dtype or ""] = counted.get(dtype or "", 0) + flops
    return counted


def _unknown(flops_per_s: float | None, reason: str, share: float | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"achieved": None, "achieved_reason": reason, "flops_per_s": flops_per_s}
    if flops_per_s is None:
        answer["flops_per_s_reason"] = reason
    answer["flops_known_share"] = share
    return answer | ({"flops_known_share_reason": reason} if share is None else {})


def _why(roofline: DeviceRoofline) -> str:
    """Why no operations are known: the reason that holds for most of the products' time."""
    work = roofline.work
    reasons = Labels(work.reasons.codes[work.products], work.reasons.texts).weights(roofline.inside[work.products])
    return max(reasons, key=lambda pair: pair[1])[0] or "its products have no operations"


def _no_peak(hardware: Hardware, dtype: str) -> str:
    if hardware.reason:
        return hardware.reason
    return f"no peak of {hardware.name} for {dtype or 'products of an unnamed type'} is known"


def _counter(source: Source, device: DeviceKernels, swept: Sweep) -> dict[str, Any]:
    """Mean by time of the device's samples of its matrix units' counter inside the counted time."""
    import pyarrow.compute as pc

    rows = source.table("device_samples").select(["host", "device", "t_ns", "tensor_active", "uuid", "span_ns"])
    host, uuid = _host(source.meta, device.rank), _uuid(source.meta, device.rank, device.device)
    told = rows.column("tensor_active")
    wanted = pc.and_(pc.greater_equal(told, 0), pc.less_equal(told, 1))
    wanted = pc.and_(wanted, pc.equal(rows.column("uuid" if uuid else "device"), uuid or device.device))
    if host is not None:
        wanted = pc.and_(wanted, pc.equal(rows.column("host"), host))
    rows = rows.filter(wanted)
    times = rows.column("t_ns").to_numpy()
    inside = covered_within(swept.recorded, times, times + 1) > 0
    if not inside.any():
        return {"counter": None, "counter_reason": "no samples of a counter of the device's matrix units"}
    mean = mean_by_weight(floats_of(rows, "tensor_active")[inside], floats_of(rows, "span_ns")[inside])
    return {"counter": mean, "counter_evidence": "measured", "counter_samples": int(inside.sum())}


def _uuid(meta: Mapping[str, Any], rank: int, device: str) -> str | None:
    """Which GPU the rank calls so, where that was told: ranks that see different GPUs call each of them `cuda:0`."""
    for entry in meta.get("ranks") or ():
        if isinstance(entry, Mapping) and entry.get("rank") == rank and isinstance(entry.get("gpus"), Mapping):
            found = entry["gpus"].get(device)
            return found if isinstance(found, str) else None
    return None


def _host(meta: Mapping[str, Any], rank: int) -> str | None:
    for entry in meta.get("ranks") or ():
        if isinstance(entry, Mapping) and entry.get("rank") == rank and isinstance(entry.get("host"), str):
            return str(entry["host"])
    return None
