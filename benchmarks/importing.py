"""A generated Kineto trace of 480 MB as a source, next to `json.load` of the same file; each in a fresh process.

python -m benchmarks.importing [MB]      with a size of its own nothing is kept
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from benchmarks.kineto_trace import write_trace
from benchmarks.report import save

SIZE_MB: Final = 480
GOAL: Final = 200
"""MB/s on one core."""
REPEATS: Final = 3

_AROUND: Final = """
import json, sys, time
from pathlib import Path
path = sys.argv[1]
{setup}
def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6
idle = peak()
wall, cpu = time.perf_counter(), time.process_time()
{action}
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
print(json.dumps({{"s": wall, "cpu_s": cpu, "peak_mb": peak(), "idle_mb": idle, **told}}))
"""
_OURS: Final = _AROUND.format(
    setup="import pyarrow, numpy, msgspec\nfrom moescope.profiler.source import open_source",
    action='source = open_source([Path(path)])\ntold = {"kernels": source.table("kernels").num_rows, '
    '"table_mb": sum(source.table(name).nbytes for name in ("kernels", "phases", "steps")) / 1e6}',
)
_JSON: Final = _AROUND.format(
    setup="",
    action='events = json.load(open(path))["traceEvents"]\n'
    'told = {"kernels": sum(event.get("cat") == "kernel" for event in events)}',
)
_HTA: Final = _AROUND.format(
    setup="from hta.common.trace import Trace",
    action='trace = Trace(trace_files={0: path}, trace_dir="")\ntrace.parse_traces()\ntold = {}',
)


def _measured(script: str, trace: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", script, str(trace)], capture_output=True, text=True, check=True, timeout=600
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Prints and keeps the result; stops where the two do not find the same kernels."""
    size_mb = int(sys.argv[1]) if len(sys.argv) > 1 else SIZE_MB
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        events = write_trace(trace, size_mb * 1_000_000)
        size = trace.stat().st_size / 1e6
        runs = sorted((_measured(_OURS, trace) for _ in range(REPEATS)), key=lambda run: float(run["cpu_s"]))
        ours, plain = runs[REPEATS // 2], _measured(_JSON, trace)
        hta = _measured(_HTA, trace) if importlib.util.find_spec("hta") else None
    if ours["kernels"] != plain["kernels"]:
        raise SystemExit(f"the source holds {ours['kernels']} kernels, json {plain['kernels']}")
    rate, plain_rate = size / ours["cpu_s"], size / plain["cpu_s"]
    print(f"open_source {rate:.0f} MB/s of processor time, at most {ours['peak_mb']:.0f} MB: tables", end=" ")
    print(f"{ours['table_mb']:.0f} MB, libraries {ours['idle_mb']:.0f} MB")
    print(f"json.load   {plain_rate:.0f} MB/s, at most {plain['peak_mb']:.0f} MB")
    if size_mb != SIZE_MB:
        return
    save(
        "import",
        "python -m benchmarks.importing",
        {
            "trace_mb": size,
            "events": events,
            "mb_per_cpu_s": rate,
            "mb_per_s": size / ours["s"],
            "slowest_mb_per_cpu_s": size / runs[-1]["cpu_s"],
            "peak_mb": ours["peak_mb"],
            "of_that_libraries_mb": ours["idle_mb"],
            "of_that_tables_mb": ours["table_mb"],
            "baseline": "json.load of the same file, its events not looked at",
            "baseline_mb_per_cpu_s": plain_rate,
            "baseline_peak_mb": plain["peak_mb"],
            "goal_mb_per_s": GOAL,
            "ratio_to_goal": rate / GOAL,
            "ratio_to_baseline": rate / plain_rate,
            "baseline_peak_over_ours": plain["peak_mb"] / ours["peak_mb"],
            "hta_mb_per_cpu_s": size / hta["cpu_s"] if hta else None,
            "hta_mb_per_cpu_s_reason": None if hta else "HolisticTraceAnalysis is not installed here",
        },
    )


if __name__ == "__main__":
    main()
