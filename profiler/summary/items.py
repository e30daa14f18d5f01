"""What a run is divided into for analysis, and the analysis of one piece: a pure function of what the piece names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from moescope.collectors.schema import host_folder, rank_folder
from moescope.profiler.classify.classifier import stored_rules, use_rules, user_rules
from moescope.profiler.classify.rules import Rule
from moescope.profiler.hardware.table import PeaksFrom, peaks_from, use_peaks
from moescope.profiler.ranks.part import Part, merge
from moescope.profiler.ranks.view import HOST
from moescope.profiler.sources.columns import Origin

if TYPE_CHECKING:
    from moescope.profiler.sources.recording import Recording

IN_A_FILE: Final = 1 << 20
"""More ranks than one file holds: the places of a file's ranks begin at its own place times this."""


@dataclass(frozen=True, slots=True)
class Item:
    """A trace file, or one rank of a recording.

    place: among all items, which keeps their order; rank: of the recording, HOST for what belongs to none, None for
    a trace file; size: bytes on disk; rules, stored: classifier rules that the analysis goes by
    """

    path: Path
    place: int
    rank: int | None
    size: int
    rules: tuple[Rule, ...]
    stored: tuple[Rule, ...]
    peaks: PeaksFrom


@dataclass(frozen=True, slots=True)
class Analysed:
    """What an item gives.

    part: ranks of traces are numbered by place until all are known; without: the same where other ranks' traces have
    device events and this one's has none, so that its operators do not count; origins: of traces, by place; on_device:
    places of the traces with device events
    """

    part: Part
    without: Part
    origins: dict[int, Origin]
    on_device: frozenset[int]


def trace_items(files: Sequence[Path]) -> list[Item]:
    """An item a file."""
    rules, stored = user_rules(), stored_rules()
    return [
        Item(path.resolve(), place * IN_A_FILE, None, path.stat().st_size, rules, stored, peaks_from())
        for place, path in enumerate(files)
    ]


def recording_items(recording: Recording) -> list[Item]:
    """An item a rank, and one for what belongs to no rank. recording: its `meta.json` was read"""
    rules, stored = user_rules(), stored_rules()
    folder = recording.folder.resolve()
    return [
        Item(folder, place, rank, _size(folder / rank_folder(rank)) if rank != HOST else 0, rules, stored, peaks_from())
        for place, rank in enumerate([HOST, *recording.ranks()])
    ]


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.is_dir() else 0


def analyse(item: Item) -> Analysed:
    """Analyse one item, in whatever process.

    Raises MoescopeError for a file that is no trace.
    """
    if (user_rules(), stored_rules()) != (item.rules, item.stored):
        use_rules(item.rules, stored=item.stored)
    use_peaks(item.peaks)
    return _of_recording(item, item.rank) if item.rank is not None else _of_traces(item)


def _of_recording(item: Item, rank: int) -> Analysed:
    from moescope.profiler.ranks.facts import host_of
    from moescope.profiler.sources.recording import Recording
    from moescope.profiler.summary.answer import part_of

    about = Recording(item.path, ())
    about.poll()
    host = host_of(about, rank) if rank != HOST else ""
    own = (rank_folder(rank),) if rank != HOST else ()
    source = Recording(item.path, (*own, host_folder(host) if host else "host-*"))
    source.poll()
    part = part_of(source, only=rank)
    return Analysed(part, part, {}, frozenset())


def _of_traces(item: Item) -> Analysed:
    from moescope.profiler.sources.traces import alone, read_ranks
    from moescope.profiler.summary.answer import part_of

    part, without = Part(), Part()
    origins: dict[int, Origin] = {}
    on_device: set[int] = set()
    for place, trace in enumerate(read_ranks(item.path), item.place):
        origins[place] = trace.origin
        found = quiet = part_of(alone(trace), place)
        if trace.on_device:
            on_device.add(place)
        else:
            none = trace.tables | {"kernels": trace.tables["kernels"].slice(0, 0)}
            quiet = part_of(alone(replace(trace, tables=none)), place)
        part, without = merge(part, found), merge(without, quiet)
    return Analysed(part, without, origins, frozenset(on_device))
