"""A generated Kineto trace of 480 MB as a source, next to `json.load` and HTA on the file; each in a fresh process.

python -m benchmarks.importing [MB] [--hta PYTHON]      with a size of its own nothing is kept

PYTHON: an interpreter that has HolisticTraceAnalysis, by default this one; it pins libraries that moescope does not.
"""

from __future__ import annotations

import argparse
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
{after}
print(json.dumps({{"s": wall, "cpu_s": cpu, "peak_mb": peak(), "idle_mb": idle, **told}}))
"""
_OURS: Final = _AROUND.format(
    setup="import pyarrow, numpy, msgspec\nfrom moescope.profiler.source import open_source",
    action="source = open_source([Path(path)])",
    after='told = {"kernels": source.table("kernels").num_rows, '
    '"table_mb": sum(source.table(name).nbytes for name in ("kernels", "phases", "steps", "collectives")) / 1e6}',
)
_JSON: Final = _AROUND.format(
    setup="",
    action='events = json.load(open(path))["traceEvents"]',
    after='told = {"kernels": sum(event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset") for event in events)}',
)
_HTA: Final = _AROUND.format(
    setup="import importlib.metadata, logging\nfrom hta.common.trace import Trace\nlogging.disable()",
    # In this process: as it is by default, a pool of processes would hide its time and memory.
    action='trace = Trace(trace_files={0: path}, trace_dir="/")\ntrace.parse_traces(use_multiprocessing=False)',
    after="frame = trace.get_trace(0)\nkinds = trace.symbol_table.sym_index\n"
    'codes = [kinds[name] for name in ("kernel", "gpu_memcpy", "gpu_memset") if name in kinds]\n'
    'told = {"kernels": int(frame["cat"].isin(codes).sum()), '
    '"version": importlib.metadata.version("HolisticTraceAnalysis")}',
)


def _measured(script: str, trace: Path, python: str = sys.executable) -> dict[str, Any]:
    done = subprocess.run([python, "-c", script, str(trace)], capture_output=True, text=True, check=True, timeout=600)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _has_hta(python: str) -> bool:
    look = "import importlib.util, sys; sys.exit(importlib.util.find_spec('hta') is None)"
    return subprocess.run([python, "-c", look], check=False).returncode == 0


def _against(name: str, run: dict[str, Any], ours: dict[str, Any], size_mb: float) -> dict[str, Any]:
    """What another reader of the trace takes, and how many times ours that is."""
    return {
        f"{name}_mb_per_cpu_s": size_mb / run["cpu_s"],
        f"{name}_s": run["s"],
        f"{name}_peak_mb": run["peak_mb"],
        f"ratio_to_{name}": run["cpu_s"] / ours["cpu_s"],
        f"{name}_peak_over_ours": run["peak_mb"] / ours["peak_mb"],
    }


def main() -> None:
    """Prints and keeps the result; stops where the readers do not find the same kernels."""
    asked = argparse.ArgumentParser()
    asked.add_argument("megabytes", nargs="?", type=int, default=SIZE_MB)
    asked.add_argument("--hta", default=sys.executable, metavar="PYTHON")
    told = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        events = write_trace(trace, told.megabytes * 1_000_000)
        size = trace.stat().st_size / 1e6
        runs = sorted((_measured(_OURS, trace) for _ in range(REPEATS)), key=lambda run: float(run["cpu_s"]))
        ours = runs[REPEATS // 2]
        others = {"json": _measured(_JSON, trace)}
        if _has_hta(told.hta):
            others["hta"] = _measured(_HTA, trace, told.hta)
    for name, run in others.items():
        if run["kernels"] != ours["kernels"]:
            raise SystemExit(f"the source holds {ours['kernels']} kernels, copies and sets, {name} {run['kernels']}")
    rate = size / ours["cpu_s"]
    print(f"open_source {rate:.0f} MB/s of processor time, at most {ours['peak_mb']:.0f} MB: tables", end=" ")
    print(f"{ours['table_mb']:.0f} MB, libraries {ours['idle_mb']:.0f} MB")
    for name, run in others.items():
        print(f"{name:11} {size / run['cpu_s']:.0f} MB/s, at most {run['peak_mb']:.0f} MB")
    if told.megabytes != SIZE_MB:
        return
    result = {
        "trace_mb": size,
        "events": events,
        "mb_per_cpu_s": rate,
        "mb_per_s": size / ours["s"],
        "slowest_mb_per_cpu_s": size / runs[-1]["cpu_s"],
        "peak_mb": ours["peak_mb"],
        "of_that_libraries_mb": ours["idle_mb"],
        "of_that_tables_mb": ours["table_mb"],
        "goal_mb_per_s": GOAL,
        "ratio_to_goal": rate / GOAL,
        "baseline": "json.load of the same file, its events not looked at",
    }
    for name, run in others.items():
        result |= _against(name, run, ours, size)
    if "hta" in others:
        version = others["hta"]["version"]
        result["hta"] = f"HolisticTraceAnalysis {version}, Trace.parse_traces() in one process, nothing analysed"
    else:
        result |= {"hta": None, "hta_reason": "HolisticTraceAnalysis is not installed here"}
    save("import", "python -m benchmarks.importing --hta PYTHON", result)


if __name__ == "__main__":
    main()
