"""Analyses a run of any number of ranks, a rank or file at a time, on any executor: memory holds parts, not tables.

items = divide(paths) -> executor.submit(analyse, item) -> merge -> answer
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from moescope.profiler.errors import MoescopeError, NoData, UsageProblem
from moescope.profiler.ranks.part import Part, Totals, merge, numbered
from moescope.profiler.ranks.view import HOST
from moescope.profiler.sources.columns import Origin
from moescope.profiler.summary.items import Analysed, Item, analyse, recording_items, trace_items

if TYPE_CHECKING:
    from moescope.profiler.source import State

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the items that are done, and all of them."""

WORTH_PROCESSES: Final = 48 << 20
"""Bytes on disk from which several processes are worth starting: each takes most of a second to begin."""
_IN_FLIGHT: Final = 4
"""Items handed to an executor for each of its workers: it stays busy, and results do not pile up."""
_REMOTE_WORKERS: Final = 64
_SCHEDULER_WAIT_S: Final = 10


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be analysed, and what the answer says of it. meta: of a recording, empty for traces"""

    items: tuple[Item, ...]
    files: tuple[Path, ...]
    name: str
    state: State
    meta: dict[str, Any]


@dataclass(slots=True)
class _Gathered:
    """Results so far; without: of traces, the same without those that have no device events."""

    part: Part = field(default_factory=Part)
    without: Part = field(default_factory=Part)
    origins: dict[int, Origin] = field(default_factory=dict)
    on_device: set[int] = field(default_factory=set)

    def add(self, found: Analysed) -> None:
        self.part, self.without = merge(self.part, found.part), merge(self.without, found.without)
        self.origins |= found.origins
        self.on_device |= found.on_device


def divide(paths: Sequence[Path]) -> Work:
    """Divide a recording or traces into items.

    Raises UsageProblem and NoData as `source.open_source` does.
    """
    from moescope.profiler.source import files_of
    from moescope.profiler.sources.recording import Recording
    from moescope.profiler.sources.traces import name_of

    files = files_of(paths)
    if files:
        return Work(tuple(trace_items(files)), tuple(files), name_of(files), "trace", {})
    recording = Recording(paths[0], ())
    recording.poll()
    return Work(tuple(recording_items(recording)), (), recording.name, recording.state, recording.meta)


def part_over(work: Work, executor: Executor | None = None, progress: Progress | None = None) -> Part:
    """Analyse all items and merge them as they are done.

    executor: any; None is this process, one item after the other. Raises what the first item that fails raises.
    """
    found = _Gathered()
    total = len(work.items)
    for done, one in enumerate(_results(work.items, executor), 1):
        found.add(one)
        if progress is not None:
            progress(done, total)
    return _of_traces(work, found) if work.files else found.part


def summarise_over(work: Work, executor: Executor | None = None, progress: Progress | None = None) -> dict[str, Any]:
    """The answer to `moescope summary`, as `answer.summarise` gives it from tables in memory."""
    return answer_of(work, part_over(work, executor, progress))


def answer_of(work: Work, part: Part) -> dict[str, Any]:
    """The answer over a part of `part_over`."""
    from moescope.profiler.summary.answer import answer

    state: State = "torn" if part.torn and work.state == "finished" else work.state
    return answer(part, work.name, state, work.meta)


def _results(items: Iterable[Item], executor: Executor | None) -> Iterator[Analysed]:
    """Results in the order in which they are done; only so many items are handed out at a time."""
    if executor is None:
        yield from map(analyse, items)
        return
    workers = getattr(executor, "_max_workers", None)
    limit = _IN_FLIGHT * (workers if isinstance(workers, int) else _REMOTE_WORKERS)
    waiting: set[Future[Analysed]] = set()
    try:
        for item in items:
            waiting.add(executor.submit(analyse, item))
            while len(waiting) >= limit:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)
    except BrokenProcessPool as problem:
        raise MoescopeError(
            "a process that analysed a rank was ended from outside, perhaps for want of memory: try again with --jobs 1"
        ) from problem
    finally:
        for future in waiting:
            future.cancel()


def _of_traces(work: Work, found: _Gathered) -> Part:
    """Ranks of traces are known when all are; so is whether operators of the CPU are what the run is of."""
    from moescope.profiler.sources.ranks import ranks_of
    from moescope.profiler.sources.traces import log_rows, no_work
    from moescope.profiler.summary.answer import log_of

    places = sorted(found.origins)
    origins = [found.origins[place] for place in places]
    ranks, notes = ranks_of(origins)
    left_out = [bool(found.on_device) and place not in found.on_device for place in places]
    part = found.without if found.on_device else found.part
    if not any(one.devices for one in found.part.ranks.values()):
        raise NoData(no_work(work.files))
    rows = log_rows(origins, ranks, notes, left_out)
    by_rank: dict[int, list[dict[str, Any]]] = {HOST: []}
    for row in rows:
        by_rank.setdefault(HOST if row["rank"] is None else row["rank"], []).append(row)
    logs = {(0, rank): log_of(own) for rank, own in by_rank.items()}
    lost = Totals(dropped=sum(row["dropped"] for row in rows))
    return merge(numbered(part, dict(zip(places, ranks, strict=True))), Part(logs=logs, totals=lost))


@contextmanager
def executor_for(work: Work, jobs: int | None = None, scheduler: str | None = None) -> Iterator[Executor | None]:
    """Where to analyse: a Dask cluster, processes of this machine, or, for little work, this process.

    jobs: processes, None for one a core where the work is worth it; scheduler: address of a Dask scheduler whose
    workers have moescope and see the same paths. Raises UsageProblem where there is no such scheduler.
    """
    if scheduler is not None:
        with _cluster(scheduler) as executor:
            yield executor
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = jobs if jobs is not None else cores if sum(item.size for item in work.items) >= WORTH_PROCESSES else 1
    workers = min(wanted, len(work.items))
    if workers <= 1:
        yield None
        return
    import multiprocessing

    # Not forked: threads of Arrow may hold locks at that moment.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _cluster(address: str) -> Iterator[Executor]:
    try:
        from distributed import Client
    except ImportError as problem:
        raise UsageProblem("--scheduler needs Dask: install moescope[dask], here and on the workers") from problem
    try:
        client = Client(address, timeout=_SCHEDULER_WAIT_S, set_as_default=False)
    except (OSError, ValueError, TimeoutError) as problem:
        raise UsageProblem(f"--scheduler {address}: no Dask scheduler answers there: {problem}") from problem
    try:
        yield client.get_executor()
    finally:
        client.close()
