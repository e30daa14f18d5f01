"""Reads a PyTorch (Kineto) trace in one piece: the reference for the scan, and what it leaves unsettled."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import msgspec

from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.sources.blocks import TraceText
from moescope.profiler.sources.kineto_events import DECODING, ENVELOPE, EVENTS, WHOLE, Envelope, Event, complaint
from moescope.profiler.sources.kineto_repair import as_utf8, mended
from moescope.profiler.sources.kineto_scan import BLOCK, Found, Take, not_json

LARGEST: Final = 1 << 30
"""Bytes of text; a trace takes several times its size while it is read at once."""


def read_whole(path: Path, take: Take) -> Found:
    """Give all events to `take` at once.

    Raises NoData for an empty file, MoescopeError for one that is torn, no trace, or too large for this.
    """
    text = _text(path)
    if not text.strip():
        raise NoData(f"{path}: empty; export the trace again (torch.profiler's export_chrome_trace)")
    events, envelope, was_mended = _decoded(path, text)
    take(events)
    return Found(envelope, was_mended)


def _text(path: Path) -> bytes:
    whole = bytearray()
    space = memoryview(bytearray(BLOCK))
    with TraceText(path) as text:
        while found := text.readinto(space):
            whole += space[:found]
            if len(whole) > LARGEST:
                raise MoescopeError(
                    f"{path}: its layout cannot be read block by block, and with more than {LARGEST >> 30} GiB it is "
                    "too large to be read at once; export the trace again, or a shorter one"
                )
    return bytes(whole)


def _decoded(path: Path, text: bytes) -> tuple[list[Event], Envelope, bool]:
    is_list = text.lstrip()[:1] == b"["
    if not is_list and text.lstrip()[:1] != b"{":
        raise MoescopeError(f"{path}: no JSON at byte 0: neither a PyTorch (Kineto) trace nor a recording")
    changed = False
    for mends in (False, True):
        if mends:
            better = mended(as_utf8(text))
            changed, text = better != text, better
        try:
            if is_list:
                return EVENTS.decode(text), Envelope(), changed
            found, envelope = WHOLE.decode(text), ENVELOPE.decode(text)
        except msgspec.ValidationError as problem:
            raise not_json(path, 0, complaint(problem), 0) from problem
        except DECODING as problem:
            why = complaint(problem)
            last = problem
            if why.kind == "deep":
                break
            continue
        if found.events is None:
            raise MoescopeError(f"{path}: JSON without `traceEvents`: not a PyTorch (Kineto) trace")
        return found.events, envelope, changed
    why = complaint(last)
    raise not_json(path, why.at if why.at >= 0 else len(text), why, 0) from last
