"""`make bench`: every benchmark that a minute or so is enough for, the longer ones as a quick look that keeps nothing.

`python -m benchmarks.NAME` takes the figures that `benchmarks/results/` keeps: `overhead` half an hour, alone on the
machine; `overlap`, `training` and `fp8_training` three to ten.
"""

from __future__ import annotations

import runpy
import sys

QUICK = (
    ("benchmarks.ring",),
    ("benchmarks.sweep",),
    ("benchmarks.csv_export",),
    ("benchmarks.importing", "100"),
    ("benchmarks.accumulation",),
    ("benchmarks.ranks", "--quick"),
    ("benchmarks.overlap", "--quick"),
    ("benchmarks.training", "--quick"),
    ("benchmarks.fp8_training", "--quick"),
    ("benchmarks.whatif", "--quick"),
)

if __name__ == "__main__":
    for module, *arguments in QUICK:
        print(f"\n== {' '.join((module, *arguments))}", flush=True)
        sys.argv[1:] = arguments
        runpy.run_module(module, run_name="__main__")
