"""`moescope import`: traces of other tools as a recording."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from moescope.profiler.commands.options import RULES, take_rules
from moescope.profiler.errors import MoescopeError, UsageProblem

if TYPE_CHECKING:
    from moescope.profiler.source import Source


@click.command()
@click.argument("traces", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRACE…")
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", type=click.Path(path_type=Path), help="Where the recording goes."
)
@click.option("-f", "--force", is_flag=True, help="Replace the recording that is there.")
@RULES
def command(traces: tuple[Path, ...], output: Path, force: bool, rules: Path | None) -> None:
    """Turn traces into a recording: PyTorch's (`*.json`, `*.json.gz`), Nsight Systems' (`*.sqlite`), files or a folder.

    So that they need not be parsed again; `top`, `summary` and `export` read traces, too. Rules stay with the
    recording.
    """
    from moescope.profiler.commands.following import say_next, words
    from moescope.profiler.source import is_recording, open_source

    if output.exists() and not (force and is_recording(output)) and not (output.is_dir() and not any(output.iterdir())):
        raise UsageProblem(f"{output}: exists; choose another folder with -o, or replace a recording with -f")
    take_rules(rules)
    source = open_source(traces)
    if source.state != "trace":
        raise UsageProblem(f"{traces[0]}: is a recording already")
    if output.exists():
        _clear(output)
    try:
        write_recording(source, output)
    except OSError as problem:
        raise MoescopeError(
            f"{output}: cannot be written whole ({problem.strerror or problem}): make room, remove it, and import again"
        ) from problem
    click.echo(str(output))
    say_next(f"moescope summary {words([output])}")


def _clear(folder: Path) -> None:
    """Remove a recording's own files, and nothing else."""
    for path in (*folder.glob("rank-*/*.arrows"), *folder.glob("host-*/*.arrows"), *folder.glob("meta.json")):
        path.unlink()


def write_recording(source: Source, folder: Path) -> None:
    """Write every table of a source as a recording, a segment a table and rank; kernels with the work that is known."""
    import pyarrow as pa
    import pyarrow.compute as pc

    from moescope.collectors.schema import META_FILE, TABLES, host_folder, rank_folder, segment_file
    from moescope.profiler.roofline.fill import with_work

    folder.mkdir(parents=True, exist_ok=True)
    for name in TABLES:
        table = with_work(source.table(name)) if name == "kernels" else source.table(name)
        if not table.num_rows:
            continue
        parts: dict[str, pa.Table] = {}
        if "rank" in table.column_names:
            for rank in pc.unique(table.column("rank")).to_pylist():
                own = table.column("rank")
                keep = pc.is_null(own) if rank is None else pc.fill_null(pc.equal(own, rank), False)
                parts[rank_folder(rank) if rank is not None else host_folder("import")] = table.filter(keep)
        else:
            parts[host_folder("import")] = table
        for part, rows in parts.items():
            (folder / part).mkdir(exist_ok=True)
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            with pa.ipc.new_stream(folder / part / segment_file(name, 0), rows.schema, options=options) as stream:
                stream.write_table(rows, max_chunksize=65536)
    (folder / META_FILE).write_text(json.dumps(_meta(source), indent=1, ensure_ascii=False), encoding="utf-8")


def _meta(source: Source) -> dict[str, Any]:
    from moescope import __version__
    from moescope.collectors.schema import RECORDING_VERSION
    from moescope.profiler.classify.classifier import user_rules
    from moescope.profiler.classify.user import as_entry

    starts = source.table("kernels").column("start_ns").to_numpy()
    ends = starts + source.table("kernels").column("dur_ns").to_numpy()
    return source.meta | {
        "moescope": __version__,
        "version": RECORDING_VERSION,
        "state": "finished",
        "started_ns": int(starts.min()),
        "ended_ns": int(ends.max()),
        "exit_code": None,
        "dropped_events": 0,
        **({"rules": [as_entry(rule) for rule in user_rules()]} if user_rules() else {}),
    }
