"""PyTorch (Kineto) traces as a source: device events become kernels, annotations become phases."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from moescope.collectors.schema import TABLES, arrow_schema
from moescope.profiler.classify import without_host_calls
from moescope.profiler.errors import MoescopeError, NoData
from moescope.profiler.kineto_file import TraceFile, integer, read_trace
from moescope.profiler.kineto_rows import rows_of

if TYPE_CHECKING:
    import pyarrow as pa

_RANK_IN_NAME: Final = re.compile(
    r"rank[-_]?(\d+)|worker[-_]?(\d+)|(?:^|[-_.])TP[-_]?(\d+)|(?:^|[-_])r(\d+)[-_.]", re.I
)


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


def open_traces(files: Sequence[Path]) -> TraceSource:
    """Read trace files of one run.

    Raises NoData where none of them holds a device kernel or CPU operator, MoescopeError for a file that is no trace.
    """
    import pyarrow as pa

    traces = [read_trace(path) for path in files]
    ranks, warnings = ranks_of(traces)
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in TABLES}
    tables: dict[str, list[pa.Table]] = {name: [] for name in TABLES}
    listed = []
    for trace, rank in zip(traces, ranks, strict=True):
        try:
            found = rows_of(trace, rank)
        except MoescopeError as problem:
            raise MoescopeError(f"{trace.path}: {problem}") from problem
        for name, columns in found.items():
            tables[name].append(_table(name, columns))
        listed.append(_rank_entry(trace, rank, tables["kernels"][-1]))
        trace.events.clear()
    if not any(table.num_rows for table in tables["kernels"]):
        names = ", ".join(str(path) for path in files[:3]) + (" …" if len(files) > 3 else "")
        raise NoData(f"{names}: no device kernels and no CPU operators; record with ProfilerActivity.CUDA or CPU")
    rows["log"] = [
        {"t_ns": 0, "rank": None, "level": "warning", "source": "import", "message": text, "dropped": 0}
        for text in warnings
    ]
    merged = {name: pa.concat_tables(parts) for name, parts in tables.items() if parts}
    merged["kernels"] = without_host_calls(merged["kernels"]).sort_by(
        [("rank", "ascending"), ("start_ns", "ascending")]
    )
    merged["log"] = pa.Table.from_pylist(rows["log"], schema=arrow_schema("log"))
    name = files[0].name if len(files) == 1 else f"{files[0].resolve().parent.name} ({len(files)} traces)"
    return TraceSource(name, _meta(files, listed), merged)


def ranks_of(traces: Sequence[TraceFile]) -> tuple[list[int], list[str]]:
    """The rank of each trace: as it says, else from its file's name, else by order; and what was odd about that."""
    told = [integer(trace.distributed.get("rank"), 32) for trace in traces]
    named = [_rank_in(trace.path.name) for trace in traces]
    for source, why in ((told, ""), (named, "ranks are taken from the files' names")):
        known = [rank for rank in source if rank is not None]
        if len(known) == len(traces) and len(set(known)) == len(known):
            return known, [why] if why and len(traces) > 1 else []
    if len(traces) == 1:
        return [told[0] if told[0] is not None else named[0] if named[0] is not None else 0], []
    mixed = [first if first is not None else second for first, second in zip(told, named, strict=True)]
    known = [rank for rank in mixed if rank is not None]
    if len(known) == len(traces) and len(set(known)) == len(known):
        return known, []
    return list(range(len(traces))), ["the files do not tell their ranks apart: ranks are numbered in the order given"]


def _rank_in(name: str) -> int | None:
    match = _RANK_IN_NAME.search(name)
    return next((integer(group, 32) for group in match.groups() if group), None) if match else None


def _table(name: str, columns: dict[str, list[Any]]) -> pa.Table:
    import pyarrow as pa

    schema = arrow_schema(name)
    count = len(next(iter(columns.values()))) if columns else 0
    return pa.Table.from_arrays(
        [
            pa.array(columns[field.name], field.type) if field.name in columns else pa.nulls(count, field.type)
            for field in schema
        ],
        schema=schema,
    )


def _rank_entry(trace: TraceFile, rank: int, kernels: pa.Table) -> dict[str, Any]:
    import pyarrow.compute as pc

    devices = pc.unique(kernels.column("device")).to_pylist()
    return {
        "rank": rank,
        "world_size": integer(trace.distributed.get("world_size")),
        "device": devices[0] if devices else None,
        "state": "trace",
        "source": "kineto",
        "file": trace.path.name,
        "device_properties": {
            f"cuda:{properties.get('id', at)}": properties for at, properties in enumerate(trace.devices)
        },
    }


def _meta(files: Sequence[Path], ranks: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "target": files[0].name if len(files) == 1 else files[0].resolve().parent.name,
        "state": "trace",
        "ranks": ranks,
        "collectors": {"kernels": "kineto"},
    }
