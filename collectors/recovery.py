"""Brings home what a killed sidecar has left in the ranks' rings."""

from __future__ import annotations

import fcntl
import json
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from moescope.collectors.clock import Clock
from moescope.collectors.schema import META_FILE, TABLES, host_folder, rank_folder
from moescope.collectors.sidecar.processes import alive, started
from moescope.collectors.sidecar.ranks import RankTable
from moescope.collectors.sidecar.writer import RecordingWriter

if TYPE_CHECKING:
    import pyarrow as pa

_UNFINISHED: Final = {
    "live": "the recorder was killed, or could not write any more",
    "unsaved": "the recorder could not store everything",
}
"""States of a recording whose rings may still hold something, once its recorder is gone."""

_TIME: Final = {
    "log": "t_ns",
    "experts": "t_ns",
    "quantisation": "t_ns",
    "work": "t_ns",
    "gauges": "t_ns",
    "collectives": "issue_ns",
}
"""Column that orders a table's rows where it is not `start_ns`."""


def recover(recording: Path) -> str | None:
    """Stores what the rings of a recording without a living sidecar still hold; what was done, None where nothing was.

    May be called again: what is stored is not stored twice, and ranks that still run go on filling their rings.
    Raises OSError where the recording cannot be written to: the rings then stay as they are.
    """
    if not _orphaned(read_meta(recording)):
        return None
    lock_path = recording / ".recovery"
    with open(lock_path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands may open the recording at once
        meta = read_meta(recording)
        if not _orphaned(meta):
            return None
        message = _bring_home(recording, meta)
        lock_path.unlink(missing_ok=True)
    return message


def _orphaned(meta: dict[str, Any]) -> bool:
    """Whether the recording was left unfinished by a sidecar of this host that is gone."""
    pid = meta.get("sidecar_pid")
    if meta.get("state") not in _UNFINISHED or not isinstance(pid, int) or meta.get("host") != socket.gethostname():
        return False
    # A process number may be in use again: the start tells whose it is.
    return not alive(pid) or meta.get("sidecar_start") not in (None, started(pid))


def _bring_home(recording: Path, meta: dict[str, Any]) -> str | None:
    ring_dir = Path(str(meta.get("ring_dir") or ""))
    clock = Clock(int(meta["clock"]["offset_ns"]), int(meta["clock"]["error_ns"]))
    ranks = RankTable(ring_dir, clock, str((meta.get("options") or {}).get("ranks") or ""))
    now_ns = time.monotonic_ns()
    ranks.scan(now_ns)
    problems = list(ranks.problems)
    if not ring_dir.is_dir():
        problems.append(f"the rings are gone ({ring_dir}): what was not stored yet is lost")
    writer = RecordingWriter(recording)
    known = {row["pid"]: row for row in meta.get("ranks", [])}
    _remember_ranks(ranks, known)
    _remember_groups(ranks, recording)
    count = 0
    for process in ranks.processes:
        running = alive(process.pid)
        process.state = "running" if running else "ended" if process.drain.ring.closed else "killed"
        if not ranks.settle(process, now_ns, final=True):
            continue  # it has recorded nothing
        batch = process.drain.drain(now_ns, final=not running)
        folder = rank_folder(process.drain.origin.rank)
        if process.drain.at_work or process.pid in known:
            for name in {*batch.tables, *batch.rows}:
                count += _append(writer, folder, name, batch.tables.get(name, []), batch.rows.get(name, []))
        process.drain.commit(batch)
    running_pids = [p.pid for p in ranks.processes if p.state == "running"]
    if meta.get("recovered") and running_pids and not count:
        writer.close()
        return None
    message = f"{_UNFINISHED[meta['state']]}; {count} rows were brought home from the rings"
    if running_pids:
        message += f"; processes {running_pids} still run: open the recording again for what they record from now on"
    writer.write_rows(
        host_folder(str(meta["host"])),
        "log",
        [
            {"t_ns": clock.epoch_ns(now_ns), "level": "warning", "source": "recovery", "message": text, "dropped": 0}
            for text in (message, *problems)
        ],
    )
    writer.close()
    rows = known | {row["pid"]: row for row in ranks.meta()}
    states = {process.pid: process.state for process in ranks.processes}
    for row in rows.values():
        gone = "killed" if row["state"] == "running" and not alive(row["pid"]) else row["state"]
        row["state"] = states.get(row["pid"], gone)
    meta |= {"recovered": True, "ranks": sorted(rows.values(), key=lambda row: row["rank"])}
    if not running_pids:
        meta |= {"state": "finished", "ended_ns": meta.get("ended_ns") or clock.epoch_ns(now_ns)}
    writer.write_meta(meta)
    if not running_pids and not ranks.problems:
        shutil.rmtree(ring_dir, ignore_errors=True)
    return "; ".join((message, *problems))


def read_meta(recording: Path) -> dict[str, Any]:
    """meta.json, or an empty one where there is none to read."""
    try:
        meta: dict[str, Any] = json.loads((recording / META_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return meta


def _remember_ranks(ranks: RankTable, known: dict[int, dict[str, Any]]) -> None:
    """Processes keep the ranks that the sidecar had given them, and the numbering where a rank was started again."""
    for process in ranks.processes:
        row = known.get(process.pid)
        if row is not None:
            process.drain.origin.rank = row["rank"]
            earlier = [pid for pid, other in known.items() if other["rank"] == row["rank"]]
            process.drain.origin.id_base = earlier.index(process.pid) << 32


def _remember_groups(ranks: RankTable, recording: Path) -> None:
    """Process groups are told once; where the sidecar had taken that in, its rows still name them."""
    for process in ranks.processes:
        folder = recording / rank_folder(process.drain.origin.rank)
        for path in sorted(folder.glob("collectives-*.arrows")):
            for batch in _whole_batches(path):
                seen = batch.select(["group", "group_ranks", "backend"]).to_pylist()
                for group, members, backend in {(r["group"], r["group_ranks"], r["backend"]) for r in seen}:
                    if members:
                        known = {"name": group, "ranks": [int(rank) for rank in members.split(",")], "backend": backend}
                        process.drain.calls.remember(known)


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
        for batch in _whole_batches(path):
            keys.update(_keys(pa.Table.from_batches([batch]), table))
    return keys


def _whole_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches up to a torn tail: what is torn is still in the ring."""
    import pyarrow as pa

    with open(path, "rb") as file:
        try:
            reader = pa.ipc.open_stream(file)
            while True:
                yield reader.read_next_batch()
        except (StopIteration, pa.ArrowInvalid, OSError):
            return
