"""What to try, by finding and stage: what helps training may mean nothing to decoding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

_EARLIER: Final = "issue it earlier or on its own stream so that compute runs beside it: "
_GAPS: Final = "look in the timeline for what the gaps wait on: "

_ADVICE: Final[Mapping[str, Mapping[str, str]]] = {
    "exposed-communication": {
        "train": _EARLIER
        + "shared experts during dispatch, two micro-batches in turn during combine, weight gradients "
        "during the backward exchange",
        "prefill": _EARLIER
        + "shared experts during dispatch, the attention of another micro-batch during dispatch and "
        "combine",
        "decode": "compute the attention of another micro-batch while tokens travel, with an exchange that holds no "
        "cores or SMs meanwhile; where the batch is too small to halve, send less: FP8 dispatch, fewer nodes a token",
        "": _EARLIER + "shared experts during dispatch, another micro-batch during combine",
    },
    "idle": {
        "train": _GAPS + "launches (capture a graph, compile, fuse kernels), data loading, or synchronisation with the "
        "host",
        "prefill": _GAPS + "launches (compile, fuse kernels), requests that come too slowly or one at a time, or "
        "synchronisation with the host",
        "decode": _GAPS + "launches (capture the step as a graph), scheduling and sampling on the host, or too few "
        "requests to batch",
        "": _GAPS + "launches (capture a graph, compile, fuse kernels), input, or synchronisation with the host",
    },
    "launch-gaps": {
        "train": "launch less or sooner: capture the step or its layers as CUDA graphs, compile, fuse small "
        "kernels, keep "
        "the host from waiting for the device (`.item()`, `nonzero`, prints)",
        "decode": "capture the whole step as a CUDA graph, sampling included, and keep scheduling of the next step "
        "off the "
        "path of this one",
        "": "launch less or sooner: capture CUDA graphs, compile, fuse small kernels, keep the host from waiting "
        "for the "
        "device (`.item()`, `nonzero`, prints)",
    },
    "comm-units-many": {
        "": "give the exchange fewer SMs (DeepEP's `num_sms`, NCCL_MAX_CTAS), or one that needs none (copy "
        "engines, RDMA by "
        "the NIC), and watch that it does not take so much longer that it is exposed",
    },
    "comm-units-few": {
        "": "give the exchange more SMs or channels (DeepEP's `num_sms`, NCCL_MIN_CTAS), or larger messages, and "
        "see whether "
        "its rate rises: if it does not, the link or the other side limits it",
    },
    "casts-unfused": {
        "": "quantise in the kernel that writes the tensor (norm, activation, the combine), or have the product "
        "quantise "
        "what it reads",
    },
    "layout": {
        "": "let the kernel before or after read and write in the order that is wanted: permuted rows straight "
        "into the "
        "exchange or the grouped product, transposes by the product's layout, copies by views",
    },
    "decode-memory-bound": {
        "": "decode more sequences at once: a larger batch, experts over more ranks so that each gets the tokens "
        "of more "
        "sequences, two micro-batches whose exchanges hide behind one another; or make weights smaller (FP8, FP4)",
    },
    "clock-falls": {
        "": "look for a power or thermal limit (nvidia-smi -q -d PERFORMANCE), lock clocks below it, and compare "
        "runs only "
        "at the same clock",
    },
    "straggler": {
        "train": "compare its experts' load, its clocks and what else runs on its host with another rank's",
        "": "compare its experts' load, its sequences' lengths, its clocks and what else runs on its host with another "
        "rank's",
    },
    "experts-unbalanced": {
        "train": "replicate or move hot experts (EPLB), or strengthen the router's balancing",
        "prefill": "replicate or move hot experts (EPLB); the router is what training made it",
        "decode": "replicate or move hot experts (EPLB); the router is what training made it",
        "": "replicate or move hot experts (EPLB), or in training strengthen the router's balancing",
    },
}


_WHY: Final[Mapping[str, str]] = {
    "exposed-communication": "nothing computes while data travels, so the device waits for the link or for other ranks",
    "idle": "a device without a kernel does nothing, whatever it waits for; a CPU may do what is no operator of "
    "PyTorch's (Python, NumPy, other libraries), or run operators on a thread that is neither the main one nor "
    "communicates nor makes the steps: those are not recorded",
    "launch-gaps": "kernels end sooner than the host launches the next ones",
    "comm-units-many": "a unit that moves data computes nothing, so products beside it run on fewer",
    "comm-units-few": "a few units keep too little data in flight to fill the link",
    "casts-unfused": "the tensor is written, read and written again before the product reads it",
    "layout": "rows are read and written once more without a single operation on them",
    "decode-memory-bound": "every expert's weights are read whole for however few tokens, and reading takes longer "
    "than "
    "multiplying",
    "clock-falls": "compute takes as much longer as the clock is slower",
    "straggler": "ranks meet in every exchange, so all of them go at the pace of the slowest",
    "experts-unbalanced": "ranks meet in every exchange, so all of them wait for the one whose experts get most tokens",
    "late-rank": "a collective moves nothing until its last rank arrives",
    "ranks-in-turn": "a collective moves nothing until its last rank arrives, and each of them is the last now and "
    "then",
    "slow-group": "an exchange goes at the pace of its slowest link",
    "collectives-unfinished": "the others of the group wait for the rank that never calls",
    "quantisation-nonfinite": "one infinite or undefined element spoils its whole block",
    "quantisation-saturated": "what is clamped is wrong, however small the error of the rest",
    "unknown-kernels": "their time is busy and neither compute nor communication, so overlap is told too low or "
    "too high",
    "events-dropped": "what was dropped is missing from every figure",
    "coverage-low": "figures are of a sample, and scatter as one",
}


def why(finding: str) -> str:
    """What makes a finding cost time, or matter."""
    return _WHY[finding]


def advice(finding: str, stage: str) -> str:
    """What to try against a finding in a stage; what holds for any stage where that one has no own words."""
    by_stage = _ADVICE[finding]
    return by_stage.get(stage, by_stage[""])
