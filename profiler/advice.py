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


def advice(finding: str, stage: str) -> str:
    """What to try against a finding in a stage; what holds for any stage where that one has no own words."""
    by_stage = _ADVICE[finding]
    return by_stage.get(stage, by_stage[""])
