"""A run of many ranks, made by the numpy clock and summarised: time, memory, and how near the answer is to the truth.

python -m benchmarks.ranks [--ranks 64 256 1024] [--rounds 100] [--jobs 1 2] [--quick]

Each rank computes, then meets its tensor-parallel group of 8 (all-reduce), its expert group of 64 (all-to-all) and the
world (all-gather), once a round. Clocks are up to 50 ms apart, ends of a collective up to 5 µs; one rank computes 200
µs longer before each meeting of its expert group. The recording has Arrow segments as `moescope run` writes them;
`moescope summary --json` then runs in a process of its own. Peak memory is that of the process and of its largest
worker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.report import save
from moescope.collectors.schema import arrow_schema, rank_folder, segment_file

ORIGIN = 1_700_000_000_000_000_000
GEMMS = 8
TENSOR, EXPERT = 8, 64
KERNEL = {
    "all_reduce": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "all_to_all": "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)",
    "all_gather": "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
}
SLOW_NS = 200_000


@dataclass(frozen=True)
class Meeting:
    """One collective of every rank. op, size: of its group; arrivals, ends: [ranks] true ns; work: [ranks] ns of
    compute before it"""

    op: str
    size: int
    arrivals: np.ndarray[Any, Any]
    ends: np.ndarray[Any, Any]
    work: np.ndarray[Any, Any]


def meetings(ranks: int, rounds: int, slow: int, draw: np.random.Generator) -> Iterator[Meeting]:
    """What happens, collective by collective."""
    now = np.zeros(ranks, np.int64)
    for _ in range(rounds):
        for op, size in (("all_reduce", TENSOR), ("all_to_all", EXPERT), ("all_gather", ranks)):
            work = draw.integers(300_000, 400_000, ranks)
            work[slow] += SLOW_NS * (op == "all_to_all")
            arrivals = now + work + draw.integers(0, 20_000, ranks)
            size = min(size, ranks)
            last = arrivals.reshape(-1, size).max(axis=1).repeat(size)
            ends = last + 60_000 + draw.integers(0, 5_000, ranks)
            yield Meeting(op, size, arrivals, ends, work)
            now = ends


def write(folder: Path, ranks: int, rounds: int, slow: int) -> np.ndarray[Any, Any]:
    """Write the recording; returns [ranks] each clock's offset, ns."""
    draw = np.random.default_rng(7)
    offsets = draw.integers(-50_000_000, 50_000_000, ranks)
    happened = list(meetings(ranks, rounds, slow, draw))
    (folder).mkdir(parents=True)
    entries = [{"rank": rank, "world_size": ranks, "device": "cuda:0", "state": "ended"} for rank in range(ranks)]
    (folder / "meta.json").write_text(json.dumps({"version": 1, "state": "finished", "ranks": entries}))
    shares = np.cumsum(draw.dirichlet(np.ones(GEMMS), len(happened)), axis=1)
    for rank in range(ranks):
        _write_rank(folder, rank, ranks, happened, int(offsets[rank]) + ORIGIN, shares)
    return offsets


def _write_rank(
    folder: Path, rank: int, ranks: int, happened: list[Meeting], zero: int, shares: np.ndarray[Any, Any]
) -> None:
    arrivals = np.array([int(one.arrivals[rank]) for one in happened])
    ends = np.array([int(one.ends[rank]) for one in happened])
    work = np.array([int(one.work[rank]) for one in happened])
    begin = np.concatenate(([0], ends[:-1]))
    # The device computes first, then idles until it arrives: products one after the other.
    edges = begin[:, None] + np.concatenate((np.zeros((len(work), 1)), shares), axis=1) * work[:, None]
    edges = edges.astype(np.int64)
    starts = np.concatenate((edges[:, :-1], arrivals[:, None]), axis=1)
    stops = np.concatenate((edges[:, 1:], ends[:, None]), axis=1)
    names = [["nvjet_tst_128x256_64x4_2x1_v_bz_coopA_NNT"] * GEMMS + [KERNEL[one.op]] for one in happened]
    count = starts.size
    groups = [rank // one.size * one.size for one in happened]
    members = {
        size: ",".join(map(str, range(rank // size * size, rank // size * size + size)))
        for size in {one.size for one in happened}
    }
    _segment(
        folder / rank_folder(rank),
        "kernels",
        count,
        rank=pa.repeat(pa.scalar(rank, pa.int32()), count),
        device=pa.repeat("cuda:0", count),
        stream=pa.array((["7"] * GEMMS + ["20"]) * len(happened)),
        name=pa.array([name for row in names for name in row]),
        start_ns=pa.array(starts.ravel() + zero),
        dur_ns=pa.array((stops - starts).ravel()),
        grid=pa.repeat("132,1,1", count),
        evidence=pa.repeat("measured", count),
    )
    calls = len(happened)
    _segment(
        folder / rank_folder(rank),
        "collectives",
        calls,
        rank=pa.repeat(pa.scalar(rank, pa.int32()), calls),
        call=pa.array(np.arange(calls)),
        op=pa.array([one.op for one in happened]),
        group=pa.array([f"{one.op}_{first}" for one, first in zip(happened, groups, strict=True)]),
        group_ranks=pa.array([members[one.size] for one in happened]),
        backend=pa.repeat("nccl", calls),
        sent_bytes=pa.repeat(pa.scalar(1 << 20, pa.int64()), calls),
        issue_ns=pa.array(arrivals + zero),
        start_ns=pa.array(arrivals + zero),
        dur_ns=pa.array(ends - arrivals),
        evidence=pa.repeat("measured", calls),
    )


def _segment(folder: Path, table: str, rows: int, **columns: Any) -> None:
    folder.mkdir(exist_ok=True)
    schema = arrow_schema(table)
    arrays = [columns.get(field.name, pa.nulls(rows, field.type)) for field in schema]
    batch = pa.RecordBatch.from_arrays([a.cast(f.type) for a, f in zip(arrays, schema, strict=True)], schema=schema)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with pa.ipc.new_stream(str(folder / segment_file(table, 0)), schema, options=options) as writer:
        writer.write_batch(batch)


_CHILD = """
import io, json, resource, sys, time
from contextlib import redirect_stdout
from moescope.profiler.commands.main import main
began, out = time.perf_counter(), io.StringIO()
with redirect_stdout(out):
    try:
        main(["summary", sys.argv[1], "--json", "--jobs", sys.argv[2]])
    except SystemExit as end:
        assert not end.code, end.code
peak = [resource.getrusage(who).ru_maxrss / 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
answer = json.loads(out.getvalue())
keep = {key: answer[key] for key in ("clock_alignment", "stragglers", "collectives")}
print(json.dumps({"seconds": time.perf_counter() - began, "peak_mb": peak, "ranks": len(answer["ranks"]), **keep}))
"""


def measured(folder: Path, jobs: int) -> dict[str, Any]:
    """One summary in a process of its own, which spawns its workers from a module that can be imported."""
    script = folder.parent / "child.py"
    script.write_text("if __name__ == '__main__':\n" + "".join(f"    {line}\n" for line in _CHILD.splitlines() if line))
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(jobs)], check=True, capture_output=True, text=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def one_size(ranks: int, rounds: int, jobs: list[int]) -> list[dict[str, Any]]:
    """Write a run of this many ranks, summarise it, and hold the answer against what was written."""
    slow = ranks // 3
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "recording"
        began = time.perf_counter()
        offsets = write(folder, ranks, rounds, slow) / 1000
        size = sum(path.stat().st_size for path in folder.rglob("*")) / 1e6
        print(f"  {ranks} ranks written in {time.perf_counter() - began:.0f} s, {size:.0f} MB", file=sys.stderr)
        for count in jobs:
            found = measured(folder, count)
            clocks = {one["rank"]: one["offset_us"] for one in found["clock_alignment"]["ranks"]}
            wrong = [abs(clocks[rank] - (offsets[rank] - offsets[0])) for rank in range(ranks)]
            late = found["stragglers"][0]
            rows.append(
                {
                    "ranks": found["ranks"],
                    "kernels": ranks * rounds * 3 * (GEMMS + 1),
                    "calls": found["collectives"]["calls"],
                    "recording_mb": round(size, 1),
                    "jobs": count,
                    "seconds": round(found["seconds"], 2),
                    "peak_mb": round(found["peak_mb"][0]),
                    "largest_worker_peak_mb": round(found["peak_mb"][1]) if count > 1 else None,
                    "matched_share": found["collectives"]["matched_share"],
                    "clock_error_us": {"median": float(np.median(wrong)), "worst": max(wrong)},
                    "late_rank_found": late["rank"] == slow and late["cause"] == "compute",
                }
            )
    return rows


def main() -> None:
    """Prints and keeps the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ranks", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="128 ranks, and keep no result")
    a = parser.parse_args()
    if a.quick:
        a.ranks, a.rounds = [128], 50
    rows = [row for ranks in a.ranks for row in one_size(ranks, a.rounds, a.jobs)]
    print(f"{'ranks':>6} {'kernels':>9} {'calls':>8} {'jobs':>5} {'s':>7} {'MB':>6} {'worker MB':>10} {'clock µs':>9}")
    for row in rows:
        worker = row["largest_worker_peak_mb"]
        print(
            f"{row['ranks']:6} {row['kernels']:9} {row['calls']:8} {row['jobs']:5} {row['seconds']:7.1f} "
            f"{row['peak_mb']:6} {worker if worker is not None else '–':>10} {row['clock_error_us']['worst']:9.2f}"
        )
    if not a.quick:
        save("ranks", "python -m benchmarks.ranks", {"peak_mb": "of the process; workers apart", "runs": rows})


if __name__ == "__main__":
    main()
