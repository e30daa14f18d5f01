"""Threads whose operators are not recorded are told of, where they do much."""

from __future__ import annotations

import io

from rich.console import Console

from moescope.profiler.report.text import render_text
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, kernel, phase


def _source(thread: str, lasts: int) -> MemorySource:
    source = MemorySource().add("kernels", [kernel(0, 100, stream="main"), kernel(900, 100, stream="main")])
    rows = [phase(1, "serve", 0, 1000), phase(2, "train", 0, lasts) | {"thread": thread}]
    return source.add("phases", rows)


def _said(source: MemorySource) -> str:
    out = io.StringIO()
    render_text(summarise(source), Console(file=out))
    return out.getvalue()


def test_a_thread_that_spends_its_time_in_phases_and_has_no_operators_is_told() -> None:
    assert "WARNING: operators of worker 7 are not recorded, and count as idle" in _said(_source("worker 7", 500))


def test_one_that_does_little_and_one_that_was_recorded_are_not() -> None:
    for source in (_source("worker 7", 50), _source("main", 500)):
        assert summarise(source)["ranks"][0]["unseen_threads"] == []
        assert "WARNING" not in _said(source)
