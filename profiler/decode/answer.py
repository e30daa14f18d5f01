"""`decode` of `summary --json`: steps, gaps, bounds, tokens per expert against the ridge, bytes against bandwidth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.decode.figures import DecodeFigures, Gaps, decode_figures
from moescope.profiler.decode.memory import Bytes, least_bytes, ridges, roofline_time, step_bytes, tokens_per_expert
from moescope.profiler.decode.steps import DecodeSteps
from moescope.profiler.hardware.table import Hardware
from moescope.profiler.labels import Labels
from moescope.profiler.overlap.intervals import Intervals, Times, covered_within, union
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep
from moescope.profiler.roofline.answer import DeviceRoofline

if TYPE_CHECKING:
    from moescope.profiler.source import Source


def decode_json(
    source: Source,
    device: DeviceKernels,
    swept: Sweep,
    names: Labels,
    steps: DecodeSteps | str,
    roofline: DeviceRoofline,
    graphs: Intervals,
) -> dict[str, Any]:
    """`decode` of one device, or null with the reason; times µs, shares 0..1.

    names: of the kernels; steps: as `decode_steps` found them; graphs: time inside CUDA graphs
    """
    if isinstance(steps, str):
        return {"decode": None, "decode_reason": steps}
    figures = decode_figures(steps, device, swept, roofline, graphs)
    durations = np.sort(steps.ends - steps.starts)
    typical = float(durations[(len(durations) - 1) // 2])
    batch = [one.sequences for one in steps.told if one.sequences]
    inside = covered_within(union(steps.starts, steps.ends), device.starts, device.ends)
    answer: dict[str, Any] = {
        "steps": len(durations),
        "source": steps.source,
        "how": steps.how,
        "evidence": steps.evidence,
        "step_us": typical / 1000,
        "step_p90_us": float(durations[int(np.ceil(0.9 * len(durations))) - 1]) / 1000,
    }
    answer |= _known("batch", float(np.median(batch)) if batch else None, "no annotation tells the batch's size")
    tokens = [one.tokens for one in steps.told if one.tokens]
    rate = float(np.median(tokens)) / (typical / 1e9) if tokens and typical else None
    answer |= _known("tokens_per_s", rate, "no annotation tells the tokens of a step")
    cached = [one.cached_tokens for one in steps.told if one.cached_tokens]
    answer |= _known(
        "cached_tokens", float(np.median(cached)) if cached else None, "no annotation tells the cache's length"
    )
    answer |= _figures(figures)
    answer |= _experts(source, device, names, steps, inside, roofline)
    answer |= _memory(source, device, steps, inside, roofline, typical)
    return {"decode": answer}


def _known(key: str, value: Any, reason: str) -> dict[str, Any]:
    return {key: value} if value is not None else {key: None, f"{key}_reason": reason}


def _figures(figures: DecodeFigures | None) -> dict[str, Any]:
    if figures is None:
        reason = "no decode step was recorded from its start to its end"
        keys = ("recorded_steps", "idle_share", "gaps", "bounds", "memory_bound_share", "classes", "kernels_per_step")
        return {name: value for key in keys for name, value in _known(key, None, reason).items()}
    total = sum(figures.bound_ns.values())
    shares = {bound or "unknown": ns / total if total else 0.0 for bound, ns in figures.bound_ns.items()}
    return {
        "recorded_steps": figures.recorded,
        "kernels_per_step": figures.kernels_per_step,
        "idle_share": figures.gaps.total_ns / figures.gaps.step_ns,
        "gaps": _gaps(figures.gaps, figures.recorded),
        "bounds": shares,
        "memory_bound_share": shares["memory"],
        "classes": [
            {
                "class": operator,
                "us_per_step": ns / figures.recorded / 1000,
                "share": ns / total if total else 0.0,
                **_known("bound", bound or None, "nothing is known to bound more than half of its time"),
            }
            for operator, ns, bound in figures.classes
        ],
    }


def _gaps(gaps: Gaps, steps: int) -> dict[str, Any]:
    middle, high = gaps.quantile(0.5), gaps.quantile(0.9)
    none = "no gap between kernels"
    return {
        "count_per_step": len(gaps.sizes) / steps,
        "us_per_step": gaps.total_ns / steps / 1000,
        **_known("median_us", None if middle is None else middle / 1000, none),
        **_known("p90_us", None if high is None else high / 1000, none),
        "graph_share": gaps.graph_ns / gaps.step_ns,
        "idle_in_graph_share": gaps.in_graph_ns / gaps.step_ns,
        "idle_outside_graph_share": (gaps.total_ns - gaps.in_graph_ns) / gaps.step_ns,
        **_known("longest_us", int(gaps.sizes[-1]) / 1000 if len(gaps.sizes) else None, none),
        "by_size": [
            {
                "from_us": low / 1000,
                **_known("to_us", None if high is None else high / 1000, "all that are longer"),
                "count": count,
                "share": ns / gaps.step_ns,
            }
            for low, high, count, ns in gaps.by_size()
        ],
        "evidence": "derived",
    }


def _experts(
    source: Source,
    device: DeviceKernels,
    names: Labels,
    steps: DecodeSteps,
    inside: Times,
    roofline: DeviceRoofline,
) -> dict[str, Any]:
    tokens = tokens_per_expert(source, steps, device.rank, names)
    dtype, found = ridges(source, device.rank, inside, roofline)
    missing = roofline.hardware.reason or "the type of its products is not known"
    ridge = found.get(dtype)
    share = tokens.value / ridge if tokens.value is not None and ridge else None
    answer = _known("tokens_per_expert", tokens.value, tokens.reason)
    if tokens.value is not None:
        answer |= {"tokens_per_expert_evidence": tokens.evidence, "tokens_per_expert_how": tokens.how}
    return (
        answer
        | _known("ridge_dtype", dtype or None, missing)
        | _known("ridge_tokens", ridge, missing)
        | {"ridge_by_dtype": found}
        | _known("tokens_over_ridge", share, tokens.reason or missing)
    )


def _memory(
    source: Source, device: DeviceKernels, steps: DecodeSteps, inside: Times, roofline: DeviceRoofline, typical: float
) -> dict[str, Any]:
    """Bytes of a step over its time and over the bandwidth, and its time over the roofline's."""
    moved = step_bytes(source, steps, device.rank, inside, roofline)
    least = roofline_time(source, device.rank)
    answer = _known("roofline_us", None if least.value is None else least.value * 1e6, least.reason)
    reached = least.value * 1e9 / typical if least.value is not None and typical else None
    answer |= _known("roofline_share", reached, least.reason or "its steps take no time")
    if isinstance(moved, Bytes) and typical:
        rate = moved.total / (typical / 1e9)
        answer |= {
            "bytes_per_step": moved.total,
            "bytes_parts": moved.parts,
            "bytes_how": moved.how,
            "bytes_evidence": moved.evidence,
            "bytes_per_s": rate,
            **_share_of_bandwidth(rate, roofline.hardware),
        }
    else:
        reason = moved if isinstance(moved, str) else "its steps take no time"
        for key in ("bytes_per_step", "bytes_per_s", "bandwidth_share"):
            answer |= _known(key, None, reason)
        least_read = least_bytes(inside, roofline) / len(steps.starts)
        answer |= _known("bytes_at_least", least_read or None, reason)
    return answer


def _share_of_bandwidth(rate: float, hardware: Hardware) -> dict[str, Any]:
    bandwidth = hardware.bytes_per_s
    share = rate / bandwidth if bandwidth else None
    return _known("bandwidth_share", share, hardware.reason or f"no bandwidth of {hardware.name} is known")


def most_tokens(device: DeviceKernels, steps: DecodeSteps | str, world: int) -> NDArray[np.float64]:
    """The most tokens that a product of weights in each kernel can work on: [kernels], NaN where that is not known.

    The tokens of the step, times the ranks whose tokens may have been brought here. Attention shares its cache among
    heads, not among tokens: nothing is told of it.
    """
    most = np.full(len(device.starts), np.nan)
    if isinstance(steps, str):
        return most
    product = np.isin(device.operators, ("gemm", "grouped_gemm"))
    at = np.searchsorted(steps.starts, device.starts, side="right") - 1
    tokens = np.array([one.tokens or np.nan for one in steps.told], np.float64)
    inside = (at >= 0) & (device.ends <= steps.ends[np.clip(at, 0, len(steps.ends) - 1)])
    rows = product & inside
    most[rows] = tokens[at[rows]] * max(world, 1)
    return most
