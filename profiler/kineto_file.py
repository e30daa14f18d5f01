"""Decodes one PyTorch (Kineto) trace file into events with exact times, or says what is wrong with it and where."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from math import isfinite
from pathlib import Path
from typing import Any, Final

import msgspec

from moescope.profiler.errors import MoescopeError, NoData

GZIP_MAGIC: Final = b"\x1f\x8b"
_WHOLE: Final = Decimal(1)
_FARTHEST_NS: Final = 2**61
_EMPTY_ARGS: Final = msgspec.Raw(b"{}")


class Event(msgspec.Struct, gc=False):
    """One trace event; times are decimal µs as written, so that no digit is lost."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = ""
    pid: int | str | float | None = None
    tid: int | str | float | None = None
    ts: Decimal | None = None
    dur: Decimal | None = None
    args: msgspec.Raw = _EMPTY_ARGS


class Args(msgspec.Struct, rename=None, gc=False):
    """What a device event and a launch tell about themselves; every one may be missing or of another type."""

    device: Any = None
    stream: Any = None
    correlation: Any = None
    grid: Any = None
    block: Any = None
    registers: Any = msgspec.field(default=None, name="registers per thread")
    shared_bytes: Any = msgspec.field(default=None, name="shared memory")
    bytes: Any = None
    collective: Any = msgspec.field(default=None, name="Collective name")
    elements: Any = msgspec.field(default=None, name="In msg nelems")
    dtype: Any = None
    group: Any = msgspec.field(default=None, name="Process Group Name")
    group_ranks: Any = msgspec.field(default=None, name="Process Group Ranks")
    shapes: Any = msgspec.field(default=None, name="Input Dims")
    types: Any = msgspec.field(default=None, name="Input type")
    values: Any = msgspec.field(default=None, name="Concrete Inputs")


class _Trace(msgspec.Struct):
    events: list[Event] | None = msgspec.field(default=None, name="traceEvents")
    distributed: Any = msgspec.field(default=None, name="distributedInfo")
    devices: Any = msgspec.field(default=None, name="deviceProperties")
    base_ns: Any = msgspec.field(default=0, name="baseTimeNanoseconds")


_TRACE = msgspec.json.Decoder(_Trace)
_EVENTS = msgspec.json.Decoder(list[Event])
_ARGS = msgspec.json.Decoder(Args)


@dataclass(frozen=True, slots=True)
class TraceFile:
    """A decoded trace.

    events: as in the file; distributed, devices: the file's `distributedInfo` and `deviceProperties`; base_ns: what the
    events' times count from, ns since the epoch
    """

    path: Path
    events: list[Event]
    distributed: dict[str, Any]
    devices: list[dict[str, Any]]
    base_ns: int


def read_trace(path: Path) -> TraceFile:
    """Decode a trace, plain or gzip.

    Raises NoData for an empty file, MoescopeError for one that is torn or no trace.
    """
    data = _read(path)
    if not data.strip():
        raise NoData(f"{path}: empty; export the trace again (torch.profiler's export_chrome_trace)")
    trace = _decode(path, data)
    if trace.events is None:
        raise MoescopeError(f"{path}: JSON without `traceEvents`: not a PyTorch (Kineto) trace")
    devices = trace.devices if isinstance(trace.devices, list) else []
    return TraceFile(
        path=path,
        events=trace.events,
        distributed=trace.distributed if isinstance(trace.distributed, dict) else {},
        devices=[device for device in devices if isinstance(device, dict)],
        base_ns=_base(path, trace.base_ns),
    )


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as problem:
        raise MoescopeError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    if data[:2] != GZIP_MAGIC:
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, zlib.error, gzip.BadGzipFile) as problem:
        raise MoescopeError(
            f"{path}: gzip data is damaged or ends early (file of {len(data)} bytes): {problem}; copy the file again"
        ) from problem


def _decode(path: Path, data: bytes) -> _Trace:
    first = data.lstrip()[:1]
    try:
        if first == b"[":
            return _Trace(events=_EVENTS.decode(data))
        if first == b"{":
            return _TRACE.decode(data)
    except msgspec.ValidationError as problem:
        raise MoescopeError(f"{path}: not a PyTorch (Kineto) trace: {problem}") from problem
    except msgspec.DecodeError as problem:
        where = f"at byte {len(data)}: the file ends early" if "truncated" in str(problem) else str(problem)
        raise MoescopeError(f"{path}: broken JSON {where}; export or copy the trace again") from problem
    except RecursionError as problem:
        raise MoescopeError(f"{path}: nested too deeply to be a PyTorch (Kineto) trace") from problem
    except UnicodeDecodeError as problem:
        raise MoescopeError(f"{path}: broken text at byte {problem.start}; export or copy the trace again") from problem
    raise MoescopeError(f"{path}: no JSON at byte 0: neither a PyTorch (Kineto) trace nor a recording")


def _base(path: Path, value: object) -> int:
    base = integer(value) or 0
    if abs(base) > _FARTHEST_NS:
        raise MoescopeError(f"{path}: baseTimeNanoseconds {base} is beyond any clock; export the trace again")
    return base


def args_of(event: Event) -> Args:
    """The event's arguments; empty ones where they are of another form."""
    try:
        return _ARGS.decode(event.args)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return Args()


def to_ns(us: Decimal) -> int:
    """Decimal µs as whole ns, half to even; exact for all that is written with up to three decimals."""
    try:
        ns = int((us * 1000).quantize(_WHOLE, ROUND_HALF_EVEN))
    except (ArithmeticError, ValueError) as problem:
        raise MoescopeError(f"a time of {us} µs is no number of ns; export the trace again") from problem
    if abs(ns) > _FARTHEST_NS:
        raise MoescopeError(f"a time of {us} µs is beyond any clock; export the trace again")
    return ns


def integer(value: object, bits: int = 64) -> int | None:
    """A whole number from what an argument holds; None for anything else, and for what the column cannot hold."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.strip().lstrip("-").isdecimal() and len(value) < 20:
        value = int(value)
    if isinstance(value, float):
        value = int(value) if isfinite(value) else None
    return value if isinstance(value, int) and -(2 ** (bits - 1)) <= value < 2 ** (bits - 1) else None
