"""Rows of the recording's tables from one trace's events."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from moescope.profiler.kineto_file import Args, Event, TraceFile, args_of, integer, to_ns
from moescope.profiler.kineto_ops import launching_operators
from moescope.profiler.nesting import Nest, leaves

KERNELS: Final = frozenset({"kernel", "Kernel"})
COPIES: Final = frozenset({"gpu_memcpy", "gpu_memset", "Memcpy", "Memset"})
LAUNCHES: Final = frozenset({"cuda_runtime", "cuda_driver", "Runtime", "Driver", "privateuse1_runtime", "xpu_runtime"})
ANNOTATIONS: Final = frozenset({"user_annotation", "python_user_annotation"})
STEP: Final = "ProfilerStep#"
COLLECTIVE_RANGES: Final = ("nccl:", "gloo:", "mpi:", "ucc:", "xccl:", "hccl:")
"""Names of the ranges that PyTorch itself puts around a collective: no phase of the model."""

_ITEM_BYTES: Final = {
    "float": 4, "float32": 4, "int": 4, "int32": 4, "double": 8, "float64": 8, "long": 8, "int64": 8, "half": 2,
    "float16": 2, "bfloat16": 2, "c10::half": 2, "c10::bfloat16": 2, "short": 2, "char": 1, "byte": 1, "uint8": 1,
    "int8": 1, "bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1, "c10::float8_e4m3fn": 1, "c10::float8_e5m2": 1,
}  # fmt: skip

Thread = tuple[Any, Any]


@dataclass(frozen=True, slots=True)
class _Sorted:
    """Events of a trace by what they are; times ns since the epoch."""

    device: list[Event] = field(default_factory=list)
    launches: list[Event] = field(default_factory=list)
    annotations: list[Event] = field(default_factory=list)
    device_annotations: list[Event] = field(default_factory=list)
    operators: list[Event] = field(default_factory=list)
    threads: dict[Thread, str] = field(default_factory=dict)


def rows_of(trace: TraceFile, rank: int) -> dict[str, dict[str, list[Any]]]:
    """Columns of `kernels`, `phases`, `steps` and `collectives` of one trace."""
    events = _sort(trace.events)
    phases, nests = _phases(events, trace.base_ns, rank)
    steps = _steps(events, trace.base_ns, rank)
    if events.device:
        kernels, collectives = _device_kernels(events, trace.base_ns, rank, nests)
        return {"kernels": kernels, "phases": phases, "steps": steps, "collectives": collectives}
    return {"kernels": _cpu_kernels(events, trace.base_ns, rank, nests), "phases": phases, "steps": steps}


def _sort(events: Sequence[Event]) -> _Sorted:
    found = _Sorted()
    for event in events:
        cat = event.cat
        if event.ph != "X" or cat is None or not _timed(event):
            if event.ph == "M" and event.name == "thread_name":
                found.threads[(event.pid, event.tid)] = str(args_name(event))
            continue
        if cat in KERNELS or cat in COPIES:
            found.device.append(event)
        elif cat in LAUNCHES:
            found.launches.append(event)
        elif cat in ANNOTATIONS:
            found.annotations.append(event)
        elif cat == "gpu_user_annotation":
            found.device_annotations.append(event)
        elif cat == "cpu_op" or cat == "Operator":
            found.operators.append(event)
    return found


def _timed(event: Event) -> bool:
    ts, dur = event.ts, event.dur
    return ts is not None and dur is not None and ts.is_finite() and dur.is_finite() and dur >= 0


def args_name(event: Event) -> str:
    """The `name` of a metadata event."""
    import msgspec

    try:
        args = msgspec.json.decode(event.args)
    except msgspec.DecodeError:
        return ""
    return str(args.get("name", "")) if isinstance(args, dict) else ""


def _times(event: Event, base_ns: int) -> tuple[int, int]:
    assert event.ts is not None
    assert event.dur is not None
    return base_ns + to_ns(event.ts), to_ns(event.dur)


def _thread_name(events: _Sorted, thread: Thread) -> str:
    name = events.threads.get(thread, "")
    return name if name and str(thread[1]) in name else f"{name} {thread[1]}".strip()


def _phases(events: _Sorted, base_ns: int, rank: int) -> tuple[dict[str, list[Any]], dict[Thread, Nest]]:
    """Phases from the annotations; those of the device only where the host has none."""
    on_host = [event for event in events.annotations if _is_phase(event)]
    on_device = [] if on_host else [event for event in events.device_annotations if _is_phase(event)]
    by_thread: dict[Thread, list[tuple[int, int, str]]] = defaultdict(list)
    for event in (*on_host, *on_device):
        start, dur = _times(event, base_ns)
        by_thread[(event.pid, event.tid)].append((start, start + dur, event.name or ""))
    columns: dict[str, list[Any]] = {
        key: [] for key in ("rank", "id", "parent", "name", "thread", "start_ns", "dur_ns")
    }
    nests: dict[Thread, Nest] = {}
    for thread, ranges in by_thread.items():
        nest = Nest(ranges, first_id=len(columns["id"]) + 1)
        nests[thread] = nest
        prefix = "stream " if on_device else ""
        columns["rank"] += [rank] * len(ranges)
        columns["id"] += nest.ids.tolist()
        columns["parent"] += nest.parent_ids()
        columns["name"] += nest.names
        columns["thread"] += [prefix + _thread_name(events, thread)] * len(ranges)
        columns["start_ns"] += nest.starts.tolist()
        columns["dur_ns"] += (nest.ends - nest.starts).tolist()
    return columns, nests


def _is_phase(event: Event) -> bool:
    name = event.name or ""
    return not name.startswith((STEP, *COLLECTIVE_RANGES))


def _steps(events: _Sorted, base_ns: int, rank: int) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {key: [] for key in ("rank", "step", "source", "start_ns", "dur_ns")}
    for event in events.annotations:
        number = integer((event.name or "").removeprefix(STEP)) if (event.name or "").startswith(STEP) else None
        if number is not None:
            start, dur = _times(event, base_ns)
            for key, value in zip(columns, (rank, number, "profiler_step", start, dur), strict=True):
                columns[key].append(value)
    return columns


def _device_kernels(
    events: _Sorted, base_ns: int, rank: int, nests: dict[Thread, Nest]
) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
    keys = (
        "rank", "device", "stream", "name", "start_ns", "dur_ns", "correlation", "grid", "block", "registers",
        "shared_bytes", "bytes", "dtype", "evidence",
    )  # fmt: skip
    kernels: dict[str, list[Any]] = {key: [] for key in keys}
    collectives: dict[str, list[Any]] = {
        key: []
        for key in (
            "rank", "call", "op", "group", "group_ranks", "backend", "dtype", "issue_ns", "start_ns", "dur_ns",
            "evidence",
        )
    }  # fmt: skip
    for event in events.device:
        args = args_of(event)
        start, dur = _times(event, base_ns)
        device = integer(args.device)
        values = (
            rank,
            f"cuda:{device if device is not None else integer(event.pid) or 0}",
            str(args.stream if args.stream is not None else event.tid),
            event.name or "",
            start,
            dur,
            integer(args.correlation),
            _triple(args.grid),
            _triple(args.block),
            integer(args.registers, 32),
            integer(args.shared_bytes),
            _bytes(args),
            args.dtype if isinstance(args.dtype, str) else None,
            "measured",
        )
        for key, value in zip(keys, values, strict=True):
            kernels[key].append(value)
        if isinstance(args.collective, str) and args.collective:
            ranks = args.group_ranks
            row = (
                rank, len(collectives["call"]), args.collective.lstrip("_"), str(args.group or ""),
                ranks.strip("[]").replace(" ", "") if isinstance(ranks, str) else None,
                "nccl", args.dtype if isinstance(args.dtype, str) else None, start, start, dur, "measured",
            )  # fmt: skip
            for key, value in zip(collectives, row, strict=True):
                collectives[key].append(value)
    launched = _launches(events, base_ns)
    kernels["phase_id"] = _phases_of_kernels(events, launched, nests, kernels)
    operators = [((event.pid, event.tid), *_times(event, base_ns), event) for event in events.operators]
    found = launching_operators(operators, launched, kernels["correlation"])
    kernels |= {"op": found.op, "op_call": found.op_call, "shapes": found.shapes}
    kernels["dtype"] = [told or of_op for told, of_op in zip(kernels["dtype"], found.dtype, strict=True)]
    return kernels, collectives


def _launches(events: _Sorted, base_ns: int) -> dict[int, tuple[Thread, int]]:
    """Thread and time of each launch by its correlation."""
    launched: dict[int, tuple[Thread, int]] = {}
    for event in events.launches:
        correlation = integer(args_of(event).correlation)
        if correlation is not None:
            launched[correlation] = ((event.pid, event.tid), _times(event, base_ns)[0])
    return launched


def _triple(value: object) -> str | None:
    return ",".join(str(part) for part in value) if isinstance(value, (list, tuple)) and value else None


def _bytes(args: Args) -> int | None:
    told = integer(args.bytes)
    if told is not None:
        return told
    elements, item = integer(args.elements), _ITEM_BYTES.get(str(args.dtype).lower())
    return integer(elements * item) if elements is not None and item is not None else None


def _phases_of_kernels(
    events: _Sorted, launched: dict[int, tuple[Thread, int]], nests: dict[Thread, Nest], kernels: dict[str, list[Any]]
) -> list[int | None]:
    """The innermost annotation around each kernel's launch: on its thread, else on another thread of the process.

    The backward pass launches from a thread of its own while the thread that called it waits inside its annotation.
    Without annotations on the host, those of the kernel's own stream.
    """
    if not nests:
        return [None] * len(kernels["name"])
    on_host = any(_is_phase(event) for event in events.annotations)
    found: list[int | None] = []
    for event, correlation, start in zip(events.device, kernels["correlation"], kernels["start_ns"], strict=True):
        thread: Thread = (event.pid, event.tid)
        time = start
        if on_host:
            if correlation not in launched:
                found.append(None)
                continue
            thread, time = launched[correlation]
        nest = nests.get(thread)
        phase = nest.innermost(time) if nest is not None else None
        if phase is None and on_host:
            others = (nests[other].innermost(time) for other in nests if other[0] == thread[0] and other != thread)
            phase = next((other for other in others if other is not None), None)
        found.append(phase)
    return found


def _cpu_kernels(events: _Sorted, base_ns: int, rank: int, nests: dict[Thread, Nest]) -> dict[str, list[Any]]:
    """The CPU backend: leaf operators, and the ranges in which a backend executes collectives."""
    keys = ("rank", "device", "stream", "name", "start_ns", "dur_ns", "phase_id", "evidence")
    kernels: dict[str, list[Any]] = {key: [] for key in keys}
    by_thread: dict[Thread, list[tuple[int, int, str]]] = defaultdict(list)
    for event in (*events.operators, *(e for e in events.annotations if (e.name or "").startswith("gloo:"))):
        start, dur = _times(event, base_ns)
        by_thread[(event.pid, event.tid)].append((start, start + dur, event.name or ""))
    for thread, ranges in by_thread.items():
        nest = nests.get(thread)
        stream = _thread_name(events, thread)
        for start, end, name in leaves(ranges):
            phase = nest.innermost(start) if nest is not None else None
            for key, value in zip(
                keys, (rank, "cpu", stream, name, start, end - start, phase, "measured"), strict=True
            ):
                kernels[key].append(value)
    return kernels
