"""Collectives that C++ issues, past the methods that `comm` wraps: those of DDP's reducer, DTensor, compiled code.

Where torch's ranges are on, the C library numbers such a call, leaves a record of its issue and knows its execution
range. What it cannot see, the group and the place among that group's calls, torch's flight recorder tells: it keeps the
last collectives of every group, whoever issued them (TORCH_FR_BUFFER_SIZE, 2,000 where it is not set). It is read a few
seconds late, as each reading holds up the process for the time that it takes to write them all down; whether there is
anything to read is known at no such price. Gloo's alone: NCCL's kernels tell by themselves.
"""

from __future__ import annotations

import os
import pickle
import threading
import time
from bisect import bisect_right
from collections import deque
from contextlib import suppress
from math import prod
from typing import TYPE_CHECKING, Any

from .comm import MADE_KEPT, Made

if TYPE_CHECKING:
    from .comm import Calls
    from .session import Session

PERIOD_S = 1.0
READ_S = 10.0
"""Between two readings, as long as no more calls than READ_SHARE of what torch keeps were made meanwhile: one of 2,000
calls takes 12 to 20 ms, in which nothing else runs in the interpreter."""
READ_SHARE = 0.6
KEPT = 2000
"""Calls that torch keeps unless it is told otherwise."""
TOLD_AT_ONCE = 400
"""Calls of one row, so that it fits into the ring."""
CLOCK_NS = 5_000
"""How far the two clocks may be apart by which a call's issue is told."""

_STATUS = {"includeCollectives": False, "includeStackTraces": False, "onlyActive": False}
_CALLS = {"includeCollectives": True, "includeStackTraces": False, "onlyActive": False}


class FlightReader:
    """Reads torch's flight recorder on a thread of its own, and at the end."""

    def __init__(self, session: Session, calls: Calls) -> None:
        """Raises AttributeError where this torch's cannot be read, ValueError where it keeps nothing."""
        self._session, self._calls = session, calls
        self._distributed = session.torch.distributed
        self._dump = session.torch._C._distributed_c10d._dump_fr_trace
        size = os.environ.get("TORCH_FR_BUFFER_SIZE") or os.environ.get("TORCH_NCCL_TRACE_BUFFER_SIZE") or ""
        self._kept = int(size) if size.isdigit() else KEPT
        if not self._kept:
            raise ValueError("it keeps no calls (TORCH_FR_BUFFER_SIZE=0)")
        self._followed = 0
        self._enqueued: dict[str, int] = {}
        self._read_at = 0
        """Calls that had been enqueued at the last reading."""
        self._made: deque[Made] = deque(maxlen=MADE_KEPT)
        self._last = -1
        self._read_s = time.monotonic()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._lost_told = False

    def start(self) -> None:
        """Has calls numbered that C++ issues, and read."""
        self._session.ring.follow_calls(1)
        threading.Thread(target=self._run, name="moescope-flight", daemon=True).start()

    def stop(self) -> None:
        """At exit: what was made since the last reading."""
        self._stopping.set()
        self._guarded(final=True)

    def _run(self) -> None:
        while not self._stopping.wait(PERIOD_S):
            if self._distributed.is_initialized() and not self._guarded(final=False):
                return

    def _guarded(self, *, final: bool) -> bool:
        try:
            with self._lock:
                self._look(final=final)
        except Exception as error:  # noqa: BLE001  fail open: calls that Python issues go on being recorded
            self._session.ring.follow_calls(0)
            self._session.recorder.log("warning", "communication", f"calls that C++ issues are not told: {error!r}")
            return False
        return True

    def _look(self, *, final: bool) -> None:
        """Reads where calls of C++ were numbered and have waited for long, or may be overwritten soon."""
        with suppress(Exception):  # a group may be taken apart meanwhile: its calls stay, without its ranks
            if self._distributed.is_initialized():
                for group, name in list(self._distributed.distributed_c10d._world.pg_names.items()):
                    self._calls.meet(group, name)
        self._session.ring.follow_calls(self._calls.on_gloo_alone())
        while self._calls.made:
            self._made.append(self._calls.made.popleft())
        followed = self._session.ring.followed()
        if followed == self._followed:
            return
        status = pickle.loads(self._dump(**_STATUS))["pg_status"]
        self._enqueued |= {group: int(one["last_enqueued_collective"]) for group, one in status.items()}
        enqueued = sum(self._enqueued.values())
        if final or enqueued - self._read_at > READ_SHARE * self._kept or time.monotonic() - self._read_s > READ_S:
            self._followed, self._read_at, self._read_s = followed, enqueued, time.monotonic()
            before_ns = time.monotonic_ns()
            entries = pickle.loads(self._dump(**_CALLS))["entries"]
            self._tell([entry for entry in entries if entry["record_id"] > self._last])
            self._session.recorder.events_cost_ns += time.monotonic_ns() - before_ns

    def _tell(self, entries: list[dict[str, Any]]) -> None:
        """Files the calls that Python has not made."""
        if not entries:
            return
        if entries[0]["record_id"] > self._last + 1 and not self._lost_told:
            self._lost_told = True
            text = "torch's flight recorder keeps too few calls: of some that C++ issued the group is not known"
            self._session.recorder.log("warning", "communication", f"{text} (TORCH_FR_BUFFER_SIZE={self._kept})")
        self._last = entries[-1]["record_id"]
        offset_ns = _wall_offset_ns()
        spans: dict[str, list[tuple[int, int]]] = {}
        for group, start_ns, end_ns in self._made:
            spans.setdefault(group, []).append((start_ns, end_ns))
        for held in spans.values():
            held.sort()
        found: dict[tuple[str, str, str], list[tuple[int, int, int]]] = {}
        for entry in entries:
            backend, _, op = entry["profiling_name"].partition(":")
            issued_ns = entry["time_created_ns"] - offset_ns
            group = entry["process_group"][0]
            if backend != "gloo" or entry["is_p2p"] or _inside(issued_ns, spans.get(group, [])):
                continue
            dtype, size = _operand(self._session.torch, entry)
            found.setdefault((group, op, dtype), []).append((issued_ns, entry["collective_seq_id"], size))
        for (group, op, dtype), calls in found.items():
            for at in range(0, len(calls), TOLD_AT_ONCE):
                row = {"group": group, "op": op, "dtype": dtype, "calls": calls[at : at + TOLD_AT_ONCE]}
                self._session.ring.blob("flight", row)


def _wall_offset_ns() -> int:
    """The time of day, ns since the epoch, less CLOCK_MONOTONIC: of three readings the closest."""
    readings = [(time.monotonic_ns(), time.time_ns(), time.monotonic_ns()) for _ in range(3)]
    before, wall, after = min(readings, key=lambda one: one[2] - one[0])
    return wall - (before + after) // 2


def _inside(at_ns: int, spans: list[tuple[int, int]]) -> bool:
    """Whether a time lies within one of the spans, which are sorted."""
    place = bisect_right(spans, (at_ns + CLOCK_NS, 2**63))
    return any(end_ns >= at_ns - CLOCK_NS for _, end_ns in spans[max(place - 4, 0) : place])


def _operand(torch: Any, entry: dict[str, Any]) -> tuple[str, int]:
    """Element type of what a call takes, and its bytes: -1 where not known."""
    names = {str(name) for name in entry["input_dtypes"]}
    dtype = _DTYPES.get(name := names.pop(), name.lower()) if len(names) == 1 else ""
    known = getattr(torch, dtype, None) if dtype else None
    if not isinstance(known, torch.dtype):
        return dtype, -1
    return dtype, sum(prod(shape) for shape in entry["input_sizes"]) * known.itemsize


_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
}
