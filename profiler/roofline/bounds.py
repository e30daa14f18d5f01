"""What bounds a kernel: the matrix units, the memory, its own latency, or a link; and the share of the roof it reached.

Where operations and bytes are known, the roof is the longer of operations / peak and bytes / bandwidth. A kernel that
reaches half of its roof is bound by that part of it. One that does not is bound by `latency` where it is too short, or
holds too few units, to reach any roof; else the part it is nearest to is named, and the share says how far away it is.

Where they are not known, the launch shape and what the class of the kernel does at least can still tell: those bounds
are `inferred`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.hardware.table import Hardware
from moescope.profiler.labels import Labels, labels_of
from moescope.profiler.overlap.intervals import Times
from moescope.profiler.overlap.sweep import DeviceKernels
from moescope.profiler.roofline.operands import ITEM_BYTES
from moescope.profiler.roofline.work import Floats, KernelWork

BOUNDS: Final = ("tensor", "memory", "latency", "link")
NEAR_ROOF: Final = 0.5
"""From this share of its roof on, a kernel is bound by it."""

SHORT_NS: Final = 5_000
"""Starting, filling and draining a device takes a kernel a few µs, whatever it does: shorter ones reach no roof."""

START_NS: Final = 2_500
"""A kernel whose work takes less than this at the roof spends most of its time on starting and ending."""

FEW_UNITS: Final = 0.5
"""A kernel on less than this share of the units can use neither the device's operations nor its bandwidth."""

STREAMING: Final = frozenset(
    {
        "elementwise", "norm", "activation", "quantize", "rope", "softmax", "reduce", "index", "embedding", "optimizer",
        "routing", "random", "loss", "sort", "sampling", "memcpy", "view",
    }
)  # fmt: skip
"""Classes that do a few operations with every byte: far under the ridge of any device."""

_HOST_COPY: Final = (
    "htod", "dtoh", "host -> device", "device -> host", "device -> pinned", "pinned -> device", "hosttodevice",
    "devicetohost",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Bounds:
    """[kernels] each, in the order of `DeviceKernels`.

    names: one of BOUNDS, "" where not known; evidence: `derived` or `inferred`; reasons: why not known, else what the
    bound was told by; roof_ns: least time on this device, NaN where not known
    """

    names: Labels
    evidence: Labels
    reasons: Labels
    roof_ns: Floats

    def put(self, rows: NDArray[np.bool_], bound: str, evidence: str, reason: str) -> None:
        """Say what bounds these kernels."""
        self.names.put(rows, bound)
        self.evidence.put(rows, evidence)
        self.reasons.put(rows, reason)


def kernel_bounds(
    kernels: DeviceKernels, names: Labels, work: KernelWork, hardware: Hardware, units: Times, tokens: Floats
) -> Bounds:
    """Bound of every kernel.

    names: of the kernels; units: [kernels] units that each holds at most, 0 where not known; tokens: [kernels] the most
    tokens that share a weight in it, NaN where not known
    """
    kinds = labels_of(kernels.kinds)
    none = np.zeros(len(kernels.starts), np.int64)
    found = Bounds(
        Labels(none, ["", *BOUNDS]),
        Labels(none.copy(), ["inferred", "derived"]),
        work.reasons.copy(),
        np.full(len(none), np.nan),
    )
    took = np.maximum(kernels.ends - kernels.starts, 1).astype(np.float64)
    compute = kinds.are("compute")
    at_peak, at_bandwidth = _roof_parts(work, hardware)
    known = (compute | kinds.are("memory")) & ~np.isnan(at_peak) & ~np.isnan(at_bandwidth)
    found.roof_ns[known] = np.maximum(at_peak, at_bandwidth)[known]
    short, few = took <= SHORT_NS, (units > 0) & (units < FEW_UNITS * (hardware.units or 0))
    _communication(kinds, names, found)
    reached = np.divide(found.roof_ns, took, out=np.full(len(took), np.nan), where=known)
    starved = known & ~(reached >= NEAR_ROOF) & (short | few | (found.roof_ns < START_NS))
    found.put(starved, "latency", "derived", "it has too little to do, or holds too few units, to reach a roof")
    by_peak = at_peak >= at_bandwidth
    found.put(known & ~starved & by_peak, "tensor", "derived", "operations / peak is the longer part")
    found.put(known & ~starved & ~by_peak, "memory", "derived", "bytes / bandwidth is the longer part")
    found.evidence.put(known & work.inferred, "inferred")
    if hardware.kind != "core":
        _without_work(kernels, work, hardware, found, took, short, few, tokens, compute & ~known)
    else:
        # Launch shapes and classes tell nothing there: an operator's time holds its dispatch and its threads' waits.
        _missing(compute & ~known, work, hardware, found)
    return found


def _roof_parts(work: KernelWork, hardware: Hardware) -> tuple[Floats, Floats]:
    """Time of the operations at peak and of the bytes at full bandwidth: [kernels] ns, NaN where not known."""
    peaks = [hardware.peak(dtype) for dtype in work.dtypes.texts]
    rates = work.dtypes.mapped([np.nan if peak is None else peak.value for peak in peaks], np.float64)
    at_peak = work.flops / rates * 1e9
    at_peak[work.flops == 0] = 0.0
    bandwidth = hardware.bytes_per_s
    return at_peak, work.bytes / bandwidth * 1e9 if bandwidth else np.full(len(work.bytes), np.nan)


def _communication(kinds: Labels, names: Labels, found: Bounds) -> None:
    found.put(kinds.are("comm"), "link", "inferred", "it moves data between ranks, or waits for theirs")
    found.reasons.put(kinds.are("fused"), "it computes and communicates at once")
    found.reasons.put(kinds.are("unknown"), "no rule knows the kernel")
    copies = kinds.are("memory")
    if copies.any():
        crossing = names.mapped([any(word in name.lower() for word in _HOST_COPY) for name in names.texts], np.bool_)
        found.put(copies & crossing, "link", "inferred", "it copies between host and device")
        found.put(copies & ~crossing, "memory", "inferred", "it copies or fills memory of the device")


def _without_work(
    kernels: DeviceKernels, work: KernelWork, hardware: Hardware, found: Bounds, took: Floats, short: NDArray[np.bool_],
    few: NDArray[np.bool_], tokens: Floats, rows: NDArray[np.bool_],
) -> None:  # fmt: skip
    """Bounds of compute kernels whose operations or bytes are not known; the surest sign decides."""
    bandwidth = hardware.bytes_per_s
    operators = labels_of(kernels.operators)
    open_rows = rows.copy()

    def put(pick: NDArray[np.bool_], bound: str, reason: str) -> None:
        found.put(open_rows & pick, bound, "inferred", reason)
        open_rows[pick] = False

    if bandwidth:
        least = work.least_bytes / bandwidth * 1e9
        put(least >= NEAR_ROOF * took, "memory", "reading the weight that its name tells takes half of its time")
    put(short, "latency", f"it takes no more than {SHORT_NS // 1000} µs")
    put(few, "latency", "its launch holds fewer than half of the units")
    put(operators.are(*STREAMING), "memory", "its class does a few operations with every byte")
    put(~work.products & operators.are("gemm", "conv"), "memory", "it copies, or sums up parts")
    put(_under_ridge(work, hardware, tokens), "memory", "too few tokens share what it reads of weights or cache")
    _missing(open_rows, work, hardware, found)


def _missing(rows: NDArray[np.bool_], work: KernelWork, hardware: Hardware, found: Bounds) -> None:
    """Why no bound is known: what is missing of the work, as it stands there already, else the peak."""
    found.reasons.put(rows & ((work.flops > 0) | work.reasons.are("")), _missing_peak(hardware))


def _missing_peak(hardware: Hardware) -> str:
    return hardware.reason or f"a peak of {hardware.name} that it needs is not known"


def _under_ridge(work: KernelWork, hardware: Hardware, tokens: Floats) -> NDArray[np.bool_]:
    """Whether so few tokens share a weight that reading it takes longer than multiplying it: [kernels]."""
    ridges = [ridge_tokens(hardware, dtype) for dtype in work.dtypes.texts]
    known = work.dtypes.mapped([np.nan if ridge is None else ridge for ridge in ridges], np.float64)
    return np.asarray(tokens < known)


def ridge_tokens(hardware: Hardware, dtype: str, weight_bytes: float | None = None) -> float | None:
    """T*, tokens from which on a product is bound by operations: 2 T k n / peak = k n weight_bytes / bandwidth.

    weight_bytes: of a weight's element, by its type where not given. T* = peak / (2 bandwidth) for one byte. None
    where the peak or the bandwidth is not known.
    """
    peak, bandwidth = hardware.peak(dtype), hardware.bytes_per_s
    item = ITEM_BYTES.get(dtype) if weight_bytes is None else weight_bytes
    if peak is None or not bandwidth or item is None:
        return None
    return peak.value * item / (2 * bandwidth)
