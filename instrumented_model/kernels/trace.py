"""Records made inside kernels: which SM worked on which tile, from when to when, in which role.

Any Triton kernel can make them. The argument `trace` is None or what `Trace.launched` returns; None is a constant to
the compiler, so a kernel that is not traced has neither the instructions nor the parameters:

    @triton.jit
    def kernel(..., trace):
        written = record_open(trace)
        for i, tile in ...:
            start = record_begin(trace)
            ...
            record_end(trace, start, written + i, tile, COMPUTE)

    with recorded(device) as trace:
        kernel[(programs,)](..., trace.launched("kernel", programs))

The records then go to the recording that `moescope run` makes, if there is one. `trace.drain()` gives them as an array.

Times are %globaltimer, ns, the same for all SMs of a device; its step is the hardware's (32 ns to 1 us). A record ends
when all threads of the program have come so far; their stores may still be on the way.

Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from moescope.collectors import emit
from moescope.instrumented_model.kernels import interpreted
from moescope.instrumented_model.kernels.check import require

COMPUTE = tl.constexpr(0)
COMMUNICATION = tl.constexpr(1)
OTHER = tl.constexpr(2)
ROLES: tuple[Literal["compute", "comm", "other"], ...] = ("compute", "comm", "other")
"""Names of the roles in a recording's `unit_intervals`."""

_WORDS = tl.constexpr(6)
FIELDS = ("launch", "unit", "tile", "role", "start_ns", "end_ns")
RECORD = np.dtype([(name, np.int64) for name in FIELDS])
"""One record, 48 bytes."""

if interpreted():

    def device_clock_ns() -> Any:
        """The interpreter has no inline assembly: the host's clock stands in."""
        return tl.full((), time.monotonic_ns(), tl.int64)

    def sm_id() -> Any:
        """Each program has an SM of its own in the interpreter."""
        return tl.program_id(0)

else:

    @tl.core.extern
    def device_clock_ns(_semantic=None):
        """%globaltimer. returns: scalar int64, ns; volatile, so that it is read where it stands"""
        return tl.core.inline_asm_elementwise(
            "mov.u64 $0, %globaltimer;", "=l", [], dtype=tl.core.int64, is_pure=False, pack=1, _semantic=_semantic
        )

    @tl.core.extern
    def sm_id(_semantic=None):
        """%smid, the SM that this program runs on. returns: scalar int32"""
        return tl.core.inline_asm_elementwise(
            "mov.u32 $0, %smid;", "=r", [], dtype=tl.core.int32, is_pure=True, pack=1, _semantic=_semantic
        )


@triton.jit
def record_open(trace):
    """Records that this program's lane already holds, from earlier launches; call it once, before the loop."""
    if trace is None:
        return 0
    else:
        return tl.load(trace[1] + tl.program_id(0))


@triton.jit
def record_begin(trace):
    """Start of a record, to be handed to `record_end`. returns: scalar int64, ns; 0 without a trace"""
    if trace is None:
        return 0
    else:
        return device_clock_ns()


@triton.jit
def record_end(trace, start, slot, tile, ROLE: tl.constexpr):
    """Write a record; one that does not fit is counted all the same.

    slot: records of this program before this one, `record_open` among them; tile: what was worked on
    ROLE: COMPUTE, COMMUNICATION or OTHER
    """
    if trace is not None:
        tl.debug_barrier()
        end = device_clock_ns()
        program = tl.program_id(0)
        at = trace[0] + (program.to(tl.int64) * trace[2] + slot) * _WORDS
        fits = slot < trace[2]
        tl.store(at, tl.cast(trace[3], tl.int64), mask=fits)
        tl.store(at + 1, sm_id().to(tl.int64), mask=fits)
        tl.store(at + 2, tl.cast(tile, tl.int64), mask=fits)
        tl.store(at + 3, tl.cast(ROLE, tl.int64), mask=fits)
        tl.store(at + 4, start, mask=fits)
        tl.store(at + 5, end, mask=fits)
        tl.store(trace[1] + program, slot + 1)


@triton.jit
def _read_clock(clock_ns):
    tl.store(clock_ns, device_clock_ns())


@dataclass(frozen=True)
class Records:
    """What was drained.

    device: that they were made on
    rows: [records] of `RECORD`, ordered by program, then by time; `launch` indexes `launches`
    launches: name of the kernel of each launch
    dropped: records that did not fit
    """

    device: torch.device
    rows: npt.NDArray[np.void]
    launches: tuple[str, ...]
    dropped: int

    def unit_intervals(self, *, rank: int = 0, offset_ns: int = 0) -> dict[str, Any]:
        """Columns of a recording's `unit_intervals`.

        offset_ns: what is added to a device's time, see `clock_offset`
        """
        return {
            "rank": np.full(len(self.rows), rank, np.int32),
            "device": [str(self.device)] * len(self.rows),
            "launch": self.rows["launch"],
            "unit": self.rows["unit"].astype(np.int32),
            "role": [ROLES[role] for role in self.rows["role"]],
            "start_ns": self.rows["start_ns"] + offset_ns,
            "end_ns": self.rows["end_ns"] + offset_ns,
            "evidence": ["measured"] * len(self.rows),
        }

    def emit(self) -> None:
        """Tell the recorder which SMs each launch held, on the host's clock; nothing where there is no recorder.

        Launches are numbered through the life of the process. A line of the log says how well the clock was read, and
        what was lost.
        """
        if not emit.active() or not self.launches:
            return
        offset = clock_offset(self.device)
        for index in range(len(self.launches)):
            number, rows = next(_LAUNCHES), self.rows[self.rows["launch"] == index]
            for role, name in enumerate(ROLES):
                held = rows[rows["role"] == role]
                units, starts, ends = (held[field].tolist() for field in ("unit", "start_ns", "end_ns"))
                emit.unit_intervals(
                    device=str(self.device),
                    launch=number,
                    role=name,
                    units=units,
                    start_ns=[t + offset.offset_ns for t in starts],
                    end_ns=[t + offset.offset_ns for t in ends],
                )
        counted = ", ".join(f"{name} {count}" for name, count in Counter(self.launches).items())
        lost = f"; {self.dropped} records did not fit: give the trace more capacity" if self.dropped else ""
        emit.note(
            "units",
            f"{len(self.rows)} records of {self.device}, launches: {counted}; its clock is known to within "
            f"{offset.uncertainty_ns} ns{lost}",
            level="warning" if self.dropped else "info",
        )


_LAUNCHES = itertools.count()


class Trace:
    """Room on the device for the records of one stream's kernels.

    Program p of every launch writes to lane p, after what earlier launches wrote there: kernels that run at the same
    time need a Trace each. Replays of a captured graph carry the launch number of the capture.

    programs: lanes, at least the programs of the largest launch; capacity: records of a lane, 48 bytes each
    """

    def __init__(self, device: torch.device | str, *, programs: int = 2048, capacity: int = 256) -> None:
        require(programs >= 1, f"a trace needs at least 1 lane, not {programs}")
        require(capacity >= 1, f"a lane needs room for at least 1 record, not {capacity}")
        self._records = torch.zeros(programs, capacity, len(FIELDS), dtype=torch.int64, device=device)
        self._written = torch.zeros(programs, dtype=torch.int32, device=device)
        self._launches: list[str] = []

    def launched(self, name: str, programs: int) -> tuple[torch.Tensor, torch.Tensor, int, int]:
        """The argument `trace` of the next launch, which this counts and names.

        returns: records [lanes, capacity, fields] int64, written [lanes] int32, capacity, the launch's word
        raises: ValueError where it has more programs than there are lanes
        """
        lanes, capacity = self._records.shape[:2]
        require(programs <= lanes, f"{name} has {programs} programs, the trace {lanes} lanes: make it with more")
        self._launches.append(name)
        return self._records, self._written, capacity, _launch_word(len(self._launches) - 1)

    def drain(self) -> Records:
        """Take all records; waits for the device. Launches are numbered anew afterwards."""
        written = self._written.cpu().numpy()
        capacity = self._records.shape[1]
        there = np.minimum(written, capacity)
        dropped = int((written - there).sum())
        words = self._records[:, : int(there.max())].cpu().numpy()
        chosen = words[np.arange(words.shape[1])[None, :] < there[:, None]]
        rows = np.ascontiguousarray(chosen).view(RECORD).reshape(-1)
        rows["launch"] = (rows["launch"] - _launch_word(0)) // 2
        launches = tuple(self._launches)
        self._launches.clear()
        self._written.zero_()
        return Records(self._records.device, rows, launches, dropped)


@contextmanager
def recorded(device: torch.device | str, *, programs: int = 2048, capacity: int = 256) -> Iterator[Trace]:
    """A `Trace` for the launches inside; what they recorded is told to the recorder when the block ends.

    That waits for the device, so a block is best a step or several. programs, capacity: as `Trace` takes them
    """
    trace = Trace(device, programs=programs, capacity=capacity)
    yield trace
    trace.drain().emit()


def _launch_word(launch: int) -> int:
    """Odd and above 1: Triton would compile a kernel anew for an argument of 1 and for multiples of 16."""
    return 2 * launch + 3


@dataclass(frozen=True)
class ClockOffset:
    """host time = device time + offset_ns, give or take uncertainty_ns."""

    offset_ns: int
    uncertainty_ns: int


def clock_offset(
    device: torch.device, *, tries: int = 20, host_clock_ns: Callable[[], int] = emit.clock_ns
) -> ClockOffset:
    """Compare %globaltimer with the host's clock: the narrowest of `tries` brackets around a kernel that reads it."""
    read = torch.zeros(1, dtype=torch.int64, device=device)
    best: ClockOffset | None = None
    for _ in range(tries + 1):
        before = host_clock_ns()
        _read_clock[(1,)](read)
        device_ns = int(read.item())
        after = host_clock_ns()
        found = ClockOffset((before + after) // 2 - device_ns, (after - before + 1) // 2)
        if best is None or found.uncertainty_ns < best.uncertainty_ns:
            best = found
    assert best is not None
    return best
