"""One PyTorch (Kineto) trace file: its columns, and what it says of its rank and devices."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from moescope.profiler.errors import MoescopeError
from moescope.profiler.sources.columns import FARTHEST_NS, Origin, TraceFile, groups_of, integer
from moescope.profiler.sources.kineto_columns import KinetoColumns
from moescope.profiler.sources.kineto_events import Envelope
from moescope.profiler.sources.kineto_scan import Uncertain, scan
from moescope.profiler.sources.kineto_whole import read_whole
from moescope.profiler.sources.messages import MOST_RANKS

MENDED: Final = (
    "the file is no clean JSON (bare nan, inf or N/A, stray commas, broken escapes or text): such values are read as "
    "missing, such text as it stands"
)

_MOST_UNITS: Final = 1 << 16
_LARGEST: Final = 1 << 48
_LONGEST: Final = 200


def read_kineto(path: Path) -> list[TraceFile]:
    """Read a trace, plain or gzip; several ranks where the traces of several were merged into one file.

    Raises NoData for an empty file, MoescopeError for one that is torn or no trace.
    """
    columns = KinetoColumns()
    try:
        found = scan(path, columns.take)
    except Uncertain:
        columns = KinetoColumns()
        found = read_whole(path, columns.take)
    envelope = found.envelope
    told = envelope.distributed if isinstance(envelope.distributed, dict) else {}
    base_ns = integer(envelope.base_ns) or 0
    if abs(base_ns) > FARTHEST_NS:
        raise MoescopeError(f"{path}: baseTimeNanoseconds {base_ns} is beyond any clock; export the trace again")
    done = replace(columns.done(base_ns), groups=_groups(told))
    origin = Origin(
        path=path,
        tool="kineto",
        rank=integer(told.get("rank"), 32),
        world_size=integer(told.get("world_size"), 32),
        devices=_devices(envelope),
        notes=[(MENDED, 0)] if found.mended else [],
    )
    ranks = groups_of(done)
    if len(ranks) < 2:
        return [TraceFile(origin, done)]
    return [TraceFile(replace(origin, rank=None, group=group), columns) for group, columns in ranks.items()]


def _groups(told: dict[str, Any]) -> dict[str, str]:
    """Ranks by name of the process group, as `distributedInfo` lists them."""
    listed = told.get("pg_config")
    found = {}
    for one in listed if isinstance(listed, list) else ():
        name, ranks = (one.get("pg_name"), one.get("ranks")) if isinstance(one, dict) else (None, None)
        if not isinstance(name, (str, int)) or not isinstance(ranks, list) or not 0 < len(ranks) <= MOST_RANKS:
            continue
        if all(type(rank) is int and 0 <= rank < 2**31 for rank in ranks):
            found[str(name)] = ",".join(map(str, ranks))
    return found


def _devices(envelope: Envelope) -> dict[str, dict[str, Any]]:
    """Properties by device; under the names of today's traces, whatever the trace calls them."""
    listed = envelope.devices if isinstance(envelope.devices, list) else envelope.legacy_devices
    found = {}
    for at, properties in enumerate(listed if isinstance(listed, list) else ()):
        if not isinstance(properties, dict):
            continue
        number = integer(properties.get("id"), 32)
        if "numSms" not in properties and "multiProcessorCount" in properties:
            properties = properties | {"numSms": properties["multiProcessorCount"]}
        found[f"cuda:{at if number is None else number}"] = {
            key: value for key, value in properties.items() if _is_property(key, value)
        }
    return found


def _is_property(key: str, value: object) -> bool:
    """Whether a device can be so; all else is as good as not told."""
    if isinstance(value, int):
        return 0 <= value <= (_MOST_UNITS if key == "numSms" else _LARGEST)
    return isinstance(value, str) and len(value) < _LONGEST
