"""Collects what the analysis needs of a PyTorch (Kineto) trace's events into columns, a block of events at a time."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import compress, repeat
from operator import attrgetter
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from moescope.profiler.roofline.operands import ITEM_BYTES, dtype_named, matrix_dtype, operand_text
from moescope.profiler.sources.columns import (
    LAUNCH,
    LONGEST_NS,
    NO_INT,
    NO_TEXT,
    OPERATOR,
    RANGE,
    WORK,
    Codes,
    Growing,
    Ints,
    Numbered,
    Texts,
    Thread,
    TraceColumns,
    integer,
    sizes,
)
from moescope.profiler.sources.decimals import all_to_ns
from moescope.profiler.sources.kineto_events import DECODING, Event
from moescope.profiler.sources.kineto_repair import as_utf8
from moescope.profiler.sources.messages import Message, splits_of

WORK_OF: Final = frozenset({"kernel", "Kernel", "gpu_memcpy", "gpu_memset", "Memcpy", "Memset"})
LAUNCHES: Final = frozenset(
    {
        "cuda_runtime", "cuda_driver", "Runtime", "Driver", "hip_runtime", "privateuse1_runtime", "privateuse1_driver",
        "xpu_runtime", "xpu_driver", "mtia_runtime",
    }
)  # fmt: skip
RANGES: Final = frozenset({"user_annotation", "python_user_annotation"})
DEVICE_RANGES: Final = frozenset({"gpu_user_annotation"})
LEGACY_OPERATOR: Final = "Operator"
OPERATORS: Final = frozenset({"cpu_op", LEGACY_OPERATOR})
STEP: Final = "ProfilerStep#"

_WORK, _LAUNCH, _RANGE, _DEVICE_RANGE, _OPERATOR, _UNTOLD, _ELSE = range(7)


_KIND: Final[dict[str | None, int]] = {
    category: kind
    for kind, categories in enumerate((WORK_OF, LAUNCHES, RANGES, DEVICE_RANGES, OPERATORS))
    for category in categories
} | {None: _UNTOLD}
_CATEGORY, _NAME = attrgetter("cat"), attrgetter("name")
_PID, _TID, _TS, _DUR = attrgetter("pid"), attrgetter("tid"), attrgetter("ts"), attrgetter("dur")
_STREAM: Final = re.compile(r"stream\s+(?=\S)", re.IGNORECASE)
_EXACT: Final = 2**53
_MOST_KNOWN: Final = 1 << 17
_NO_OPERANDS: Final = (NO_TEXT, NO_TEXT)
_VALUES_MATTER: Final = re.compile(r"conv|attention|attn|flash", re.IGNORECASE)
_MERGED: Final = re.compile(r"\[([^\]]+)\]\s*(.*)", re.S)
"""A process of a file that several ranks' traces were merged into: `[TP-0] 4711`."""


class _WorkArgs(msgspec.Struct, gc=False):
    """What a device event tells about itself; every value may be missing or of another type."""

    device: Any = None
    stream: Any = None
    correlation: Any = None
    grid: Any = None
    block: Any = None
    registers: Any = msgspec.field(default=None, name="registers per thread")
    shared_bytes: Any = msgspec.field(default=None, name="shared memory")
    bytes: Any = None
    collective: Any = msgspec.field(default=None, name="Collective name")
    elements: Any = msgspec.field(default=None, name="In msg nelems")
    elements_out: Any = msgspec.field(default=None, name="Out msg nelems")
    group_size: Any = msgspec.field(default=None, name="Group size")
    splits: Any = msgspec.field(default=None, name="In split size")
    splits_out: Any = msgspec.field(default=None, name="Out split size")
    source: Any = msgspec.field(default=None, name="Src Rank")
    destination: Any = msgspec.field(default=None, name="Dst Rank")
    dtype: Any = None
    group: Any = msgspec.field(default=None, name="Process Group Name")
    group_ranks: Any = msgspec.field(default=None, name="Process Group Ranks")


class _LaunchArgs(msgspec.Struct, gc=False):
    correlation: Any = None


class _OperatorArgs(msgspec.Struct, gc=False):
    shapes: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="Input Dims")
    types: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="Input type")
    values: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="Concrete Inputs")


class _NameArgs(msgspec.Struct, gc=False):
    name: Any = None


_NAME_ARGS: Final = msgspec.json.Decoder(list[_NameArgs])
_WORK_ARGS: Final = msgspec.json.Decoder(list[_WorkArgs])
_LAUNCH_ARGS: Final = msgspec.json.Decoder(list[_LaunchArgs])
_OPERATOR_ARGS: Final = msgspec.json.Decoder(list[_OperatorArgs])
Args = TypeVar("Args", bound=msgspec.Struct)


def _integers(values: Iterable[object], bits: int = 64) -> Ints:
    """[values] NO_INT where `integer` gives None."""
    told = list(values)
    kinds = set(map(type, told))
    if type(None) in kinds:
        told = [NO_INT if value is None else value for value in told]
    if kinds <= {int, type(None)}:
        with suppress(OverflowError):
            found = np.array(told, np.int64)
            if bits == 64 or np.abs(found[found != NO_INT]).max(initial=0) < 2 ** (bits - 1):
                return found
    whole = (integer(value, bits) for value in told)
    return np.array([NO_INT if value is None else value for value in whole], np.int64)


def _args(events: Sequence[Event], decoder: msgspec.json.Decoder[list[Args]], kind: type[Args]) -> list[Args]:
    """The events' arguments; empty ones where they are of another form."""
    try:
        return decoder.decode(b"".join((b"[", b",".join([event.args for event in events]), b"]")))
    except (msgspec.DecodeError, UnicodeDecodeError):
        found = []
        for event in events:
            try:
                found += decoder.decode(b"[" + as_utf8(bytes(event.args)) + b"]")
            except msgspec.DecodeError:
                found.append(kind())
        return found


class _Threads(Numbered[tuple[object, object]]):
    """Numbers threads by process and thread, whichever way these are written. names: by number"""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[tuple[str, str]] = []

    def __missing__(self, key: tuple[object, object]) -> int:
        name = (_plain(key[0]), _plain(key[1]))
        if name in self:
            number = self[name]
        else:
            number = self[name] = len(self.names)
            self.names.append(name)
        self[key] = number
        return number


class _ValuesMatter(dict[str | None, bool]):
    """By operator, whether its operations depend on plain arguments too: strides, or whether attention is causal."""

    def __missing__(self, name: str | None) -> bool:
        matter = self[name] = bool(_VALUES_MATTER.search(name or ""))
        return matter


class _Streams(dict[object, str]):
    """A stream as it is called, however a trace writes it: `stream 7` is 7."""

    def __missing__(self, written: object) -> str:
        name = self[written] = _STREAM.sub("", _plain(written))
        return name


class KinetoColumns:
    """Grows by `take`; `done` gives the columns."""

    def __init__(self) -> None:
        self._texts = Texts()
        self._threads = _Threads()
        self._thread_names: dict[tuple[str, str], str] = {}
        self._triples: dict[tuple[object, ...], int] = {}
        self._streams = _Streams()
        self._values_matter = _ValuesMatter()
        self._operands_of: dict[tuple[bytes, bytes, bytes], tuple[int, int]] = {}
        self._work, self._launches = Growing(**WORK), Growing(**LAUNCH)
        self._ranges, self._device_ranges = Growing(**RANGE), Growing(**RANGE)
        self._operators = Growing(**OPERATOR)
        self._messages: Numbered[Message] = Numbered()
        self._work_lost = self._others_lost = 0

    def take(self, events: Sequence[Event]) -> None:
        """Add the events that are wanted."""
        kinds = np.fromiter(map(_KIND.get, map(_CATEGORY, events), repeat(_ELSE)), np.int8, len(events))

        def of(kind: int) -> list[Event]:
            return [events[row] for row in np.flatnonzero(kinds == kind).tolist()]

        for event in of(_UNTOLD):
            if event.ph == "M" and event.name == "thread_name":
                self._name_thread(event)
        for kind, add in (
            (_WORK, self._add_work),
            (_LAUNCH, self._add_launches),
            (_RANGE, self._add_ranges),
            (_DEVICE_RANGE, self._add_device_ranges),
            (_OPERATOR, self._add_operators),
        ):
            found = of(kind)
            whole = [event for event in found if event.ph == "X"]
            if kind == _WORK:
                self._work_lost += len(found) - len(whole)
            if whole:
                add(whole)

    def done(self, base_ns: int) -> TraceColumns:
        """The columns of all events taken."""
        work, others = self._work_lost, self._others_lost
        notes = [
            (
                f"{work} device events without a usable start and duration (missing, negative, no number, beyond any "
                "clock, or in two halves) are left out",
                work,
            ),
            (f"{others} annotations, operators or launches without usable times are left out", others),
        ]
        return TraceColumns(
            base_ns=base_ns,
            work=self._work.done(),
            launches=self._launches.done(),
            ranges=self._ranges.done(),
            device_ranges=self._device_ranges.done(),
            operators=self._operators.done(),
            texts=self._texts.values(),
            threads=[self._thread(process, tid) for process, tid in self._threads.names],
            notes=[note for note in notes if note[1]],
            messages=list(self._messages),
        )

    def _thread(self, process: str, tid: str) -> Thread:
        name = self._thread_names.get((process, tid), "")
        merged = _MERGED.fullmatch(process)
        return Thread(process, name if name and tid in name else f"{name} {tid}".strip(), merged[1] if merged else "")

    def _name_thread(self, event: Event) -> None:
        (args,) = _args([event], _NAME_ARGS, _NameArgs)
        if isinstance(args.name, str) and args.name:
            self._thread_names[_plain(event.pid), _plain(event.tid)] = args.name

    def _threads_of(self, events: Sequence[Event]) -> Codes:
        return self._threads.of(zip(map(_PID, events), map(_TID, events), strict=True))

    def _timed(self, events: list[Event]) -> tuple[list[Event], Ints, Ints]:
        """The events that have a start and a duration, these in ns."""
        starts = all_to_ns(list(map(_TS, events)))
        durations = all_to_ns(list(map(_DUR, events)))
        good = (starts != NO_INT) & (durations >= 0) & (durations <= LONGEST_NS)
        if good.all():
            return events, starts, durations
        rows = np.flatnonzero(good)
        return [events[row] for row in rows.tolist()], starts[rows], durations[rows]

    def _add_launches(self, events: list[Event]) -> None:
        starts = all_to_ns(list(map(_TS, events)))
        correlations = _integers(args.correlation for args in _args(events, _LAUNCH_ARGS, _LaunchArgs))
        good = (starts != NO_INT) & (correlations != NO_INT)
        self._others_lost += int((starts == NO_INT).sum())
        self._launches.add(thread=self._threads_of(events)[good], correlation=correlations[good], start=starts[good])

    def _add_ranges(self, events: list[Event]) -> None:
        self._range(self._ranges, events)

    def _add_device_ranges(self, events: list[Event]) -> None:
        self._range(self._device_ranges, events)

    def _range(self, ranges: Growing, events: list[Event]) -> None:
        good, starts, durations = self._timed(events)
        self._others_lost += len(events) - len(good)
        ranges.add(
            thread=self._threads_of(good),
            name=self._texts.codes(map(_NAME, good)),
            start=starts,
            dur=durations,
        )

    def _add_operators(self, events: list[Event]) -> None:
        is_step = [event.cat == LEGACY_OPERATOR and (event.name or "").startswith(STEP) for event in events]
        if any(is_step):
            self._add_ranges(list(compress(events, is_step)))
            events = [event for event, step in zip(events, is_step, strict=True) if not step]
        good, starts, durations = self._timed(events)
        self._others_lost += len(events) - len(good)
        args = _args(good, _OPERATOR_ARGS, _OperatorArgs)
        told = (self._operands(event.name, one) for event, one in zip(good, args, strict=True))
        operands = np.fromiter((code for codes in told for code in codes), np.int32, 2 * len(good)).reshape(-1, 2)
        self._operators.add(
            thread=self._threads_of(good),
            name=self._texts.codes(map(_NAME, good)),
            start=starts,
            dur=durations,
            shapes=operands[:, 0],
            dtype=operands[:, 1],
        )

    def _add_work(self, events: list[Event]) -> None:
        good, starts, durations = self._timed(events)
        self._work_lost += len(events) - len(good)
        args = _args(good, _WORK_ARGS, _WorkArgs)
        texts = self._texts
        devices = _integers(
            (one.device if one.device is not None else event.pid for one, event in zip(args, good, strict=True)), 32
        )
        streams = (one.stream if one.stream is not None else event.tid for one, event in zip(args, good, strict=True))
        self._work.add(
            thread=self._threads_of(good),
            device=np.where(devices == NO_INT, 0, devices),
            stream=texts.codes(
                self._streams[stream if isinstance(stream, (int, str, float)) else ""] for stream in streams
            ),
            name=texts.codes(map(_NAME, good)),
            start=starts,
            dur=durations,
            correlation=_integers(one.correlation for one in args),
            grid=np.array([self._triple(one.grid) for one in args], np.int32),
            block=np.array([self._triple(one.block) for one in args], np.int32),
            registers=_integers((one.registers for one in args), 32),
            shared=sizes(_integers(one.shared_bytes for one in args)),
            **self._of_collectives(args),
        )

    def _of_collectives(self, args: list[_WorkArgs]) -> dict[str, NDArray[Any]]:
        """Columns that copies and the kernels of collectives alone have."""
        texts = self._texts
        none = np.full(len(args), NO_TEXT, np.int32)
        columns: dict[str, NDArray[Any]] = dict.fromkeys(("dtype", "op", "group", "ranks", "message"), none)
        if not any(one.dtype is not None or one.collective is not None for one in args):
            return columns | {"bytes": sizes(_integers(one.bytes for one in args))}
        dtypes = [_named(one.dtype) for one in args]
        return {
            "bytes": sizes(_integers(_bytes(one, dtype) for one, dtype in zip(args, dtypes, strict=True))),
            "dtype": texts.codes(dtypes),
            "op": texts.codes(
                one.collective if isinstance(one.collective, str) and one.collective else None for one in args
            ),
            "group": texts.codes(None if one.group is None else _plain(one.group) for one in args),
            "ranks": texts.codes(
                one.group_ranks.strip("[]").replace(" ", "") if isinstance(one.group_ranks, str) else None
                for one in args
            ),
            "message": np.array(
                [NO_TEXT if one.collective is None else self._messages[_message(one)] for one in args], np.int32
            ),
        }

    def _triple(self, value: object) -> int:
        """Code of `x,y,z` from a launch's list of dimensions."""
        if not isinstance(value, list):
            return NO_TEXT
        try:
            known = self._triples.get(key := tuple(value))
        except TypeError:
            return NO_TEXT
        if known is None:
            whole = bool(value) and all(type(part) is int for part in value)
            known = self._texts.code(",".join(map(str, value)) if whole else None)
            self._triples[key] = known
        return known

    def _operands(self, name: str | None, args: _OperatorArgs) -> tuple[int, int]:
        """Codes of an operator's operands and of their type."""
        if not args.shapes:
            return _NO_OPERANDS
        values = args.values if self._values_matter[name] else b""
        key = (bytes(args.shapes), bytes(args.types), bytes(values))
        known = self._operands_of.get(key)
        if known is None:
            shapes, types, plain = (_decoded(text) for text in key)
            known = (self._texts.code(operand_text(shapes, plain)), self._texts.code(matrix_dtype(shapes, types)))
            if len(self._operands_of) < _MOST_KNOWN:
                self._operands_of[key] = known
        return known


def _decoded(text: bytes) -> object:
    try:
        return msgspec.json.decode(text)
    except DECODING:
        return None


def _named(dtype: object) -> str | None:
    """An element type's short name; as it stands where that is not known."""
    return dtype_named(dtype) or (dtype if isinstance(dtype, str) and dtype else None)


def _plain(value: object) -> str:
    """A process, thread or stream as text: 7, 7.0 and "7" are the same."""
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return "" if value is None else str(value)


def _message(args: _WorkArgs) -> Message:
    """What a collective's kernel tells of its sizes; numbers that can be none are not told."""

    def size(value: object, bits: int = 48) -> int | None:
        found = integer(value, bits)
        return found if found is not None and found >= 0 else None

    peer = args.destination if args.destination is not None else args.source
    return Message(
        elements_in=size(args.elements),
        elements_out=size(args.elements_out),
        size=size(args.group_size, 24),
        peer=size(peer, 31),
        splits_in=splits_of(args.splits),
        splits_out=splits_of(args.splits_out),
    )


def _bytes(args: _WorkArgs, dtype: str | None) -> int | None:
    told = integer(args.bytes)
    if told is not None:
        return told
    elements, item = integer(args.elements), ITEM_BYTES.get(dtype or "")
    return integer(elements * item) if elements is not None and item is not None else None
