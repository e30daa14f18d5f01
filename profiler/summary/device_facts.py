"""What else findings rest on, by device: gaps between kernels, casts that stand alone before products, the clock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import THROTTLED
from moescope.profiler.labels import labels_in
from moescope.profiler.overlap.intervals import subtract
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep, counted_ns
from moescope.profiler.ranks.facts import host_of

if TYPE_CHECKING:
    from moescope.profiler.source import Source

SHORT_GAP_NS: Final = 50_000
"""A gap this short is one between launches; what waits for input or another rank waits longer."""

_SAMPLED: Final = ["host", "device", "t_ns", "clock_hz", "power_w", "throttle"]
PRODUCTS: Final = ("gemm", "grouped_gemm")


def device_facts(source: Source, device: DeviceKernels, swept: Sweep) -> dict[str, Any]:
    """`gaps`, `casts` and `clock` of a rank's entry in `summary --json`; times µs."""
    return {"gaps": _gaps(swept), "casts": _casts(source, device, swept), **_clock(source, device, swept)}


def _gaps(swept: Sweep) -> dict[str, Any]:
    """Counted time without any kernel, in stretches."""
    idle = subtract(swept.recorded, swept.busy)
    sizes = np.sort(idle[1] - idle[0])
    short = sizes[sizes <= SHORT_GAP_NS]
    middle: dict[str, Any] = {"median_us": None, "median_us_reason": "no gap between kernels"}
    if len(sizes):
        middle = {"median_us": int(sizes[(len(sizes) - 1) // 2]) / 1000}
    return {
        "count": len(sizes),
        "short_count": len(short),
        "short_us": int(short.sum()) / 1000,
        "longest_us": int(sizes[-1]) / 1000 if len(sizes) else 0,
        **middle,
        "evidence": "derived",
    }


def _casts(source: Source, device: DeviceKernels, swept: Sweep) -> dict[str, Any]:
    """Quantisation kernels, and those of them that the next kernel of their stream but casts is a product behind."""
    import pyarrow as pa

    streams = labels_in(source.table("kernels").column("stream").take(pa.array(device.rows))).codes
    order = np.argsort(streams, kind="stable")
    casts = ((device.operators == "quantize") & (device.kinds == "compute"))[order]
    behind = _next_other(casts, streams[order])
    products = np.isin(device.operators, PRODUCTS)[order]
    before = casts & (behind >= 0) & products[np.maximum(behind, 0)]
    inside = counted_ns(device.starts, device.ends, swept.recorded)[order]
    return {
        "count": int(casts.sum()),
        "us": int(inside[casts].sum()) / 1000,
        "before_products": int(before.sum()),
        "before_products_us": int(inside[before].sum()) / 1000,
        "evidence": "inferred",
    }


def _next_other(casts: NDArray[np.bool_], streams: NDArray[Any]) -> NDArray[np.int64]:
    """Place of the next kernel on the same stream that is no cast: [kernels]; -1 where there is none."""
    count = len(casts)
    others = np.where(casts, count, np.arange(count))
    following = np.append(np.minimum.accumulate(others[::-1])[::-1], count)[1:]
    there = following < count
    same = np.zeros(count, np.bool_)
    same[there] = streams[np.flatnonzero(there)] == streams[following[there]]
    return np.where(same, following, -1)


def _clock(source: Source, device: DeviceKernels, swept: Sweep) -> dict[str, Any]:
    """Samples of the device's clock while its kernels ran: the mean, and that of the first and the last third."""
    import pyarrow.compute as pc

    samples = source.table("device_samples").select(_SAMPLED)
    host = host_of(source, device.rank)
    # Samples of counters alone may be a thousand a second, and have no clock.
    wanted = pc.and_(pc.equal(samples.column("device"), device.device), pc.greater(samples.column("clock_hz"), 0))
    if host:
        wanted = pc.and_(wanted, pc.equal(samples.column("host"), host))
    own = [
        row
        for row in samples.filter(wanted).to_pylist()
        if row["t_ns"] is not None and swept.window[0] <= row["t_ns"] < swept.window[1]
    ]
    if not own:
        return {"clock": None, "clock_reason": "no samples of its clock while kernels ran"}
    own.sort(key=lambda row: row["t_ns"])
    values = np.array([row["clock_hz"] for row in own], np.float64)
    third = max(len(values) // 3, 1)
    powers = [row["power_w"] for row in own if row["power_w"] is not None]
    power: dict[str, Any] = {"power_w": None, "power_w_reason": "no samples of its power"}
    return {
        "clock": {
            "mean_hz": float(values.mean()),
            "first_hz": float(values[:third].mean()),
            "last_hz": float(values[-third:].mean()),
            "samples": len(values),
            **({"power_w": float(np.mean(powers))} if powers else power),
            **_held(own),
            "evidence": "measured",
        }
    }


def _held(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of the samples in which something holds the clock back, by what, and the clocks then and otherwise."""
    told = [row for row in samples if row["throttle"] is not None]
    if not told:
        return {"held_share": None, "held_share_reason": "its samples do not tell what holds the clock"}
    by: dict[str, int] = {}
    held: list[int] = []
    free: list[int] = []
    for row in told:
        words = [word for word in (part.strip() for part in row["throttle"].split(",")) if word in THROTTLED]
        (held if words else free).append(row["clock_hz"])
        for word in words:
            by[word] = by.get(word, 0) + 1
    clocks: dict[str, Any] = {}
    for key, values in (("held_hz", held), ("free_hz", free)):
        known = {key: float(np.mean(values))} if values else {key: None, f"{key}_reason": "no sample of it"}
        clocks |= known
    return {
        "held_share": len(held) / len(told),
        "held_by": {word: count / len(told) for word, count in sorted(by.items(), key=lambda one: -one[1])},
        **clocks,
    }
