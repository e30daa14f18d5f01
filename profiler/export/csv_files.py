"""Timelines as CSV: one file a table, RFC 4180, times as in the recording (ns), `overlap.csv` in µs bins."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from moescope.collectors.schema import TABLES, arrow_schema
from moescope.profiler.classify.classifier import classify_table
from moescope.profiler.overlap.sweep import Bins, binned_overlap, kernels_by_device, recorded_windows, sweep
from moescope.profiler.roofline.fill import with_work

if TYPE_CHECKING:
    import pyarrow as pa

    from moescope.profiler.source import Source

FILES: Final = {
    "phases": "phases.csv",
    "unit_intervals": "units.csv",
    "link_samples": "links.csv",
    "transfers": "transfers.csv",
    "experts": "experts.csv",
}
"""Written always, even where empty: other tools may count on them."""

OPTIONAL_FILES: Final = {
    "collectives": "collectives.csv",
    "synchronisations": "synchronisations.csv",
    "steps": "steps.csv",
    "quantisation": "quantisation.csv",
    "device_samples": "devices.csv",
    "work": "work.csv",
    "gauges": "gauges.csv",
    "windows": "windows.csv",
    "log": "log.csv",
}
OVERLAP_COLUMNS: Final = (
    "rank", "device", "t_us", "bin_us", "compute_us", "comm_us", "overlapped_us", "exposed_us", "idle_us",
)  # fmt: skip
_BINS: Final = 1000
_CONTROLS: Final = r"[\x00-\x1f\x7f]"


def export_csv(source: Source, folder: Path, window: tuple[int, int] | None = None) -> list[Path]:
    """Write the timelines of a source into a folder, which is made where it is missing.

    An optional file of an earlier export that this one has no rows for is removed: it would pass for this run's.
    window: ns since the epoch: rows that touch it; returns the files written
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = [_write(kernels_table(source, window), folder / "kernels.csv")]
    for name, file in FILES.items():
        written.append(_write(_within(source.table(name), name, window), folder / file))
    written.append(_write(overlap_table(source, window), folder / "overlap.csv"))
    for name, file in OPTIONAL_FILES.items():
        table = _within(source.table(name), name, window)
        if table.num_rows:
            written.append(_write(table, folder / file))
        elif _is_export(folder / file, name):
            (folder / file).unlink()
    return written


def _is_export(path: Path, name: str) -> bool:
    """Whether a file is there and has the header that an export of the table writes: nobody else's file is removed."""
    import csv

    try:
        with path.open(newline="", encoding="utf-8", errors="replace") as file:
            return next(csv.reader(file), []) == [column.name for column in TABLES[name]]
    except (OSError, csv.Error):
        return False


def kernels_table(source: Source, window: tuple[int, int] | None = None) -> pa.Table:
    """`kernels` with the kind filled in by the classifier, and its operator class and rule."""
    import pyarrow as pa

    kernels = source.table("kernels")
    if source.state == "trace":
        kernels = with_work(kernels)
    kernels = _within(kernels, "kernels", window)
    kinds, operators, rules = classify_table(kernels)
    at = kernels.schema.get_field_index("kind")
    kernels = kernels.set_column(at, kernels.schema.field("kind"), pa.array(kinds, pa.string()))
    kernels = kernels.append_column("operator", pa.array(operators, pa.string()))
    return kernels.append_column("rule", pa.array(rules, pa.string()))


def overlap_table(source: Source, window: tuple[int, int] | None = None) -> pa.Table:
    """Each device's time in equal bins; t_us counts from the first kernel of any rank, or from the window's start."""
    import pyarrow as pa

    devices = kernels_by_device(source.table("kernels"))
    swept = [
        (device, sweep(device, recorded_windows(source, device.device).get(device.rank), window)) for device in devices
    ]
    low = min((one.window[0] for _, one in swept), default=0)
    high = max((one.window[1] for _, one in swept), default=0)
    bin_ns = _bin_ns(high - low)
    columns: dict[str, list[np.ndarray[tuple[int], np.dtype[np.float64]]]] = {name: [] for name in OVERLAP_COLUMNS[2:]}
    ranks: list[int] = []
    names: list[str] = []
    for device, one in swept:
        bins = binned_overlap(one, bin_ns)
        count = len(bins.edges) - 1
        ranks += [device.rank] * count
        names += [device.device] * count
        columns["t_us"].append((bins.edges[:-1] - low) / 1000)
        columns["bin_us"].append(np.diff(bins.edges) / 1000)
        for name, values in _parts(bins):
            columns[name].append(values)
    arrays = [pa.array(ranks, pa.int32()), pa.array(names, pa.string())]
    # Where nothing of a bin was recorded, what ran there is not known: an empty field, not 0.
    arrays += [
        pa.array(np.concatenate(parts) if parts else [], pa.float64(), from_pandas=True) for parts in columns.values()
    ]
    return pa.Table.from_arrays(arrays, names=list(OVERLAP_COLUMNS))


def _parts(bins: Bins) -> Iterable[tuple[str, np.ndarray[tuple[int], np.dtype[np.float64]]]]:
    for name, values in (
        ("compute_us", bins.compute),
        ("comm_us", bins.comm),
        ("overlapped_us", bins.overlapped),
        ("exposed_us", bins.exposed),
        ("idle_us", bins.idle),
    ):
        yield name, np.where(bins.recorded > 0, values / 1000, np.nan)


def _bin_ns(span_ns: int) -> int:
    """A width of 1, 2 or 5 times a power of ten, µs at least, that gives at most a thousand bins."""
    width = 1000
    while span_ns > width * _BINS:
        for factor in (2, 5, 10):
            if span_ns <= width * factor * _BINS:
                return width * factor
        width *= 10
    return width


def _within(table: pa.Table, name: str, window: tuple[int, int] | None) -> pa.Table:
    """Rows that touch the window."""
    if window is None or not table.num_rows:
        return table
    import pyarrow.compute as pc

    columns = [column.name for column in TABLES[name]]
    start = next(column for column in ("issue_ns", "start_ns", "t_ns") if column in columns)
    starts = table.column(start).fill_null(0).to_numpy()
    if "end_ns" in columns:
        ends = table.column("end_ns").fill_null(0).to_numpy()
    elif "dur_ns" in columns:
        base = table.column("start_ns").fill_null(0).to_numpy()
        ends = base + pc.fill_null(table.column("dur_ns"), 0).to_numpy()
    else:
        ends = starts
    touches = (starts < window[1]) & ((ends > window[0]) | ((ends == starts) & (starts >= window[0])))
    return table.filter(touches)


def _write(table: pa.Table, path: Path) -> Path:
    from pyarrow import csv

    csv.write_csv(
        _escaped(table), path, csv.WriteOptions(include_header=True, quoting_style="needed", batch_size=65536)
    )
    return path


def _escaped(table: pa.Table) -> pa.Table:
    """Control characters in text as `\\xNN`, so that a row stays a line in every reader."""
    import pyarrow as pa
    import pyarrow.compute as pc

    for at, field in enumerate(table.schema):
        if field.type != pa.string() or not table.num_rows:
            continue
        encoded = table.column(at).combine_chunks().dictionary_encode()
        odd = pc.match_substring_regex(encoded.dictionary, _CONTROLS)
        if pc.any(odd).as_py():
            words = [
                _escape(word) if bad else word
                for word, bad in zip(encoded.dictionary.to_pylist(), odd.to_pylist(), strict=True)
            ]
            table = table.set_column(at, field, pa.array(words, pa.string()).take(encoded.indices))
    return table


def _escape(word: str) -> str:
    return "".join(f"\\x{ord(letter):02x}" if ord(letter) < 32 or ord(letter) == 127 else letter for letter in word)


def columns_of(file: str) -> list[tuple[str, str, str]]:
    """Name, type and meaning of each column of an exported file."""
    tables = {"kernels.csv": "kernels"} | {name: table for table, name in (FILES | OPTIONAL_FILES).items()}
    schema = arrow_schema(tables[file])
    docs = {field.name: (field.metadata or {}).get(b"doc", b"").decode() for field in schema}
    extra: list[tuple[str, str, str]] = []
    if file == "kernels.csv":
        docs["kind"] = "`compute`, `comm`, `memory`, `fused` or `unknown`, from the classifier"
        extra = [
            ("operator", "string", "operator class, from the classifier"),
            ("rule", "string", "the classifier's rule that decided"),
        ]
    return [(field.name, str(field.type), docs[field.name]) for field in schema] + extra
