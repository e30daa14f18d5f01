"""The ring: ns and bytes an event in the target, and events a second drained into Arrow files on one core.

python -m benchmarks.ring
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.report import save
from moescope.collectors.clock import Clock
from moescope.collectors.native import library_path
from moescope.collectors.ring_reader import RECORD, Ring
from moescope.collectors.sidecar.drain import ProcessDrain
from moescope.collectors.sidecar.writer import RecordingWriter

EVENTS = 1_000_000
CHUNKS = 1_024


def _write(path: str) -> None:
    """In a process of its own: fills a ring and prints ns an event, the ring's and an empty loop's."""
    lib = ctypes.PyDLL(str(library_path()))
    lib.moescope_open.argtypes = (ctypes.c_char_p, ctypes.c_uint32)
    lib.moescope_burst.argtypes = (ctypes.c_char_p, ctypes.c_uint64)
    lib.moescope_now_ns.restype = ctypes.c_int64
    assert lib.moescope_open(path.encode(), CHUNKS) == 0
    lib.moescope_burst(b"aten::warm", 1000)
    start = time.perf_counter_ns()
    lib.moescope_burst(b"aten::mm", EVENTS)
    print((time.perf_counter_ns() - start) / EVENTS)


def main() -> None:
    """Prints and keeps the result."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as name:
        path = Path(name) / "1-1.ring"
        done = subprocess.run(
            [sys.executable, "-m", "benchmarks.ring", str(path)], check=True, capture_output=True, text=True
        )
        write_ns = float(done.stdout)
        pa.array(np.zeros(1))  # the first conversion imports pandas where it is installed
        drain = ProcessDrain(Ring(path), Clock.measure())
        drain.origin.rank = 0
        writer = RecordingWriter(Path(name))
        start = time.process_time()
        batch = drain.drain(0, final=True)
        rows = 0
        for table, batches in batch.tables.items():
            writer.write("rank-00000", table, batches)
            rows += sum(b.num_rows for b in batches)
        drain.commit(batch)
        writer.close()
        seconds = time.process_time() - start
        stored = sum(p.stat().st_size for p in Path(name).glob("rank-*/*"))
    rate = rows / seconds
    print(f"write {write_ns:.1f} ns an operator (begin, end and two clock reads), {RECORD.itemsize} bytes in the ring")
    print(f"drain {rate / 1e6:.2f} M events/s on one core into Arrow, {stored / rows:.1f} bytes an event on disk")
    save(
        "ring",
        "python -m benchmarks.ring",
        {
            "write_ns_per_operator": write_ns,
            "ring_bytes_per_event": RECORD.itemsize,
            "drained_events_per_s": rate,
            "goal_events_per_s": 1_000_000,
            "ratio_to_goal": rate / 1_000_000,
            "disk_bytes_per_event": stored / rows,
        },
    )


if __name__ == "__main__":
    _write(sys.argv[1]) if len(sys.argv) > 1 else main()
