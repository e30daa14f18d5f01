"""The way out of the process where no C library could be built: an append-only file."""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from itertools import count
from typing import Any

from .ring import BLOB, DONE, OPERATOR, PHASE, STEP, Phase, not_told


class FileRing:
    """An append-only file of JSON lines: one `write` an event, so a kill tears nothing but the last line."""

    kind = "file"

    def __init__(self, path: str) -> None:
        """Raises OSError where the file cannot be made."""
        self.rows: dict[str, Callable[[dict[str, Any]], bool]] = {}
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._context = 0
        self._phases = 0
        self._operators = 0
        self._overhead = 0
        self._muted_thread = 0
        self._full = False
        self._stacks: dict[int, list[tuple[int, str, int, int]]] = defaultdict(list)
        self._numbers, self._calls = count(1), 0

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

    def phase(self, name: str, layer: int = -1, micro_batch: int = -1, /) -> AbstractContextManager[None]:
        return Phase(self, name, layer, micro_batch)

    def current_phase(self) -> int:
        return self._phase()

    def phases(self) -> int:
        return self._phases

    def phase_begin(self, name: str, place: int) -> int:
        self._phases += 1
        phase = self._phases
        self._stacks[threading.get_native_id()].append((phase, name, self._context | place, time.monotonic_ns()))
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
        if not self._full and not (type == OPERATOR and self._muted_thread == threading.get_native_id()):
            self._write([type, flags, depth, name, start_ns, dur_ns, a, b, c, threading.get_native_id(), payload])

    def done(self, call: int) -> None:
        self.record(DONE, "", time.monotonic_ns(), 0, call)

    def next_call(self) -> int:
        self._calls = next(self._numbers)
        return self._calls

    def calls(self) -> int:
        return self._calls

    issue_begins = staticmethod(not_told)
    issue_ends = staticmethod(not_told)

    def announce(self, on: int, /) -> None: ...
    def worker(self, tid: int, mark: int, /) -> None: ...
    def group_mark(self, name: str) -> int:
        return 0

    def expect(self, name: bytes, call: int, mark: int, /) -> int:
        return errno.ENODEV  # without the library no execution range comes

    def withdraw(self, call: int) -> int:
        return 0

    def follow_calls(self, on: int, /) -> None: ...
    def followed(self) -> int:
        return 0

    def blob(self, kind: str, payload: Any) -> None:
        self.record(BLOB, kind, time.monotonic_ns(), 0, self._phase(), self._context, payload=payload)

    def comm(self, number: int, op: str, group: str, issue_ns: int, sent: Any, received: Any, dtype: str) -> None:
        self.blob("comm", [number, op, group, issue_ns, sent, received, dtype])

    def identity(self, facts: dict[str, Any]) -> None:
        self.record(BLOB, "identity", time.monotonic_ns(), 0, payload=facts)

    def comm_kind(self, op: str, group: str, dtype: str) -> bytes:
        return b""

    uneven = staticmethod(not_told)

    def call_begin(self, call: int, /) -> int:
        return 0

    def call_end(self) -> None: ...
    def settle(self, on: int, /) -> None: ...
    def unsettle(self) -> None: ...
    def settled(self) -> int:
        return 0

    def graph_begin(self, name: str) -> int:
        return 0

    def graph_end(self, outer: int, /) -> None: ...
    def window(self, on: int, /) -> None: ...
    def operators(self) -> int:
        return self._operators

    def thread_operators(self) -> int:
        return self._operators

    def mute(self, on: int) -> None:
        self._muted_thread = threading.get_native_id() if on else 0

    def overhead(self, ns: int) -> None:
        self._overhead += ns
        self.record(BLOB, "overhead", time.monotonic_ns(), 0, payload=self._overhead)

    def close(self) -> None:
        self.record(BLOB, "closed", time.monotonic_ns(), 0)
