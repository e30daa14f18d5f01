"""Brings home what a killed sidecar has left in the ranks' rings."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.clock import Clock
from moescope.collectors.schema import META_FILE, TABLES, host_folder, rank_folder
from moescope.collectors.sidecar.ranks import RankTable, alive
from moescope.collectors.sidecar.writer import RecordingWriter

if TYPE_CHECKING:
    import pyarrow as pa

_TIME: Final = {"log": "t_ns", "experts": "t_ns", "quantisation": "t_ns", "work": "t_ns", "collectives": "issue_ns"}
"""Column that orders a table's rows where it is not `start_ns`."""


def recover(recording: Path) -> str | None:
    """Stores what the rings of a recording without a living sidecar still hold; what was done, None where nothing was.

    Raises OSError where the recording cannot be written to: the rings then stay as they are.
    """
    meta = read_meta(recording)
    ring_dir = Path(str(meta.get("ring_dir") or ""))
    pid = meta.get("sidecar_pid")
    if meta.get("state") != "live" or not isinstance(pid, int) or meta.get("host") != os.uname().nodename:
        return None
    if alive(pid):
        return None
    clock = Clock(int(meta["clock"]["offset_ns"]), int(meta["clock"]["error_ns"]))
    ranks = RankTable(ring_dir, clock)
    now_ns = time.monotonic_ns()
    ranks.scan(now_ns)
    writer = RecordingWriter(recording)
    _remember_ranks(ranks, meta)
    count = 0
    for process in ranks.processes:
        ranks.settle(process, now_ns, final=True)
        batch = process.drain.drain(now_ns, final=True)
        folder = rank_folder(process.drain.rank)
        if process.drain.events:
            for name in {*batch.tables, *batch.rows}:
                count += _append(writer, folder, name, batch.tables.get(name, []), batch.rows.get(name, []))
        process.drain.commit(batch)
        process.state = "running" if alive(process.pid) else "ended" if process.drain.ring.closed else "killed"
    message = f"the recorder was killed; {count} rows were brought home from the rings"
    row = {"t_ns": clock.epoch_ns(now_ns), "level": "warning", "source": "recovery", "message": message, "dropped": 0}
    writer.write_rows(host_folder(str(meta["host"])), "log", [row])
    writer.close()
    rows = {row["pid"]: row for row in meta.get("ranks", [])} | {row["pid"]: row for row in ranks.meta()}
    meta |= {"state": "finished", "recovered": True, "ended_ns": meta.get("ended_ns") or clock.epoch_ns(now_ns)}
    meta["ranks"] = sorted(rows.values(), key=lambda r: (r["rank"], r["pid"]))
    for row in meta["ranks"]:
        if row["state"] == "running" and not alive(row["pid"]):
            row["state"] = "killed"
    writer.write_meta(meta)
    if not any(p.state == "running" for p in ranks.processes):
        shutil.rmtree(ring_dir, ignore_errors=True)
    return message


def read_meta(recording: Path) -> dict[str, Any]:
    """meta.json, or an empty one where there is none to read."""
    try:
        meta: dict[str, Any] = json.loads((recording / META_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return meta


def _remember_ranks(ranks: RankTable, meta: dict[str, Any]) -> None:
    """Processes keep the ranks that the sidecar had given them."""
    known = {row["pid"]: row["rank"] for row in meta.get("ranks", [])}
    for process in ranks.processes:
        process.drain.rank = known.get(process.pid, -1)


def _append(
    writer: RecordingWriter, folder: str, table: str, batches: list[pa.RecordBatch], rows: list[dict[str, Any]]
) -> int:
    """Appends what is not stored yet: the sidecar may have died between storing rows and marking them."""
    import pyarrow as pa

    from moescope.collectors.schema import arrow_schema

    schema = arrow_schema(table)
    new = pa.concat_tables([pa.Table.from_batches(batches, schema=schema), pa.Table.from_pylist(rows, schema=schema)])
    stored = _stored_keys(writer.root / folder, table)
    keep = [key not in stored for key in _keys(new, table)]
    new = new.filter(pa.array(keep, pa.bool_()))
    if new.num_rows:
        writer.write(folder, table, new.to_batches())
    return int(new.num_rows)


def _keys(rows: pa.Table, table: str) -> list[tuple[Any, ...]]:
    names = {column.name for column in TABLES[table]}
    wanted = [
        _TIME.get(table, "start_ns"),
        *(n for n in ("dur_ns", "name", "id", "expert", "tensor", "dst") if n in names),
    ]
    return list(zip(*(rows[name].to_pylist() for name in wanted), strict=True))


def _stored_keys(folder: Path, table: str) -> set[tuple[Any, ...]]:
    import pyarrow as pa

    keys: set[tuple[Any, ...]] = set()
    for path in sorted(folder.glob(f"{table}-*.arrows"))[-2:]:
        with open(path, "rb") as file:
            try:
                reader = pa.ipc.open_stream(file)
                while True:
                    batch = reader.read_next_batch()
                    keys.update(_keys(pa.Table.from_batches([batch]), table))
            except (StopIteration, pa.ArrowInvalid, OSError):
                continue  # the torn tail: its rows are still in the ring
    return keys
