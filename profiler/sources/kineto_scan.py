"""Reads a PyTorch (Kineto) trace block by block: memory holds a block of events, never the file.

Why this is certain, and no guess about where events begin and end: the text between the brackets of `traceEvents` is
cut at commas, and every piece must decode as a list of its own. If `[a]` and `[b]` are JSON lists that are not empty,
then `[a,b]` is the list of their elements in order, and JSON has one reading only; a comma inside a string or a nested
object leaves pieces that do not decode. What lies around the events is decoded with two values in their place, and must
give these back. What the scan cannot settle, `kineto_whole` reads in one piece.
"""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.sources.blocks import TraceText
from moescope.profiler.sources.kineto_events import (
    DECODING,
    ENVELOPE,
    EVENTS,
    SLOT,
    Complaint,
    Envelope,
    Event,
    complaint,
)
from moescope.profiler.sources.kineto_repair import as_utf8, mended

LARGEST_PIECE: Final = 48 << 20
"""Bytes without a place to cut, beyond which the scan gives up."""

BLOCK: Final = 1 << 20
"""Bytes read at a time: what is decoded stays in the processor's cache."""

_LIST: Final = re.compile(rb"\[")
_KEY: Final = re.compile(rb'"traceEvents"\s*:\s*\[')
_BETWEEN: Final = re.compile(rb"\}\s*,(?=\s*\{)")
_WINDOWS: Final = (64 << 10, 1 << 20, LARGEST_PIECE * 2)
_TRIES: Final = 6
_LONGEST_TOKEN: Final = 64

Take = Callable[[list[Event]], None]


class Uncertain(Exception):
    """The scan cannot settle how this trace is to be read."""


@dataclass
class Found:
    """What came with the events. mended: whether values or text had to be mended to be JSON."""

    envelope: Envelope
    mended: bool = False


def not_json(path: Path, at: int, why: Complaint, events: int) -> MoescopeError:
    """The error for a trace that is broken at byte `at` of its text, after `events` whole events."""
    if why.kind == "typed":
        number = events + max(why.event, 0)
        return MoescopeError(f"{path}: not a PyTorch (Kineto) trace: event {number} of traceEvents: {why.words}")
    if why.kind == "deep":
        return MoescopeError(f"{path}: nested too deeply to be a PyTorch (Kineto) trace, after byte {at}")
    if why.kind == "short":
        return MoescopeError(f"{path}: broken JSON at byte {at}: the file ends early; export or copy the trace again")
    return MoescopeError(f"{path}: broken JSON at byte {at}: {why.words}; export or copy the trace again")


def scan(path: Path, take: Take, block: int = BLOCK) -> Found:
    """Give the trace's events to `take`, many at a time, in the file's order.

    Raises Uncertain where the whole file must be read at once (`take` may have been called), NoData for an empty file,
    MoescopeError for one that is torn or no trace.
    """
    with TraceText(path) as text:
        return _Scan(path, take, text, block).run()


class _Scan:
    """buffer: `[` and the text that is not taken yet, so that it is a list of events once it is closed."""

    def __init__(self, path: Path, take: Take, text: TraceText, block: int) -> None:
        self.path, self.take, self.text, self.block = path, take, text, block
        self.buffer = bytearray(b"[")
        self.at = 0
        """Byte of the text at which the buffer's text begins."""
        self.events = 0
        self.mended = False

    def run(self) -> Found:
        head = self._head()
        self._read_events()
        return Found(self._around(head), self.mended)

    def _more(self) -> bool:
        """Append the next block; False at the end of the file."""
        kept = len(self.buffer)
        longer = bytearray(kept + self.block)
        longer[:kept] = self.buffer
        with memoryview(longer) as whole, whole[kept:] as space:
            found = self.text.readinto(space)
        del longer[kept + found :]
        self.buffer = longer
        return found > 0

    def _drop(self, end: int) -> None:
        """Let go of the buffer's text before `end`."""
        self.at += end - 1
        self.buffer = bytearray(b"[") + self.buffer[end:]

    def _head(self) -> bytes:
        """What stands before the events, to the bracket that opens them; leaves `buffer` behind it."""
        more = self._more()
        while more and not self.buffer[1:].strip():
            self._drop(len(self.buffer))
            more = self._more()
        first = bytes(self.buffer[1:].lstrip()[:1])
        if not first:
            raise NoData(f"{self.path}: empty; export the trace again (torch.profiler's export_chrome_trace)")
        if first not in (b"[", b"{"):
            raise MoescopeError(
                f"{self.path}: no JSON at byte {self.at}: neither a PyTorch (Kineto) trace nor a recording"
            )
        opening = _LIST if first == b"[" else _KEY
        while True:
            found = opening.search(self.buffer, 1)
            if found is not None:
                head = bytes(self.buffer[1 : found.end()])
                self._drop(found.end())
                return head
            if len(self.buffer) > LARGEST_PIECE or not self._more():
                raise Uncertain

    def _read_events(self) -> None:
        """Take all events; leaves `buffer` behind the bracket that closes them."""
        more = True
        while True:
            if self._cut():
                more = self._more()
                continue
            why = self._diagnosis(more)
            if why is None or why.kind == "long":
                # The list's own bracket is the last one before what follows it.
                self._close(self.buffer.rfind(b"]", 0, len(self.buffer) if why is None else max(why.at, 0)) + 1)
                return
            if why.kind in ("broken", "text") and self._mend():
                # What was cut off by what is mended may be taken now.
                continue
            if why.kind != "short":
                raise not_json(self.path, self.at + max(why.at - 1, 0), why, self.events)
            if len(self.buffer) > LARGEST_PIECE:
                raise Uncertain
            if not more:
                end = self.at + len(self.buffer) - 1
                raise Uncertain if self._mend() else not_json(self.path, end, why, self.events)
            more = self._more()

    def _cut(self) -> bool:
        """Take the events before a comma near the buffer's end; False where no cut decodes."""
        places: list[int] = []
        for window in _WINDOWS:
            low = max(len(self.buffer) - window, 0)
            places = [match.end() - 1 for match in _BETWEEN.finditer(self.buffer, low)]
            if places or not low:
                break
        return any(self._taken(comma) for comma in reversed(places[-_TRIES:]))

    def _taken(self, end: int) -> bool:
        """Take the events before `end`; False where they are no list of events.

        Where the text ends, the buffer gets a bracket for as long as it is decoded: that spares a copy of it.
        """
        follows = self.buffer[end : end + 1]
        self.buffer[end : end + 1] = b"]"
        try:
            with memoryview(self.buffer) as whole:
                found = _decoded(whole[: end + 1])
        except DECODING:
            return False
        finally:
            self.buffer[end : end + 1] = follows
        events, as_it_was = found
        self.mended |= not as_it_was
        self.take(events)
        self.events += len(events)
        self._drop(end + 1)
        return True

    def _diagnosis(self, more: bool) -> Complaint | None:
        """Why the buffer is no end of a list of events; None where it is one and nothing follows.

        more: whether the file may go on, so that what is broken at the buffer's end may only be cut there
        """
        try:
            EVENTS.decode(self.buffer)
        except DECODING as problem:
            why = complaint(problem)
            if why.kind == "broken" and more and why.at > len(self.buffer) - _LONGEST_TOKEN:
                return replace(why, kind="short")
            return why
        return None

    def _mend(self) -> bool:
        """Mend the buffer; True where that changed anything."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        better = mended(decoder.decode(self.buffer).encode()) + decoder.getstate()[0]
        if better == self.buffer:
            return False
        self.buffer, self.mended = bytearray(better), True
        return True

    def _close(self, end: int) -> None:
        """Take the last events; end: behind the bracket that closes them"""
        if end < 1 or not self._taken(end - 1):
            raise Uncertain

    def _around(self, head: bytes) -> Envelope:
        while self._more():
            if len(self.buffer) > LARGEST_PIECE:
                raise Uncertain
        before, after = head[:-1], bytes(self.buffer[1:])
        if not before.strip():
            if after.strip():
                raise Uncertain
            return Envelope()
        try:
            for value in (b"[]", b"true"):
                if SLOT.decode(before + value + after).events != ([] if value == b"[]" else True):
                    raise Uncertain
            return ENVELOPE.decode(before + b"[]" + after)
        except DECODING as problem:
            raise Uncertain from problem


def _decoded(text: memoryview) -> tuple[list[Event], bool]:
    """Events, and whether the text was UTF-8 as it was."""
    try:
        return EVENTS.decode(text), True
    except UnicodeDecodeError:
        return EVENTS.decode(as_utf8(bytes(text))), False
