"""Collectives that C++ issues, past the methods that `comm` wraps: those of DDP's reducer, DTensor, compiled code.

Where torch's ranges are on, the C library leaves a record of such a call's issue, and one of its execution, on a thread
that belongs to one group. What it cannot see, which of the group's calls it is, torch's flight recorder tells: it keeps
the last collectives of every group, whoever issued them (TORCH_FR_BUFFER_SIZE, 2,000 where it is not set). It is read
seconds late and as seldom as can be, as the interpreter stands still meanwhile, and not at all where Python issues all
calls. Gloo's alone: NCCL's kernels tell by themselves.
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
READ_S = 2.0
"""Between two readings at least, and as much longer as they cost: a share of COST. 2,000 calls take some 30 ms."""
COST = 0.002
HURRY = 5
"""By how much more often it is read where calls would be overwritten else: more than READ_SHARE of what torch keeps."""
READ_SHARE = 0.6
KEPT = 2000
"""Calls that torch keeps unless it is told otherwise."""
MOST = 5000
"""Of more calls than this no reading is short enough."""
TRIES = 3
"""Readings in a row that may fail."""
TOLD_AT_ONCE = 400
"""Calls of one row, so that it fits into the ring."""
CLOCK_NS = 5_000
"""How far the two clocks may be apart by which a call's issue is told."""
STEPPED_NS = 1_000_000
"""By how much the time of day must have been set for what was told by it to be of no use."""

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
        if not 0 < self._kept <= MOST:
            raise ValueError(f"TORCH_FR_BUFFER_SIZE={self._kept}: between 1 and {MOST} calls can be read")
        self._followed = 0
        self._enqueued: dict[str, int] = {}
        self._read_at = 0
        """Calls that had been enqueued at the last reading."""
        self._made: deque[Made] = deque(maxlen=max(MADE_KEPT, 4 * self._kept))
        self._last = -1
        self._unfollowed_ns = time.monotonic_ns()
        """When C++ had not issued any call since the last reading."""
        self._read_s, self._gap_s = time.monotonic(), READ_S
        self._offset_ns = _wall_offset_ns()
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._failures = 0
        self._lost_told = False

    def start(self) -> None:
        """Has calls followed that C++ issues, and read."""
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
        """Looks; whether to go on doing so."""
        try:
            with self._lock:
                self._look(final=final)
        except Exception as error:  # noqa: BLE001  fail open: calls that Python issues go on being recorded
            self._failures += 1
            if self._failures < TRIES:
                return True
            self._session.ring.follow_calls(0)
            self._session.recorder.log("warning", "communication", f"calls that C++ issues are not told: {error!r}")
            return False
        self._failures = 0
        return True

    def _look(self, *, final: bool) -> None:
        """Reads where C++ has issued calls that have waited for long, or may be overwritten soon."""
        with suppress(Exception):  # a group may be taken apart meanwhile: its calls stay, without its ranks
            if self._distributed.is_initialized():
                for group, name in list(self._distributed.distributed_c10d._world.pg_names.items()):
                    self._calls.meet(group, name)
        self._session.ring.follow_calls(self._calls.on_gloo_alone())
        self._take_made()
        now_ns, followed = time.monotonic_ns(), self._session.ring.followed()
        if followed == self._followed:
            self._unfollowed_ns = now_ns
            return
        status = pickle.loads(self._dump(**_STATUS))["pg_status"]
        self._enqueued |= {group: int(one["last_enqueued_collective"]) for group, one in status.items()}
        enqueued, waited_s = sum(self._enqueued.values()), time.monotonic() - self._read_s
        hurry = HURRY if enqueued - self._read_at > READ_SHARE * self._kept else 1
        if final or waited_s > self._gap_s / hurry:
            self._followed, self._read_at = followed, enqueued
            self._read(now_ns)

    def _take_made(self) -> None:
        while self._calls.made:
            self._made.append(self._calls.made.popleft())

    def _read(self, now_ns: int) -> None:
        entries = pickle.loads(self._dump(**_CALLS))["entries"]
        self._take_made()
        offset_ns = _wall_offset_ns()
        stepped = abs(offset_ns - self._offset_ns) > STEPPED_NS
        self._offset_ns = offset_ns
        new = [entry for entry in entries if entry["record_id"] > self._last]
        if new:
            self._last = new[-1]["record_id"]
            issued = [entry["time_created_ns"] - offset_ns for entry in new]
            lost = len(entries) >= self._kept and len(new) == len(entries) and issued[0] > self._unfollowed_ns
            if (lost or stepped) and not self._lost_told:
                self._lost_told = True
                text = "some calls that C++ issued are not told: torch's flight recorder keeps too few "
                text += f"(TORCH_FR_BUFFER_SIZE={self._kept}), or the time of day was set"
                self._session.recorder.log("warning", "communication", text)
            if not stepped:
                self._tell(new, issued)
        cost_ns = time.monotonic_ns() - now_ns
        self._unfollowed_ns, self._read_s = now_ns, time.monotonic()
        self._gap_s = max(READ_S, cost_ns / 1e9 / COST)
        self._session.recorder.events_cost_ns += cost_ns

    def _tell(self, entries: list[dict[str, Any]], issued: list[int]) -> None:
        """Files the calls that Python has not made. issued: when each was, CLOCK_MONOTONIC ns"""
        spans: dict[str, list[tuple[int, int]]] = {}
        for group, start_ns, end_ns in self._made:
            spans.setdefault(group, []).append((start_ns, end_ns))
        for held in spans.values():
            held.sort()
        found: dict[tuple[str, str, str], list[tuple[int, int, int, int]]] = {}
        for entry, issued_ns in zip(entries, issued, strict=True):
            backend, _, op = entry["profiling_name"].partition(":")
            group = entry["process_group"][0]
            if backend != "gloo" or entry["is_p2p"] or _inside(issued_ns, spans.get(group, [])):
                continue
            dtype, size = _operand(self._session.torch, entry)
            thread = int(entry.get("thread_id", 0))
            call = issued_ns, entry["collective_seq_id"], size, thread
            found.setdefault((group, op, dtype), []).append(call)
        for (group, op, dtype), calls in found.items():
            for at in range(0, len(calls), TOLD_AT_ONCE):
                row = {"group": group, "op": op, "dtype": dtype, "calls": calls[at : at + TOLD_AT_ONCE]}
                self._session.ring.blob("flight", row | {"last_ns": issued[-1]})


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
