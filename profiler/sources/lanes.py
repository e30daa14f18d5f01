"""Bounds how many streams and threads a trace's kernels are told apart by: a view draws, and sweeps, every one."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import numpy as np

from moescope.profiler.sources.columns import Codes, Ints, TraceColumns

MOST: Final = 1024
OTHERS: Final = "others"


def with_few_lanes(columns: TraceColumns) -> TraceColumns:
    """The same with all streams and threads but the MOST busiest under one name, and a note where there were more.

    Figures of a device do not change: they are taken over all its streams at once.
    """
    work, texts, notes = columns.work, columns.texts, list(columns.notes)
    few, number = _without(work["stream"], work["dur"], len(texts))
    if number:
        work, texts = {**work, "stream": few}, [*texts, OTHERS]
        notes.append((f"{number} streams: all but the {MOST} busiest are shown as one", 0))
    threads = columns.threads
    operators = columns.operators
    few, number = _without(operators["thread"], operators["dur"], len(threads))
    if number:
        kept = set(few.tolist())
        threads = [
            thread if at in kept else replace(thread, label=OTHERS) for at, thread in enumerate(threads)
        ]  # fmt: skip
        notes.append((f"{number} threads: all but the {MOST} busiest are shown as one", 0))
    return replace(columns, work=work, texts=texts, threads=threads, notes=notes)


def _without(lanes: Codes, durations: Ints, other: int) -> tuple[Codes, int]:
    """Lanes with all but the busiest as `other`, and how many there were; 0 where they need not change."""
    number = len(np.unique(lanes))
    if number <= MOST:
        return lanes, 0
    shifted = lanes - lanes.min()
    time = np.bincount(shifted, durations)
    busiest = np.zeros(len(time), np.bool_)
    busiest[np.argsort(-time, kind="stable")[:MOST]] = True
    return np.where(busiest[shifted], lanes, other).astype(np.int32), number
