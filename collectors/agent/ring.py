"""The two ways out of the process: the C library's ring, and an append-only file where no library could be built."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import struct
import sys
import threading
import time
from collections import defaultdict
from typing import Any, Protocol

from .packed import COMM, FORMATS, PREFIX, pack_comm, packer

OPERATOR, PHASE, EXECUTION, BLOB, DONE, STEP, WINDOW = range(1, 8)

_LONGEST_NAME = 480
"""Bytes; longer ones are cut in the ring's table."""


class Ring(Protocol):
    """Where events go; times are CLOCK_MONOTONIC ns. Every method may be called from any thread."""

    kind: str

    def identity(self, facts: dict[str, Any]) -> None: ...
    def context(self, context: int) -> None: ...
    def phase_begin(self, name: str, context: int) -> int: ...
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
    def expect(self, name: bytes, call: int) -> int: ...
    def withdraw(self, call: int) -> int: ...
    def blob(self, kind: str, payload: Any) -> None: ...
    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None: ...
    def operators(self) -> int: ...
    def mute(self, on: int) -> None: ...
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
        lib.moescope_expect.argtypes, lib.moescope_withdraw.argtypes = (text, u64), (u64,)
        lib.moescope_blob.argtypes = (text, text, ctypes.c_uint32)
        lib.moescope_name.argtypes, lib.moescope_name.restype = (text,), ctypes.c_uint32
        lib.moescope_identity.argtypes = (text, ctypes.c_uint32)
        lib.moescope_context.argtypes, lib.moescope_context.restype = (u64,), None
        lib.moescope_operators.restype = u64
        lib.moescope_add_overhead.argtypes, lib.moescope_add_overhead.restype = (u64,), None
        lib.moescope_open.argtypes = (text, ctypes.c_uint32)
        error = lib.moescope_open(path.encode(), chunks)
        if error:
            raise OSError(error, os.strerror(error), path)
        self._lib = lib
        self._begin = lib.moescope_phase_begin
        self.phase_end = lib.moescope_phase_end
        self.context = lib.moescope_context
        self.done = lib.moescope_done
        self.expect = lib.moescope_expect
        self.withdraw = lib.moescope_withdraw
        self.operators = lib.moescope_operators
        self.overhead = lib.moescope_add_overhead
        self.mute = lib.moescope_mute
        self._names: dict[str, bytes] = {}
        self._numbers: dict[str | None, int] = {None: 0}
        self._write = lib.moescope_blob
        self._packers = {
            kind: ((PREFIX + kind).encode(), packer(format, self._number)) for kind, format in FORMATS.items()
        }
        self._comm_kinds: dict[tuple[str, str, str], bytes] = {}

    def _number(self, name: str | None) -> int:
        """The name's number in the ring's table. Raises LookupError where the table is full."""
        found = self._numbers.get(name)
        if found is None:
            text = self._name(name or "")
            found = self._lib.moescope_name(text) if len(text) <= _LONGEST_NAME else 0
            if not found or name is None:
                raise LookupError(name)
            self._numbers[name] = found
        return found

    def _name(self, name: str) -> bytes:
        found = self._names.get(name)
        if found is None:
            found = name.encode("utf-8", "replace").replace(b"\0", b"?")
            if len(self._names) < 4096:
                self._names[name] = found
        return found

    def phase_begin(self, name: str, context: int) -> int:
        return int(self._begin(self._names.get(name) or self._name(name), context))

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
        packed = self._packers.get(kind)
        if packed is not None:
            try:
                data = packed[1](payload)
            except (struct.error, LookupError, TypeError):
                pass  # JSON has room for anything
            else:
                self._write(packed[0], data, len(data))
                return
        data = json.dumps(payload, separators=(",", ":")).encode()
        self._write(kind.encode(), data, len(data))

    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None:
        """A collective's issue; sent, received: bytes for each rank of the group, None where not told."""
        kind = self._comm_kinds.get((op, group, dtype))
        if kind is None:
            kind = self._comm_kinds[op, group, dtype] = f"{COMM}{op} {dtype} {group}".encode()
            if len(kind) > _LONGEST_NAME or len(self._comm_kinds) > 4096:
                del self._comm_kinds[op, group, dtype]
                self.blob("comm", [number, op, group, issue_ns, sent, received, dtype])
                return
        data = pack_comm(number, issue_ns, sent, received)
        self._write(kind, data, len(data))

    def identity(self, facts: dict[str, Any]) -> None:
        data = json.dumps(facts, separators=(",", ":")).encode()
        self._lib.moescope_identity(data, len(data))

    def close(self) -> None:
        self._lib.moescope_close()


class FileRing:
    """An append-only file of JSON lines: one `write` an event, so a kill tears nothing but the last line."""

    kind = "file"

    def __init__(self, path: str) -> None:
        """Raises OSError where the file cannot be made."""
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._context = 0
        self._phases = 0
        self._operators = 0
        self._overhead = 0
        self._muted_thread = 0
        self._full = False
        self._stacks: dict[int, list[tuple[int, str, int, int]]] = defaultdict(list)

    def _write(self, row: list[Any]) -> None:
        data = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        try:
            reason = "" if os.write(self._fd, data) == len(data) else "no room"
        except OSError as error:
            reason = error.strerror or repr(error)
        if reason:
            # A torn line ends the file: nothing may follow it.
            self._full = True
            sys.stderr.write(f"moescope: process {os.getpid()} is not recorded from here on: {reason}\n")

    def _phase(self) -> int:
        stack = self._stacks.get(threading.get_native_id())
        return stack[-1][0] if stack else 0

    def context(self, context: int) -> None:
        self._context = context

    def phase_begin(self, name: str, context: int) -> int:
        self._phases += 1
        phase = self._phases
        self._stacks[threading.get_native_id()].append((phase, name, context or self._context, time.monotonic_ns()))
        return phase

    def phase_end(self, phase: int) -> None:
        stack = self._stacks[threading.get_native_id()]
        if not any(open_phase == phase for open_phase, *_ in stack):
            return
        now = time.monotonic_ns()
        while stack:
            top, name, context, start = stack.pop()
            outer = stack[-1][0] if stack else 0
            self.record(PHASE, name, start, now - start, top, outer, context, depth=len(stack))
            if top == phase:
                break

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
        payload: Any = None,
    ) -> None:
        if type == STEP and not c:
            c = self._context
        if type == OPERATOR:
            self._operators += 1
        if not self._full and self._muted_thread != threading.get_native_id():
            self._write([type, flags, depth, name, start_ns, dur_ns, a, b, c, threading.get_native_id(), payload])

    def done(self, call: int) -> None:
        self.record(DONE, "", time.monotonic_ns(), 0, call)

    def expect(self, name: bytes, call: int) -> int:
        return errno.ENODEV  # without the library no execution range comes

    def withdraw(self, call: int) -> int:
        return 0

    def blob(self, kind: str, payload: Any) -> None:
        self.record(BLOB, kind, time.monotonic_ns(), 0, self._phase(), self._context, payload=payload)

    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None:
        self.blob("comm", [number, op, group, issue_ns, sent, received, dtype])

    def identity(self, facts: dict[str, Any]) -> None:
        self.record(BLOB, "identity", time.monotonic_ns(), 0, payload=facts)

    def operators(self) -> int:
        return self._operators

    def mute(self, on: int) -> None:
        self._muted_thread = threading.get_native_id() if on else 0

    def overhead(self, ns: int) -> None:
        self._overhead += ns
        self.record(BLOB, "overhead", time.monotonic_ns(), 0, payload=self._overhead)

    def close(self) -> None:
        self.record(BLOB, "closed", time.monotonic_ns(), 0)
