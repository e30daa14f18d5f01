"""`export --to csv`: rows a second from a recording to files, next to Python's csv module on the same rows.

python -m benchmarks.csv_export
"""

from __future__ import annotations

import csv
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import save
from moescope.collectors.schema import arrow_schema
from moescope.collectors.sidecar.writer import RecordingWriter
from moescope.profiler.export.csv_files import _write as _write_csv
from moescope.profiler.export.csv_files import export_csv, kernels_table
from moescope.profiler.source import open_source

KERNELS = 1_000_000
INTERVALS = 500_000
BASELINE_ROWS = 100_000
GOAL = 500_000
REPEATS = 3
NAMES = (
    "aten::mm", "aten::add_", "aten::copy_", "aten::index", "aten::sum", "aten::silu", "gloo:all_to_all",
    "void cutlass::Kernel2<cutlass_80_wmma_tensorop_bf16_s161616gemm_bf16_16x16_128x1_tn_align8>(Params)",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)", "deep_ep::intranode::dispatch",
)  # fmt: skip


def _recording(folder: Path) -> None:
    """A run of two ranks whose kernels have names, shapes and gaps like real ones; the same in each benchmark."""
    draw = np.random.default_rng(0)
    writer = RecordingWriter(folder)
    for rank in range(2):
        count = KERNELS // 2
        dur = draw.integers(1_000, 60_000, count)
        start = 1_700_000_000_000_000_000 + np.cumsum(dur + draw.integers(0, 5_000, count)) - dur
        known = {
            "rank": pa.repeat(pa.scalar(rank, pa.int32()), count),
            "device": pa.repeat("cpu", count),
            "stream": pa.repeat("main", count),
            "name": pa.array(NAMES).take(pa.array(draw.integers(0, len(NAMES), count))),
            "start_ns": pa.array(start),
            "dur_ns": pa.array(dur),
            "phase_id": pa.array(np.arange(count) // 40 + 1),
            "flops": pa.array(draw.integers(1, 1 << 40, count), mask=draw.random(count) < 0.8),
            "evidence": pa.repeat("measured", count),
        }
        _write(writer, rank, "kernels", known, count)
        count = INTERVALS // 2
        begin = 1_700_000_000_000_000_000 + np.cumsum(draw.integers(20_000, 90_000, count))
        _write(
            writer,
            rank,
            "unit_intervals",
            {
                "rank": pa.repeat(pa.scalar(rank, pa.int32()), count),
                "device": pa.nulls(count, pa.string()),
                "launch": pa.array(draw.integers(4000, 4010, count)),
                "unit": pa.array(draw.integers(0, 8, count).astype(np.int32)),
                "role": pa.repeat("compute", count),
                "start_ns": pa.array(begin),
                "end_ns": pa.array(begin + 15_000),
                "evidence": pa.repeat("measured", count),
            },
            count,
        )
    writer.write_meta({"version": 1, "state": "finished"})
    writer.close()


def _write(writer: RecordingWriter, rank: int, table: str, known: dict[str, pa.Array], count: int) -> None:
    schema = arrow_schema(table)
    arrays = [known.get(field.name, pa.nulls(count, field.type)) for field in schema]
    whole = pa.Table.from_arrays(arrays, schema=schema)
    writer.write(f"rank-{rank:05d}", table, whole.to_batches(max_chunksize=65_536))


def _baseline(table: pa.Table, path: Path) -> float:
    """Rows a second of Python's csv module, the rows as Python values already."""
    rows = [tuple(row.values()) for row in table.slice(0, BASELINE_ROWS).to_pylist()]
    start = time.process_time()
    with open(path, "w", newline="") as file:
        out = csv.writer(file)
        out.writerow(table.column_names)
        out.writerows(rows)
    return len(rows) / (time.process_time() - start)


def main() -> None:
    """Prints and keeps the result."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "rec").mkdir()
        _recording(folder / "rec")
        rows = KERNELS + INTERVALS
        times = []
        for _ in range(REPEATS):
            cpu, wall = time.process_time(), time.perf_counter()
            files = export_csv(open_source([folder / "rec"]), folder / "csv")
            times.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = sorted(times)[REPEATS // 2]
        stored = sum(path.stat().st_size for path in files)
        source = open_source([folder / "rec"])
        kernels_s = time.process_time()
        _write_csv(kernels_table(source), folder / "kernels.csv")
        kernels_rate = KERNELS / (time.process_time() - kernels_s)
        baseline = _baseline(kernels_table(source), folder / "baseline.csv")
    rate = rows / cpu
    print(f"export {rate / 1e3:.0f} k rows/s of processor time ({rows / wall / 1e3:.0f} k by the clock), all of it:")
    print(f"  open, classify, sweep, write {stored / 1e6:.0f} MB; csv.writer alone {baseline / 1e3:.0f} k rows/s")
    print(f"  kernels.csv alone, the widest table: {kernels_rate / 1e3:.0f} k rows/s")
    save(
        "csv_export",
        "python -m benchmarks.csv_export",
        {
            "rows": rows,
            "rows_per_cpu_s": rate,
            "rows_per_s": rows / wall,
            "kernels_rows_per_cpu_s": kernels_rate,
            "baseline": "csv.writer on rows that are Python values already",
            "baseline_rows_per_cpu_s": baseline,
            "goal_rows_per_s": GOAL,
            "ratio_to_goal": rate / GOAL,
            "ratio_to_baseline": rate / baseline,
            "csv_bytes_per_row": stored / rows,
        },
    )


if __name__ == "__main__":
    main()
