"""The way out of the process: what it takes, and the C library's ring."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from operator import index
from typing import Any, Protocol

from .packed import COMM, FORMATS, PREFIX, pack_comm

ISSUE_TOLD, ISSUE_SETTLED = 1, 2
"""The call is told; torch's ranges are on as they were when it began."""

OPERATOR, PHASE, EXECUTION, BLOB, DONE, STEP, WINDOW, CALL = range(1, 9)

_LONGEST_NAME = 480
"""Bytes; longer ones are cut in the ring's table."""


def pack_place(layer: int, micro_batch: int) -> int:
    """Layer and micro-batch of a phase, each plus one, where the process's stage and step leave room; 0: not told."""
    return _told(micro_batch, 0xFF) << 8 | _told(layer, 0xFFFF) << 16


def _told(number: Any, mask: int) -> int:
    """0 for what is no whole number: a model that names its ranges oddly must not fail for being recorded."""
    try:
        return index(number) + 1 & mask
    except TypeError:
        return 0


class Phase:
    """A range that a model names, as a context manager."""

    __slots__ = ("_id", "_name", "_place", "_ring")

    def __init__(self, ring: Ring, name: str, layer: int = -1, micro_batch: int = -1) -> None:
        self._ring, self._name, self._place, self._id = ring, name, pack_place(layer, micro_batch), 0

    def __enter__(self) -> None:
        self._id = self._ring.phase_begin(self._name, self._place)

    def __exit__(self, *exc: object) -> None:
        self._ring.phase_end(self._id)


class Ring(Protocol):
    """Where events go; times are CLOCK_MONOTONIC ns. Every method may be called from any thread."""

    kind: str
    rows: dict[str, Callable[[dict[str, Any]], bool]]
    """By kind, what writes a row of it in a few words; False where it does not fit, and `blob`, which has room for
    anything, is to tell it."""

    def identity(self, facts: dict[str, Any]) -> None: ...
    def context(self, context: int) -> None: ...
    def phase(self, name: str, layer: int = -1, micro_batch: int = -1, /) -> AbstractContextManager[None]: ...
    def phase_begin(self, name: str, place: int) -> int:
        """place: as `pack_place` has it"""

    def current_phase(self) -> int:
        """The innermost phase that is open on the calling thread; 0 for none."""

    def phases(self) -> int:
        """Phases that were opened."""

    def phase_end(self, phase: int) -> None: ...
    def record(
        self,
        type: int,
        name: str,
        start_ns: int,
        dur_ns: int,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        *,
        flags: int = 0,
        depth: int = 0,
    ) -> None: ...
    def done(self, call: int) -> None: ...
    def next_call(self) -> int:
        """The number of a collective that is about to be issued, 1 for the first."""

    def calls(self) -> int:
        """How many numbers were given."""

    def issue_begins(self, range: bytes, group: int, /) -> int:
        """`settled`, `next_call`, `expect` and `announce` in one; 0 where one says no, and each is to be asked."""

    def issue_ends(self, number: int, issue_ns: int, kinds: Any, ranks: int, args: Any, /) -> int:
        """What `issue_begins` gave this number to has been issued: `ISSUE_TOLD` and `ISSUE_SETTLED`, or 0.

        kinds: of an all-to-all, `comm_kind` by element type: it is told by its arguments; None for all else
        """

    def follow_calls(self, on: int, /) -> None:
        """Whether calls that C++ issues leave records of that, where torch's ranges are on."""

    def followed(self) -> int:
        """How many have."""

    def announce(self, on: int, /) -> None:
        """Whether what the calling thread issues from now on comes from Python, which tells of it."""

    def group_mark(self, name: str) -> int:
        """A group's number, 0 where there is none."""

    def worker(self, tid: int, mark: int, /) -> None:
        """A thread executes the calls of this group alone."""

    def expect(self, name: bytes, call: int, mark: int, /) -> int:
        """A call of a group is about to be issued, and the next range of this name on its threads is the call's.

        0, or an error where that cannot be told.
        """

    def withdraw(self, call: int) -> int: ...
    def blob(self, kind: str, payload: Any) -> None: ...
    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None:
        """A collective's issue; sent, received: a list of bytes for each rank of the group, None where not told."""

    def uneven(
        self, kind: bytes, number: int, issue_ns: int, ranks: int, input: Any, ins: Any, output: Any, outs: Any, /
    ) -> bool:
        """An all-to-all's issue, by its tensors and splits; False where `comm` has to be told instead."""

    def comm_kind(self, op: str, group: str, dtype: str) -> bytes:
        """What `uneven` takes for this kind of call; nothing where it has no name short enough."""

    def call_begin(self, call: int, /) -> int:
        """What this thread launches on a GPU from now on is told with the call's number; 0 where nothing is recorded.

        Else `call_end` has to follow.
        """

    def call_end(self) -> None:
        """The call that began last on this thread has been issued."""

    def settle(self, on: int, /) -> None:
        """Whether torch's ranges are on, on the calling thread, as they should be since it asked by `settled`."""

    def unsettle(self) -> None:
        """What decides over torch's ranges has changed, for all threads."""

    def settled(self) -> int:
        """1 where ranges are on as the calling thread left them, 0 where it has to see to them."""

    def graph_begin(self, name: str) -> int:
        """A compiled graph begins on the calling thread: inside a window what it does between operators is recorded.

        What is returned has to be given back as it ends.
        """

    def graph_end(self, outer: int, /) -> None: ...
    def window(self, on: int, /) -> None:
        """A window of the calling thread opens or closes."""

    def operators(self) -> int: ...
    def mute(self, on: int) -> None:
        """Whether operators of the calling thread are left out from now on."""

    def thread_operators(self) -> int:
        """Operators that ended on the calling thread while torch told of them, left out or not."""

    def overhead(self, ns: int) -> None: ...
    def close(self) -> None: ...


class NativeRing:
    """The memory-mapped ring, through the C library."""

    kind = "ring"

    def __init__(self, library: str, path: str, chunks: int) -> None:
        """Raises OSError where the library cannot be loaded or the space cannot be had."""
        # PyDLL keeps the GIL: these calls are shorter than giving it up.
        lib = ctypes.PyDLL(library)
        u64, i64, text = ctypes.c_uint64, ctypes.c_int64, ctypes.c_char_p
        lib.moescope_phase_begin.argtypes, lib.moescope_phase_begin.restype = (text, u64), u64
        lib.moescope_phase_end.argtypes, lib.moescope_phase_end.restype = (u64,), None
        lib.moescope_record.argtypes = (ctypes.c_uint32, text, i64, i64, u64, u64, u64)
        lib.moescope_record.restype = None
        lib.moescope_done.argtypes, lib.moescope_done.restype = (u64,), None
        lib.moescope_expect.argtypes, lib.moescope_withdraw.argtypes = (text, u64, ctypes.c_uint32), (u64,)
        lib.moescope_worker.argtypes, lib.moescope_worker.restype = (ctypes.c_uint32, ctypes.c_uint32), None
        lib.moescope_name.argtypes, lib.moescope_name.restype = (text,), ctypes.c_uint32
        lib.moescope_blob.argtypes = (text, text, ctypes.c_uint32)
        lib.moescope_identity.argtypes = (text, ctypes.c_uint32)
        lib.moescope_context.argtypes, lib.moescope_context.restype = (u64,), None
        lib.moescope_operators.restype = u64
        lib.moescope_settle.restype, lib.moescope_unsettle.restype = None, None
        lib.moescope_add_overhead.argtypes, lib.moescope_add_overhead.restype = (u64,), None
        lib.moescope_open.argtypes = (text, ctypes.c_uint32)
        error = lib.moescope_open(path.encode(), chunks)
        if error:
            raise OSError(error, os.strerror(error), path)
        self._lib = lib
        self.context = lib.moescope_context
        self.done = lib.moescope_done
        self.withdraw = lib.moescope_withdraw
        lib.moescope_follow_calls.restype = None
        self.follow_calls = lib.moescope_follow_calls
        lib.moescope_followed.restype = u64
        self.followed = lib.moescope_followed
        self.worker = lib.moescope_worker
        self.operators = lib.moescope_operators
        lib.moescope_graph_begin.argtypes, lib.moescope_graph_begin.restype = (text,), ctypes.c_uint32
        lib.moescope_graph_end.argtypes, lib.moescope_graph_end.restype = (ctypes.c_uint32,), None
        lib.moescope_window.restype = None
        self.graph_end = lib.moescope_graph_end
        self.window = lib.moescope_window
        self.settle = lib.moescope_settle
        self.unsettle = lib.moescope_unsettle
        self.overhead = lib.moescope_add_overhead
        self._write = lib.moescope_blob
        self._names: dict[str, bytes] = {}
        self._comm_kinds: dict[tuple[str, str, str], bytes] = {}
        self.rows: dict[str, Callable[[dict[str, Any]], bool]] = {}
        fast = _module(library)
        lib.moescope_calls.restype = u64
        self.calls = lib.moescope_calls
        lib.moescope_phases.restype = u64
        self.phases = lib.moescope_phases
        lib.moescope_current_phase.restype = u64
        self.current_phase = lib.moescope_current_phase
        self.phase: Any
        if fast is not None:
            self.phase = fast.phase
            self.phase_begin = fast.phase_begin
            self.phase_end = fast.phase_end
            self.expect = fast.expect
            self.next_call = fast.next_call
            self.issue_begins = fast.issue_begins
            self.issue_ends = fast.issue_ends
            self.announce = fast.announce
            self.mute = fast.mute
            self.thread_operators = fast.thread_operators
            self._comm = fast.comm
            self.uneven = fast.uneven
            self.settled = fast.settled
            self.call_begin = fast.call_begin
            self.call_end = fast.call_end
            for kind, (_, integers, floats, names, counts) in FORMATS.items():
                numbers = len(integers), len(floats), len(names)
                self.rows[kind] = fast.row((PREFIX + kind).encode(), integers + floats + names, *numbers, counts)
        else:
            self.phase = partial(Phase, self)
            self.phase_begin = self._slow_phase_begin
            self.phase_end = lib.moescope_phase_end
            self.expect = lib.moescope_expect
            lib.moescope_next_call.restype = u64
            self.next_call = lib.moescope_next_call
            self.issue_begins = self.issue_ends = not_told
            lib.moescope_announce.restype = None
            self.announce = lib.moescope_announce
            self.mute = lib.moescope_mute
            lib.moescope_thread_operators.restype = u64
            self.thread_operators = lib.moescope_thread_operators
            self._comm = self._slow_comm
            self.uneven = not_told
            lib.moescope_call_begin.argtypes, lib.moescope_call_end.restype = (u64,), None
            self.call_begin = lib.moescope_call_begin
            self.call_end = lib.moescope_call_end
            self.settled = lib.moescope_settled

    def _name(self, name: str) -> bytes:
        found = self._names.get(name)
        if found is None:
            found = name.encode("utf-8", "replace").replace(b"\0", b"?")
            if len(self._names) < 4096:
                self._names[name] = found
        return found

    def group_mark(self, name: str) -> int:
        return int(self._lib.moescope_name(self._name(name)))

    def graph_begin(self, name: str) -> int:
        return int(self._lib.moescope_graph_begin(self._name(name)))

    def _slow_phase_begin(self, name: str, place: int) -> int:
        return int(self._lib.moescope_phase_begin(self._name(name), place))

    def _slow_comm(self, kind: bytes, number: int, issue_ns: int, sent: Any, received: Any) -> None:
        data = pack_comm(number, issue_ns, sent, received)
        self._write(kind, data, len(data))

    def record(
        self,
        type: int,
        name: str,
        start_ns: int,
        dur_ns: int,
        a: int = 0,
        b: int = 0,
        c: int = 0,
        *,
        flags: int = 0,
        depth: int = 0,
    ) -> None:
        kind = type | flags << 8 | depth << 16
        self._lib.moescope_record(kind, self._name(name) if name else None, start_ns, dur_ns, a, b, c)

    def blob(self, kind: str, payload: Any) -> None:
        data = json.dumps(payload, separators=(",", ":")).encode()
        self._write(kind.encode(), data, len(data))

    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None:
        kind = self.comm_kind(op, group, dtype)
        if kind:
            self._comm(kind, number, issue_ns, sent, received)
        else:
            self.blob("comm", [number, op, group, issue_ns, sent, received, dtype])

    def comm_kind(self, op: str, group: str, dtype: str) -> bytes:
        kind = self._comm_kinds.get((op, group, dtype))
        if kind is None:
            kind = f"{COMM}{op} {dtype} {group}".encode()
            if len(kind) > _LONGEST_NAME or len(self._comm_kinds) > 4096:
                return b""
            self._comm_kinds[op, group, dtype] = kind
        return kind

    def identity(self, facts: dict[str, Any]) -> None:
        data = json.dumps(facts, separators=(",", ":")).encode()
        self._lib.moescope_identity(data, len(data))

    def close(self) -> None:
        self._lib.moescope_close()


def not_told(*_: Any) -> bool:
    return False


def _module(library: str) -> Any:
    """The library's frequent calls as a Python module; None for a Python that cannot load it, or where it has none."""
    from importlib.machinery import ExtensionFileLoader
    from importlib.util import module_from_spec, spec_from_loader

    try:
        loader = ExtensionFileLoader("_moescope_ring", library)
        spec = spec_from_loader("_moescope_ring", loader)
        if spec is None:
            return None
        module = module_from_spec(spec)
        loader.exec_module(module)
    except ImportError:
        return None
    return module
