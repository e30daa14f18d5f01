"""moescope: a profiler and observability tool for FP8 mixture-of-experts training and inference."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from pathlib import Path

    from moescope.profiler.api import Run

__all__ = ["__version__", "open"]

__version__ = "0.1.0"


def open(*paths: str | Path, executor: Executor | None = None) -> Run:
    """Open a recording, trace files or a folder of traces, for Python and notebooks: `docs/python-api.md`.

    executor: where ranks are analysed, any of `concurrent.futures`; this process unless given. Raises
    `moescope.profiler.errors.UsageProblem` for a path that is neither, `NoData` for a folder that holds nothing.
    """
    from moescope.profiler.api import open_run

    return open_run(*paths, executor=executor)
