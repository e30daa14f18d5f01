"""`make bench`: the benchmarks that take a minute or so; `python -m benchmarks.overhead` takes ten and runs alone."""

from __future__ import annotations

import runpy

QUICK = ("benchmarks.ring", "benchmarks.sweep", "benchmarks.csv_export", "benchmarks.accumulation")

if __name__ == "__main__":
    for module in QUICK:
        print(f"\n== {module}")
        runpy.run_module(module, run_name="__main__")
