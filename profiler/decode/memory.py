"""What memory allows a decode step: tokens per expert against the ridge, and the bytes that it must read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from moescope.profiler.decode.steps import DecodeSteps
from moescope.profiler.labels import Labels
from moescope.profiler.overlap.intervals import Times, covered_within, union
from moescope.profiler.roofline.answer import DeviceRoofline
from moescope.profiler.roofline.bounds import ridge_tokens

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

_ROUTING: Final = re.compile(r"routing\w*::KernelParams<[^<>,]+,\s*[^<>,]+,\s*(\d+),\s*(\d+)")
"""TensorRT-LLM's routing: the largest numbers of experts and of choices that the kernel was made for."""

_GAUGES: Final = ("expert_weight_bytes", "other_weight_bytes", "cache_bytes")


@dataclass(frozen=True, slots=True)
class Figure:
    """A value with its label and what it is of, or None with the reason why not."""

    value: float | None
    evidence: str
    reason: str = ""
    how: str = ""


def tokens_per_expert(source: Source, steps: DecodeSteps, rank: int, names: Labels) -> Figure:
    """Mean tokens that an expert gets in a decode step, experts without any left out where that is known.

    names: of the kernels
    """
    told = _gauge(source.table("gauges"), rank, "tokens_per_expert")
    if told is not None:
        return Figure(told, "derived", how="mean over experts that got any, as the model tells it")
    counted = _counted(source.table("experts"), rank, steps)
    if counted is not None:
        ranks = len(source.ranks())
        alike = "" if ranks == 1 else f", all {ranks} ranks taken to send as many"
        label = "derived" if ranks == 1 else "inferred"
        return Figure(counted * ranks, label, how=f"mean over experts that this rank sent any to{alike}")
    tokens = [one.tokens for one in steps.told if one.tokens]
    for name in names.texts:
        match = _ROUTING.search(name)
        if match is not None and tokens and int(match[1]):
            mean = float(np.median(tokens)) * int(match[2]) / int(match[1])
            how = f"tokens x {match[2]} choices / {match[1]} experts, the most that the routing kernel was made for"
            return Figure(mean, "inferred", how=how)
    return Figure(None, "inferred", "neither the run nor kernel names tell how many tokens an expert gets")


def _gauge(gauges: pa.Table, rank: int, name: str) -> float | None:
    """Median over decode steps of a value that the model tells."""
    values = [
        row["value"]
        for row in gauges.select(["rank", "stage", "name", "value"]).to_pylist()
        if row["rank"] in (rank, None) and row["stage"] == "decode" and row["name"] == name and row["value"] is not None
    ]
    return float(np.median(values)) if values else None


def _counted(experts: pa.Table, rank: int, steps: DecodeSteps) -> float | None:
    """Mean tokens of an expert in a layer and step, over those that this rank sent any to."""
    rows = experts.select(["rank", "stage", "t_ns", "tokens"]).to_pylist()
    own = [row for row in rows if row["rank"] in (rank, None) and row["tokens"] and row["t_ns"] is not None]
    decoding = [row for row in own if row["stage"] == "decode"]
    if not decoding and own:
        times = np.array([row["t_ns"] for row in own], np.int64)
        inside = covered_within(union(steps.starts, steps.ends), times, times + 1) > 0
        decoding = [row for row, counts in zip(own, inside.tolist(), strict=True) if counts and row["stage"] is None]
    return float(np.mean([row["tokens"] for row in decoding])) if decoding else None


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes that a step reads at least; parts: by what they are of"""

    total: float
    parts: dict[str, float]
    evidence: str
    how: str


def step_bytes(source: Source, steps: DecodeSteps, rank: int, inside: Times, roofline: DeviceRoofline) -> Bytes | str:
    """Bytes of weights and cache in a step, or why they are not known.

    As the model tells them, else those of its products' operands, else of the kernels whose bytes are all known.
    inside: [kernels] ns of each in the steps
    """
    gauges = source.table("gauges")
    told = {name: _gauge(gauges, rank, name) for name in _GAUGES}
    known = {name: value for name, value in told.items() if value is not None}
    if known:
        return Bytes(sum(known.values()), known, "modelled", "weights and cache as the model tells them")
    work = _worked(source.table("work"), rank, steps)
    if work:
        return Bytes(work, {"products": work}, "derived", "operands of its products, as the model tells them")
    reading = (inside > 0) & roofline.work.products
    missing = reading & np.isnan(roofline.work.bytes)
    if not reading.any():
        return "no matrix products were recorded in its steps"
    if inside[missing].sum() > 0.05 * inside[reading].sum():
        reasons = Labels(roofline.work.reasons.codes[missing], roofline.work.reasons.texts).weights(inside[missing])
        return f"bytes of its products are not known: {max(reasons, key=lambda pair: pair[1])[0]}"
    total = float(np.nansum(roofline.work.bytes[reading])) / max(len(steps.starts), 1)
    return Bytes(total, {"products": total}, "derived", "operands of its products, from recorded shapes")


def _worked(work: pa.Table, rank: int, steps: DecodeSteps) -> float | None:
    rows = [
        row["bytes"]
        for row in work.select(["rank", "stage", "bytes"]).to_pylist()
        if row["rank"] in (rank, None) and row["stage"] == "decode" and row["bytes"]
    ]
    return sum(rows) / len(steps.starts) if rows else None


def least_bytes(inside: Times, roofline: DeviceRoofline) -> float:
    """Bytes that the kernels inside the steps read in any case: those known, else the weights that their names tell.

    inside: [kernels] ns of each in the steps
    """
    work = roofline.work
    known = np.where(np.isnan(work.bytes), work.least_bytes, work.bytes)
    return float(np.nansum(known[(inside > 0) & work.products]))


def ridges(source: Source, rank: int, inside: Times, roofline: DeviceRoofline) -> tuple[str, dict[str, float]]:
    """The type of most of the steps' product time ("" where not known), and T* for it, for FP8 and for BF16.

    Where kernels do not tell their type, that of most operations that the model tells of.
    inside: [kernels] ns of each in the steps
    """
    products = roofline.work.products & (inside > 0)
    dtypes = Labels(roofline.work.dtypes.codes[products], roofline.work.dtypes.texts)
    lasting = {dtype: ns for dtype, ns in dtypes.weights(inside[products]) if dtype}
    if not lasting:
        for row in source.table("work").select(["rank", "stage", "flops", "dtype"]).to_pylist():
            if row["rank"] in (rank, None) and row["stage"] == "decode" and row["dtype"]:
                lasting[row["dtype"]] = lasting.get(row["dtype"], 0) + (row["flops"] or 0)
    most = max(lasting, key=lambda dtype: lasting[dtype], default="")
    found = {}
    for dtype in dict.fromkeys([most, "fp8", "bf16"]):
        ridge = ridge_tokens(roofline.hardware, dtype) if dtype else None
        if ridge is not None:
            found[dtype] = ridge
    return most, found


def roofline_time(source: Source, rank: int) -> Figure:
    """Least time of a step as the model's own roofline has it, s (modelled)."""
    told: Any = _gauge(source.table("gauges"), rank, "roofline_time")
    return Figure(told, "modelled") if told is not None else Figure(None, "modelled", "the model tells no roofline")
