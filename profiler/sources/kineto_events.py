"""One PyTorch (Kineto) trace event, its decoding, and what a decoder's complaint means.

msgspec checks every byte of JSON's grammar, also in the keys that it skips; only the wanted keys become objects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

NOTHING: Final = msgspec.Raw(b"{}")


class Event(msgspec.Struct, gc=False):
    """One trace event. Times stay text (decimal µs) until they are wanted, so that no digit is lost."""

    ph: str | None = None
    cat: str | None = None
    name: str | None = ""
    pid: int | str | float | None = None
    tid: int | str | float | None = None
    ts: msgspec.Raw = msgspec.Raw()
    dur: msgspec.Raw = msgspec.Raw()
    args: msgspec.Raw = NOTHING


class Envelope(msgspec.Struct):
    """The trace around its events: what it says of devices, ranks and the clock."""

    distributed: Any = msgspec.field(default=None, name="distributedInfo")
    devices: Any = msgspec.field(default=None, name="deviceProperties")
    legacy_devices: Any = msgspec.field(default=None, name="computeProperties")
    base_ns: Any = msgspec.field(default=0, name="baseTimeNanoseconds")


class Slot(msgspec.Struct):
    """The one key that holds the events."""

    events: Any = msgspec.field(default=None, name="traceEvents")


class Whole(msgspec.Struct):
    """A trace's events, all of them at once."""

    events: list[Event] | None = msgspec.field(default=None, name="traceEvents")


EVENTS: Final = msgspec.json.Decoder(list[Event])
ENVELOPE: Final = msgspec.json.Decoder(Envelope)
SLOT: Final = msgspec.json.Decoder(Slot)
WHOLE: Final = msgspec.json.Decoder(Whole)

_BYTE: Final = re.compile(r"\(byte (\d+)\)")
_PATH: Final = re.compile(r"`\$(?:\.traceEvents)?\[(\d+)\]([^`]*)`")


@dataclass(frozen=True, slots=True)
class Complaint:
    """Why a text was not decoded.

    kind: `short` it may only end too early; `long` a value ended and more follows; `broken` no JSON; `typed` JSON, but
    not of a trace's form; `deep` nested without end; `text` no UTF-8
    at: byte where that was seen, -1 where it was not told; event: index of the event at fault, -1 likewise
    """

    kind: Literal["short", "long", "broken", "typed", "deep", "text"]
    at: int
    event: int
    words: str


def complaint(problem: Exception) -> Complaint:
    """What a decoder's exception means: one of `msgspec.DecodeError`, RecursionError, UnicodeDecodeError."""
    if isinstance(problem, RecursionError):
        return Complaint("deep", -1, -1, "nested too deeply")
    if isinstance(problem, UnicodeDecodeError):
        return Complaint("text", -1, -1, str(problem.reason))
    words = str(problem)
    if isinstance(problem, msgspec.ValidationError):
        path = _PATH.search(words)
        told = _PATH.sub(r"`\2`", words).replace("`.", "`").removesuffix(" - at ``")
        return Complaint("typed", -1, int(path[1]) if path else -1, told)
    if "truncated" in words:
        return Complaint("short", -1, -1, words)
    found = _BYTE.search(words)
    at = int(found[1]) if found else -1
    words = _BYTE.sub("", words).removeprefix("JSON is malformed: ").strip()
    return Complaint("long" if "trailing characters" in words else "broken", at, -1, words)


DECODING: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError)
"""What a decoder can raise."""
