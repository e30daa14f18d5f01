"""What samples say of a run's GPUs and links over all of it: use by counter, what held clocks, shares of line rates.

The counter of tensor cores stands here for each GPU, and for each rank in `matrix_use`: never mixed with what was
achieved of a peak.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.collectors.schema import THROTTLED

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

SHARES: Final = (
    "tensor_active", "hmma_active", "imma_active", "dmma_active", "dfma_active", "sm_active", "occupancy",
    "dram_active", "gpu_busy",
)  # fmt: skip
RATES: Final = ("fp8_ops_per_s",)
MEANS: Final = ("power_w", "clock_hz")
MOSTS: Final = ("temperature_c", "memory_bytes", "memory_total_bytes")
ERRORS: Final = ("ecc_corrected", "ecc_uncorrected")
NOT_TOLD: Final = "the GPU does not tell it, or refused: the log says why"
_NO_GPUS: Final = "no samples of a GPU"
_NO_LINKS: Final = "no samples of links, or only one of each"
_NS_PER_S: Final = 1e9


@dataclass(frozen=True, slots=True)
class HostUse:
    """Entries of the answer's `gpus` and `links` of some hosts."""

    gpus: tuple[dict[str, Any], ...] = ()
    links: tuple[dict[str, Any], ...] = ()


def host_use(source: Source) -> HostUse:
    """Of every host that the source has samples of."""
    gpus = [_gpu(host, device, rows) for (host, device), rows in _grouped(source.table("device_samples"), "device")]
    links = [_link(host, link, rows) for (host, link), rows in _grouped(source.table("link_samples"), "link")]
    return HostUse(tuple(one for one in gpus if one is not None), tuple(one for one in links if one is not None))


def told_of_devices(uses: list[HostUse]) -> dict[str, Any]:
    """`gpus` and `links` of the answer, null with a reason where there are none."""
    answer: dict[str, Any] = {}
    for key, reason in (("gpus", _NO_GPUS), ("links", _NO_LINKS)):
        found = [entry for use in uses for entry in getattr(use, key)]
        answer[key] = sorted(found, key=lambda entry: (entry["host"], _natural(entry.get("device") or entry["link"])))
        if not found:
            answer |= {key: None, f"{key}_reason": reason}
    return answer


def _natural(name: str) -> tuple[str, ...]:
    """Sorts `cuda:10` after `cuda:9`."""
    return tuple(part.zfill(6) if part.isdigit() else part for part in name.replace(".", ":").split(":"))


def _grouped(samples: pa.Table, by: str) -> list[tuple[tuple[str, str], pa.Table]]:
    """Rows of each host's device or link, the oldest first."""
    import pyarrow.compute as pc

    found = []
    keys = samples.select(["host", by]).group_by(["host", by]).aggregate([]).to_pylist() if samples.num_rows else []
    for key in keys:
        if key["host"] is None or key[by] is None:
            continue
        own = pc.and_(pc.equal(samples.column("host"), key["host"]), pc.equal(samples.column(by), key[by]))
        found.append(((key["host"], key[by]), samples.filter(own).sort_by("t_ns")))
    return found


def _gpu(host: str, device: str, rows: pa.Table) -> dict[str, Any] | None:
    """One GPU. Shares and rates are means over time; `throttled_share` and `throttle` are shares of the samples."""
    if device.startswith("cpu"):
        return None
    spans = floats_of(rows, "span_ns")
    entry: dict[str, Any] = {"host": host, "device": device, "samples": rows.num_rows}
    for column in SHARES + RATES:
        entry |= _told(column, mean_by_weight(floats_of(rows, column), spans))
    for column in MEANS:
        entry |= _told(column, mean_by_weight(floats_of(rows, column), np.ones(rows.num_rows)))
    for column in MOSTS:
        known = _known(floats_of(rows, column))
        entry |= _told(column, float(known.max()) if len(known) else None)
    for column in ERRORS:
        known = _known(floats_of(rows, column))
        entry |= _told(column, int(_grown(known.astype(np.int64)).sum()) if len(known) else None)
    return entry | _throttle(rows) | {"evidence": "measured"}


def _told(key: str, value: float | None) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": NOT_TOLD}


def floats_of(rows: pa.Table, column: str) -> NDArray[np.float64]:
    """[rows], NaN where null."""
    import pyarrow as pa

    return np.asarray(rows.column(column).cast(pa.float64()).to_numpy(), np.float64)


def _known(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[np.isfinite(values)]


def mean_by_weight(values: NDArray[np.float64], weights: NDArray[np.float64]) -> float | None:
    """Mean by weight of what is known; what has no weight counts as one sample among such."""
    known = np.isfinite(values)
    heavy = known & np.isfinite(weights) & (weights > 0)
    if heavy.any():
        return float(np.average(values[heavy], weights=weights[heavy]))
    return float(values[known].mean()) if known.any() else None


def _throttle(rows: pa.Table) -> dict[str, Any]:
    told = [text for text in rows.column("throttle").to_pylist() if text is not None]
    if not told:
        return _told("throttled_share", None) | _told("throttle", None)
    words = [set(filter(None, text.split(", "))) for text in told]
    counts = {word: sum(word in one for one in words) for word in THROTTLED}
    return {
        "throttled_share": sum(not one.isdisjoint(THROTTLED) for one in words) / len(words),
        "throttle": {word: count / len(words) for word, count in counts.items() if count},
    }


def _link(host: str, link: str, rows: pa.Table) -> dict[str, Any] | None:
    """One link; `busiest` is the highest rate between two samples."""
    rows = rows.select(["t_ns", "tx_bytes", "rx_bytes", "peak_bytes_per_s"])
    times = rows.column("t_ns").to_numpy()
    if len(times) < 2 or times[-1] <= times[0]:
        return None
    peaks = _known(floats_of(rows, "peak_bytes_per_s"))
    peak = float(peaks[-1]) if len(peaks) and peaks[-1] > 0 else None
    seconds = (times[-1] - times[0]) / _NS_PER_S
    entry: dict[str, Any] = {"host": host, "link": link, "span_us": float(times[-1] - times[0]) / 1000}
    for way in ("tx", "rx"):
        grown = _grown(rows.column(f"{way}_bytes").fill_null(0).to_numpy())
        apart = np.maximum(np.diff(times), 1) / _NS_PER_S
        mean, busiest = float(grown.sum() / seconds), float((grown / apart).max())
        entry |= {
            f"{way}_bytes": int(grown.sum()),
            f"{way}_bytes_per_s": mean,
            f"{way}_busiest_bytes_per_s": busiest,
            f"{way}_peak_share": mean / peak if peak else None,
        }
    entry["peak_bytes_per_s"] = peak
    if peak is None:
        why = "the device does not tell its line rate"
        entry |= dict.fromkeys(("peak_bytes_per_s_reason", "tx_peak_share_reason", "rx_peak_share_reason"), why)
    return entry | {"evidence": "derived"}


def _grown(totals: NDArray[np.int64]) -> NDArray[np.int64]:
    """Growth from sample to sample; a counter that fell was reset and counts from zero."""
    steps = np.diff(totals)
    return np.where(steps < 0, totals[1:], steps)
