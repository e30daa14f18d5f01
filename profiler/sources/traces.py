"""Trace files of one run as a source: one rank a file, or the ranks that a file tells apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from moescope.collectors.schema import arrow_schema
from moescope.profiler.errors import MoescopeError, NoData, UsageProblem
from moescope.profiler.sources.columns import Origin, TraceFile, count
from moescope.profiler.sources.lanes import with_few_lanes
from moescope.profiler.sources.nsight import read_nsight
from moescope.profiler.sources.ranks import odd_worlds, ranks_of, sure_rank
from moescope.profiler.sources.sqlite import MAGIC
from moescope.profiler.sources.tables import tables_of

if TYPE_CHECKING:
    import pyarrow as pa

REPORTS: Final = (".nsys-rep", ".qdrep")
NO_DEVICE: Final = "no device events, where traces of other ranks have some: its rank counts nothing"


class TraceSource:
    """Trace files of one run, one rank a file; read whole, so `poll` never brings anything."""

    state: Literal["trace"] = "trace"

    def __init__(self, name: str, meta: dict[str, Any], tables: dict[str, pa.Table]) -> None:
        self.name = name
        self.meta = meta
        self.torn: list[str] = []
        self._tables = tables

    def poll(self) -> bool:
        """A trace does not grow."""
        return False

    def table(self, name: str) -> pa.Table:
        """All rows of a table; empty where traces have none."""
        if name not in self._tables:
            self._tables[name] = arrow_schema(name).empty_table()
        return self._tables[name]

    def ranks(self) -> list[int]:
        """Ranks of the files, rising."""
        return sorted(entry["rank"] for entry in self.meta["ranks"])


@dataclass(frozen=True, slots=True)
class RankTrace:
    """One rank's trace as tables, those of rank 0 until its rank is known; on_device: whether it has device events"""

    origin: Origin
    tables: dict[str, pa.Table]
    on_device: bool


def read_ranks(path: Path) -> list[RankTrace]:
    """The ranks of one file. Raises MoescopeError for a file that is no trace, NoData for one without events."""
    return [_rank_trace(trace) for trace in _read(path)]


def _rank_trace(trace: TraceFile) -> RankTrace:
    columns = with_few_lanes(trace.columns)
    tables, left_out = tables_of(columns, sure_rank(trace.origin))
    origin = replace(trace.origin, notes=[*trace.origin.notes, *columns.notes, *left_out])
    return RankTrace(origin, tables, count(columns.work) > 0)


def open_traces(files: Sequence[Path]) -> TraceSource:
    """Read trace files of one run.

    Raises NoData where none of them holds a device kernel or CPU operator, MoescopeError for a file that is no trace,
    or of a rank that another one is of.
    """
    import pyarrow as pa

    traces = [trace for path in files for trace in read_ranks(path)]
    origins = [trace.origin for trace in traces]
    ranks, notes = ranks_of(origins)
    if not any(trace.tables["kernels"].num_rows for trace in traces):
        raise NoData(no_work(files))
    on_device = any(trace.on_device for trace in traces)
    for trace in traces:
        if on_device and not trace.on_device:
            trace.tables["kernels"] = trace.tables["kernels"].slice(0, 0)
    log = log_rows(origins, ranks, notes, [on_device and not trace.on_device for trace in traces])
    order = sorted(range(len(ranks)), key=ranks.__getitem__)
    tables = {
        name: pa.concat_tables([_of_rank(traces[at].tables.pop(name), ranks[at]) for at in order])
        for name in [*traces[0].tables]
    }
    tables["log"] = pa.Table.from_pylist(log, schema=arrow_schema("log"))
    entries = [_entry(origins[at], ranks[at], tables["kernels"]) for at in order]
    return TraceSource(name_of(files), _meta(files, origins, entries), tables)


def alone(trace: RankTrace) -> TraceSource:
    """One rank's trace by itself, as of rank 0, and without what would be said about it in the log."""
    entry = _entry(trace.origin, 0, trace.tables["kernels"])
    return TraceSource(trace.origin.path.name, _meta([trace.origin.path], [trace.origin], [entry]), dict(trace.tables))


def no_work(files: Sequence[Path]) -> str:
    """That none of the files holds anything to count."""
    names = ", ".join(str(path) for path in files[:3]) + (" …" if len(files) > 3 else "")
    return f"{names}: no device kernels and no CPU operators; record with ProfilerActivity.CUDA or CPU"


def log_rows(
    origins: Sequence[Origin], ranks: Sequence[int], notes: Sequence[str], left_out: Sequence[bool]
) -> list[dict[str, Any]]:
    """Rows of `log`: what was odd about the ranks, and about each trace; left_out: whose operators do not count"""
    log = [_log_row(None, note, 0) for note in (*notes, *odd_worlds(origins, ranks))]
    for origin, rank, left in zip(origins, ranks, left_out, strict=True):
        told = [*origin.notes, *([(NO_DEVICE, 0)] if left else [])]
        log += [_log_row(None if origin.group else rank, f"{origin.path.name}: {note}", lost) for note, lost in told]
    return log


def _read(path: Path) -> list[TraceFile]:
    """Whatever tool wrote it: by what stands at its beginning, and by no name but those of reports."""
    if path.suffix in REPORTS:
        raise UsageProblem(
            f"{path}: a report of Nsight Systems: export it with `nsys export --type sqlite {path.name}`"
        )
    try:
        with path.open("rb") as file:
            is_sqlite = file.read(len(MAGIC)) == MAGIC
    except OSError as problem:
        raise MoescopeError(f"{path}: cannot be read: {problem.strerror or problem}") from problem
    if is_sqlite:
        return read_nsight(path)
    try:
        # Recordings are read without it: a machine that has no msgspec can still tell of its own runs.
        from moescope.profiler.sources.kineto import read_kineto
    except ModuleNotFoundError as problem:
        name = problem.name
        raise MoescopeError(f"{path}: PyTorch traces are read with {name}: pip install {name}") from problem
    return read_kineto(path)


def _of_rank(table: pa.Table, rank: int) -> pa.Table:
    import pyarrow as pa

    field = table.schema.field("rank")
    return table.set_column(
        table.schema.get_field_index("rank"), field, pa.repeat(pa.scalar(rank, field.type), len(table))
    )


def _log_row(rank: int | None, message: str, lost: int) -> dict[str, Any]:
    return {"t_ns": 0, "rank": rank, "level": "warning", "source": "import", "message": message, "dropped": lost}


def _entry(origin: Origin, rank: int, kernels: pa.Table) -> dict[str, Any]:
    import pyarrow.compute as pc

    devices = pc.unique(kernels.filter(pc.equal(kernels.column("rank"), rank)).column("device")).to_pylist()
    return {
        "rank": rank,
        "world_size": origin.world_size,
        "device": devices[0] if devices else None,
        "state": "trace",
        "source": origin.tool,
        "file": origin.path.name,
        "device_properties": origin.devices,
    } | ({"process": origin.group} if origin.group else {})


def name_of(files: Sequence[Path]) -> str:
    """What to call a source of these files."""
    return files[0].name if len(files) == 1 else f"{files[0].resolve().parent.name} ({len(files)} traces)"


def _meta(files: Sequence[Path], origins: Sequence[Origin], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "target": files[0].name if len(files) == 1 else files[0].resolve().parent.name,
        "state": "trace",
        "ranks": ranks,
        "collectors": {"kernels": ", ".join(sorted({origin.tool for origin in origins}))},
    }
