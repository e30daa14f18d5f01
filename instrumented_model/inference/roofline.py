"""What a decode step must do at least: operations, bytes, and the time they take on a given machine.

Experts of a decode step get few tokens, so reading their weights is what takes the time (arXiv 2412.19437 section
3.4.2): below T* = peak / (2 * bandwidth) tokens an expert in FP8 is bound by memory. Everything here is a formula,
evidence `modelled`; activations between products are left out, they are small beside weights and cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from moescope.collectors import emit
from moescope.instrumented_model import observe
from moescope.instrumented_model.config import Config, ConfigError


@dataclass(frozen=True)
class Peaks:
    """What a machine can do, and how it holds the model.

    weight_bytes, cache_bytes: of an element
    """

    flops_per_s: float
    bytes_per_s: float
    weight_bytes: float
    cache_bytes: float
    source: str


PUBLISHED = {
    "h100": Peaks(1979e12, 3.35e12, 1, 2, "H100 SXM data sheet, FP8 dense"),
    "h200": Peaks(1979e12, 4.8e12, 1, 2, "H200 SXM data sheet, FP8 dense"),
    "h800": Peaks(1979e12, 3.35e12, 1, 2, "H800 SXM data sheet, FP8 dense"),
}
_GIVEN = re.compile(r"(\d+(?:\.\d+)?)([GTP])FLOPS:(\d+(?:\.\d+)?)([GT])B/s")
_UNITS = {"G": 1e9, "T": 1e12, "P": 1e15}


def parse_peaks(text: str) -> Peaks:
    """`h200`, or `1979TFLOPS:4.8TB/s` for weights in FP8. Raises ConfigError for anything else."""
    if text.lower() in PUBLISHED:
        return PUBLISHED[text.lower()]
    match = _GIVEN.fullmatch(text)
    if match is None or 0 in (float(match[1]), float(match[3])):
        names = ", ".join(PUBLISHED)
        raise ConfigError(f"peaks {text!r} are not understood: write here, {names}, or such as 1979TFLOPS:4.8TB/s")
    return Peaks(float(match[1]) * _UNITS[match[2]], float(match[3]) * _UNITS[match[4]], 1, 2, "given")


def expert_parameters(c: Config) -> int:
    """Gate, up and down: 3 d d_expert."""
    return 3 * c.d * c.d_expert


def ridge_tokens(peaks: Peaks) -> float:
    """T*: tokens from which on a product of FP8 weights is bound by operations: 2 T k n / peak = k n / bandwidth."""
    return peaks.flops_per_s * peaks.weight_bytes / (2 * peaks.bytes_per_s)


@dataclass(frozen=True)
class Part:
    """Products that share a bound; weight_bytes and cache_bytes are read once. dtype: of the operands"""

    name: str
    flops: int
    weight_bytes: float
    cache_bytes: float = 0.0
    dtype: str = observe.FP8

    def time_s(self, peaks: Peaks) -> float:
        """At least: what is longer of multiplying and of reading, s."""
        return max(self.flops / peaks.flops_per_s, (self.weight_bytes + self.cache_bytes) / peaks.bytes_per_s)


def parts(
    c: Config, peaks: Peaks, ends: Sequence[int], served: Sequence[Sequence[int]], layers: int | None = None
) -> list[Part]:
    """One decode pass of one micro-batch on one rank, part by part, layers of a kind together.

    ends: [sequences], positions that each new token sees, itself included
    served: [layers with experts][local experts], tokens that each expert of this rank got
    layers: how many there are, all of the configuration's where not given
    """
    n, w = len(ends), peaks.weight_bytes
    layers = c.layers if layers is None else layers
    head = c.d_head + c.d_rope
    query = c.d * c.d_query_latent + c.d_query_latent * c.heads * head if c.d_query_latent else c.d * c.heads * head
    projections = query + c.d * (c.d_latent + c.d_rope) + c.heads * c.d_head * c.d
    absorbed = 2 * c.heads * c.d_head * c.d_latent
    positions = sum(ends)
    core, of_cache = 2 * positions * c.heads * (2 * c.d_latent + c.d_rope), positions * (c.d_latent + c.d_rope)
    dense, gate = 3 * c.d * c.d_dense, c.d * c.experts
    moe_layers = len(served)
    dense_layers = layers - moe_layers
    routed = sum(sum(counts) for counts in served)
    active = sum(sum(count > 0 for count in counts) for counts in served)
    shared = expert_parameters(c) * c.shared_experts
    return [
        Part("attention projections", layers * 2 * n * projections, layers * projections * w),
        Part("absorbed projections", layers * 2 * n * absorbed, layers * absorbed * w, dtype=observe.BF16),
        Part("attention core", layers * core, 0.0, layers * of_cache * peaks.cache_bytes, observe.BF16),
        Part("dense", dense_layers * 2 * n * dense, dense_layers * dense * w),
        Part("gate", moe_layers * 2 * n * gate, moe_layers * gate * max(w, 2), dtype=observe.BF16),
        Part("shared experts", moe_layers * 2 * n * shared, moe_layers * shared * w),
        Part("routed experts", 2 * routed * expert_parameters(c), active * expert_parameters(c) * w),
        Part("head", 2 * n * c.d * c.vocabulary, c.d * c.vocabulary * max(w, 2), dtype=observe.BF16),
    ]


@dataclass(frozen=True)
class Roofline:
    """A step's terms on this rank, all micro-batches; time_s is the least its parts take one after another.

    tokens_per_expert: mean over the experts and layers that got any, in a micro-batch
    """

    tokens_per_expert: float
    expert_weight_bytes: float
    other_weight_bytes: float
    cache_bytes: float
    flops: int
    time_s: float

    def achieved(self, measured_s: float) -> float:
        """Share of the roofline that a step of `measured_s` reached, 0..1."""
        return self.time_s / measured_s


def roofline(c: Config, peaks: Peaks, passes: Iterable[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> Roofline:
    """passes: a micro-batch each, `ends` and `served` as `parts` takes them; each reads its weights anew"""
    passes = list(passes)
    found = [part for ends, served in passes if ends for part in parts(c, peaks, ends, served)]
    # A micro-batch without a sequence of this rank still serves other ranks' tokens.
    idle = [part for ends, served in passes if not ends for part in parts(c, peaks, ends, served)]
    found += [part for part in idle if part.name == "routed experts"]
    counts = [count for _, served in passes for layer in served for count in layer if count]
    experts = [part for part in found if part.name == "routed experts"]
    return Roofline(
        tokens_per_expert=sum(counts) / len(counts) if counts else 0.0,
        expert_weight_bytes=sum(part.weight_bytes for part in experts),
        other_weight_bytes=sum(part.weight_bytes for part in found) - sum(part.weight_bytes for part in experts),
        cache_bytes=sum(part.cache_bytes for part in found),
        flops=sum(part.flops for part in found),
        time_s=sum(part.time_s(peaks) for part in found),
    )


def report(r: Roofline, dur_ns: int) -> None:
    """Tell the recording the terms of the step that ran last. dur_ns: of the step, measured"""
    emit.gauges(
        [
            ("tokens_per_expert", r.tokens_per_expert, "tokens", "derived"),
            ("expert_weight_bytes", r.expert_weight_bytes, "bytes", "modelled"),
            ("other_weight_bytes", r.other_weight_bytes, "bytes", "modelled"),
            ("cache_bytes", r.cache_bytes, "bytes", "modelled"),
            ("flops", r.flops, "FLOP", "modelled"),
            ("roofline_time", r.time_s, "s", "modelled"),
            ("roofline_achieved", r.achieved(dur_ns / 1e9), "share", "modelled"),
        ]
    )
