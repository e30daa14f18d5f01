"""What a model says about itself: phases, steps, tokens per expert, quantisation, transfers, gauges.

Any model can call these. Under `moescope run` the events reach the recording; otherwise every call is a cheap no-op.
Only the standard library is imported, and nothing here raises for want of a recorder.

    from moescope.collectors import emit

    emit.stage("train")
    for step in range(100):
        with emit.step(step):
            with emit.phase("dispatch(F)", layer=3, micro_batch=0):
                ...
            emit.experts(layer=3, tokens=[17, 0, 4, 9])
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

AGENT_MODULE = "_moescope_agent"
"""Name under which the injected agent stands in `sys.modules`."""

_INTERVALS_AT_ONCE = 1024
"""At most 51 bytes each in JSON, and an event must fit into 64 KiB."""

Stage = Literal["train", "prefill", "decode", "generate"]
Evidence = Literal["measured", "derived", "inferred", "modelled"]


class Recorder(Protocol):
    """What the injected agent offers; `NullRecorder` stands in where there is none."""

    def stage(self, stage: str | None) -> None: ...
    def phase(self, name: str, layer: int, micro_batch: int) -> AbstractContextManager[None]: ...
    def step(self, step: int) -> AbstractContextManager[None]: ...
    def emit(self, kind: str, row: dict[str, Any]) -> None: ...


class _NullContext:
    __slots__ = ()

    def __enter__(self) -> None:
        return None

    def __exit__(self, *exc: object) -> None:
        return None


_NULL_CONTEXT = _NullContext()


class NullRecorder:
    """Takes everything, keeps nothing."""

    def stage(self, stage: str | None) -> None: ...

    def phase(self, name: str, layer: int, micro_batch: int) -> AbstractContextManager[None]:
        return _NULL_CONTEXT

    def step(self, step: int) -> AbstractContextManager[None]:
        return _NULL_CONTEXT

    def emit(self, kind: str, row: dict[str, Any]) -> None: ...


_NULL_RECORDER = NullRecorder()


_recorder: Recorder = _NULL_RECORDER


def look_again() -> None:
    """Finds the agent's recorder; the agent calls this where it opens one after this module was imported."""
    global _recorder
    agent: Any = sys.modules.get(AGENT_MODULE)
    found: Recorder | None = getattr(agent, "recorder", None)
    _recorder = _NULL_RECORDER if found is None else found


look_again()


def active() -> bool:
    """Whether events reach a recording."""
    return _recorder is not _NULL_RECORDER


def clock_ns() -> int:
    """The recording's clock: CLOCK_MONOTONIC, ns."""
    return time.monotonic_ns()


def stage(name: Stage | None) -> None:
    """Name the stage that all later phases, steps and counts belong to, until the next call."""
    _recorder.stage(name)


def step(number: int) -> AbstractContextManager[None]:
    """The range of one step; phases and counts inside carry its number."""
    return _recorder.step(number)


def phase(name: str, *, layer: int = -1, micro_batch: int = -1) -> AbstractContextManager[None]:
    """A named range on this thread: `attn(F)`, `dispatch(B)`, `mlp(W)`; F forward, B input, W weight gradient."""
    return _recorder.phase(name, layer, micro_batch)


def experts(*, layer: int, tokens: Sequence[int], first_expert: int = 0) -> None:
    """Tokens that this rank routed to each expert of `layer`.

    tokens: [experts], the count for expert `first_expert + i`
    """
    _recorder.emit("experts", {"layer": layer, "first_expert": first_expert, "tokens": list(tokens)})


def quantisation(
    *,
    tensor: str,
    format: str,
    amax: float,
    scale_min: float,
    scale_max: float,
    saturated: int,
    flushed: int,
    nonfinite: int,
    elements: int,
) -> None:
    """What a quantisation did to a tensor: its amax, the range of its scales, and how many elements it changed."""
    _recorder.emit(
        "quantisation",
        {
            "tensor": tensor,
            "format": format,
            "amax": amax,
            "scale_min": scale_min,
            "scale_max": scale_max,
            "saturated": saturated,
            "flushed": flushed,
            "nonfinite": nonfinite,
            "elements": elements,
        },
    )


def transfer(*, op: str, src: int, dst: int, bytes: int, start_ns: int, dur_ns: int, hop: str = "direct") -> None:
    """Bytes from rank `src` to rank `dst`; for models whose exchange `torch.distributed` does not see.

    start_ns: on `clock_ns()`'s clock
    """
    _recorder.emit(
        "transfers",
        {"op": op, "src": src, "dst": dst, "bytes": bytes, "start_ns": start_ns, "dur_ns": dur_ns, "hop": hop},
    )


def unit_intervals(
    *,
    device: str,
    launch: int,
    role: Literal["compute", "comm", "other"],
    units: Sequence[int],
    start_ns: Sequence[int],
    end_ns: Sequence[int],
    evidence: str = "measured",
) -> None:
    """Which execution units (SMs) one launch of a kernel held, from when to when; for kernels that record themselves.

    device: `cuda:0`; launch: a number of its own within the process
    units, start_ns, end_ns: [intervals], on `clock_ns()`'s clock
    raises: ValueError where they are not equally many
    """
    if not len(units) == len(start_ns) == len(end_ns):
        raise ValueError(f"{len(units)} units, {len(start_ns)} starts and {len(end_ns)} ends: give as many of each")
    recorder = _recorder
    for first in range(0, len(units), _INTERVALS_AT_ONCE):
        part = slice(first, first + _INTERVALS_AT_ONCE)
        row = {"device": device, "launch": launch, "role": role, "evidence": evidence, "units": list(units[part])}
        recorder.emit("unit_intervals", row | {"start_ns": list(start_ns[part]), "end_ns": list(end_ns[part])})


def kernel(
    *,
    name: str,
    start_ns: int,
    dur_ns: int,
    kind: str | None = None,
    flops: int | None = None,
    bytes: int | None = None,
    dtype: str | None = None,
    evidence: str = "measured",
) -> None:
    """A kernel that only the model knows of, such as the emulated part of a link (`evidence="modelled"`).

    start_ns: on `clock_ns()`'s clock
    """
    _recorder.emit(
        "kernel",
        {
            "name": name,
            "start_ns": start_ns,
            "dur_ns": dur_ns,
            "kind": kind,
            "flops": flops,
            "bytes": bytes,
            "dtype": dtype,
            "evidence": evidence,
        },
    )


def work(*, flops: int, bytes: int, dtype: str) -> None:
    """Floating-point operations and bytes of the matrix products in the current phase of this thread.

    Where operator shapes are not recorded, this is what the use of the matrix units is derived from.
    """
    _recorder.emit("work", {"flops": flops, "bytes": bytes, "dtype": dtype})


def gauge(name: str, value: float, *, unit: str, evidence: Evidence) -> None:
    """One value of this step that no other call is for, such as the time that a roofline allows it.

    unit: `s`, `bytes`, `share` for 0..1; evidence: `modelled` where a formula is among what it comes from
    """
    gauges([(name, value, unit, evidence)])


def gauges(values: Sequence[tuple[str, float, str, Evidence]]) -> None:
    """Several values at the cost of one: name, value, unit and evidence of each, as `gauge` takes them."""
    _recorder.emit("gauges", {"values": [tuple(value) for value in values]})


def note(source: str, message: str, *, level: Literal["info", "warning", "error"] = "info") -> None:
    """A line for the recording's log: what was chosen at start-up, and why."""
    _recorder.emit("log", {"level": level, "source": source, "message": message})
