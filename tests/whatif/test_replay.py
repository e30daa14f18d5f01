"""A replay gives back what was recorded, and what it makes of changed durations follows from the dependencies."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.whatif.graph import Assumed, graph_of
from moescope.profiler.whatif.nodes import nodes_of
from moescope.profiler.whatif.project import BETWEEN, EXTREMES, Runs
from moescope.profiler.whatif.waits import CERTAIN, CONSUMER, PRODUCER, waits_of
from moescope.profiler.whatif.whole import FEWEST
from tests.live_recording import MemorySource, kernel, step, window
from tests.whatif.runs import MS, gpu, nodes, source_of

ALL = (BETWEEN, *EXTREMES)


@st.composite
def runs(draw: st.DrawFn) -> MemorySource:
    """Kernels of up to two ranks on up to three streams each, on a GPU or the CPU backend, some at once or instant."""
    on_cpu = draw(st.booleans())
    rows = []
    for _ in range(draw(st.integers(1, 24))):
        rank, stream = draw(st.integers(0, 1)), draw(st.integers(0, 2))
        start, dur = draw(st.integers(0, 40)) * 50_000, draw(st.integers(0, 8)) * 50_000
        kind = draw(st.sampled_from(("compute", "comm")))
        if on_cpu:
            rows.append(kernel(start, dur, kind, rank=rank, stream=f"thread {stream}"))
        else:
            rows.append(gpu(start / MS, (start + dur) / MS, kind, rank=rank, stream=str(stream)))
    return source_of(*rows)


@settings(max_examples=25)
@given(runs())
def test_unchanged_durations_give_the_recorded_times(source: MemorySource) -> None:
    held = nodes_of(source)
    found = Runs(held)
    for assumed in ALL:
        done = found.run(assumed)
        origin = held.starts.min()
        assert (done.starts + origin == held.starts).all()
        assert (done.ends + origin == held.ends).all()


@settings(max_examples=25)
@given(runs(), st.data())
def test_shorter_kernels_make_nothing_later_and_longer_ones_nothing_earlier(
    source: MemorySource, data: st.DataObject
) -> None:
    held = nodes_of(source)
    found = Runs(held)
    factors = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(held), max_size=len(held))))
    for assumed in ALL:
        whole, less, more = (found.run(assumed, one) for one in (None, factors, 2 - factors))
        assert (less.ends <= whole.ends).all()
        assert (less.starts <= whole.starts).all()
        assert (more.ends >= whole.ends).all()


def _ends(*rows: dict[str, object], shorter: dict[int, float], assumed: Assumed = BETWEEN) -> list[float]:
    """When each kernel ends, ms, in order of start, with some of them shortened; rows in order of start."""
    held = nodes(*rows)
    by_start = np.argsort(held.starts, kind="stable")
    factors = np.ones(len(held))
    for place, factor in shorter.items():
        factors[by_start[place]] = factor
    done = Runs(held).run(assumed, factors)
    return [round(float(end) / MS, 3) for end in done.ends[by_start]]


def test_a_stream_follows_what_it_waited_for_and_no_more_than_that() -> None:
    rows = (gpu(0, 4), gpu(4, 9, "comm", stream="20"), gpu(9.01, 12))
    # Communication in half its time: the kernel that waited for it starts as long after it as it did.
    assert _ends(*rows, shorter={1: 0.5}) == [4, 6.5, 9.5]
    # The first kernel in half its time moves all that followed.
    assert _ends(*rows, shorter={0: 0.5}) == [2, 7, 10]


def test_communication_that_nobody_waited_for_brings_nothing() -> None:
    rows = (gpu(0, 4), gpu(4, 9), gpu(4, 7, "comm", stream="20"), gpu(9, 12))
    assert _ends(*rows, shorter={2: 0.1})[-1] == 12


def test_a_late_host_goes_on_sooner_only_if_it_waits_for_its_device() -> None:
    rows = (gpu(0, 4), gpu(10, 12))
    waits, runs_ahead = (Assumed(frozenset((CERTAIN,)), host) for host in (True, False))
    assert _ends(*rows, shorter={0: 0.5}, assumed=waits) == [2, 10]
    assert _ends(*rows, shorter={0: 0.5}, assumed=runs_ahead) == [2, 12]


def test_possible_dependencies_hold_only_where_they_are_assumed() -> None:
    # Communication never made compute wait, but twice as long it would, if what followed it needed what it brought.
    rows = (gpu(0, 4), gpu(4, 7), gpu(4.5, 6.5, "comm", stream="20"), gpu(7, 8))
    fewest, most = (Assumed(frozenset(kinds), host_waits=True) for kinds in ((CERTAIN,), (CERTAIN, PRODUCER, CONSUMER)))
    assert _ends(*rows, shorter={2: 2.0}, assumed=fewest)[-1] == 8
    assert _ends(*rows, shorter={2: 2.0}, assumed=most)[-1] == 9.5


def two_ranks(late: float) -> MemorySource:
    """Three rounds: rank 1 computes `late` ms longer than rank 0, and both leave an all-reduce together."""
    source = MemorySource()
    rows, calls = [], []
    for round_ in range(3):
        begin = round_ * 20.0
        end = begin + 5 + late + 2
        for rank, enters in ((0, begin + 5), (1, begin + 5 + late)):
            rows += [gpu(begin, enters, rank=rank), gpu(enters, end, "comm", rank=rank, stream="20")]
            calls.append(
                {
                    "rank": rank, "call": round_, "op": "all_reduce", "group": "0", "group_ranks": "0,1",
                    "backend": "nccl", "issue_ns": round(enters * MS), "start_ns": round(enters * MS),
                    "dur_ns": round((end - enters) * MS), "evidence": "measured",
                }
            )  # fmt: skip
            rows.append(gpu(end, begin + 20, rank=rank))
    return source.add("kernels", sorted(rows, key=lambda row: row["start_ns"])).add("collectives", calls)


@pytest.mark.parametrize("late", [0.5, 3])
def test_ranks_leave_a_collective_together_and_its_wait_is_no_work(late: float) -> None:
    held = nodes_of(two_ranks(late))
    assert len(held.meetings) == 3
    graph = graph_of(held, waits_of(held), BETWEEN)
    comm = held.is_comm
    assert (graph.work[comm] == 2 * MS).all()
    # The late rank catches up: both leave as much earlier in every round.
    factors = np.ones(len(held))
    slow = (held.ranks == 1) & (held.ends - held.starts == round((5 + late) * MS))
    factors[slow] = 5 / (5 + late)
    done = Runs(held).run(BETWEEN, factors)
    first = comm & (held.starts < 10 * MS)
    assert set(done.ends[first].tolist()) == {7 * MS}
    assert abs(int(done.ends.max()) - round((60 - 3 * late) * MS)) <= 3
    # Only the rank that waits gets faster: nobody leaves earlier.
    factors = np.where((held.ranks == 0) & ~comm & (held.starts % (20 * MS) == 0), 0.5, 1.0)
    assert int(Runs(held).run(BETWEEN, factors).ends.max()) == 60 * MS


def test_stretches_that_not_all_ranks_recorded_are_left_out() -> None:
    source = source_of(
        kernel(0, 10 * MS), kernel(30 * MS, 10 * MS), kernel(0, 10 * MS, rank=1), kernel(60 * MS, 10 * MS, rank=1)
    )
    source.add("windows", [window(0, 20 * MS), window(30 * MS, 15 * MS), window(0, 15 * MS, 1), window(60 * MS, MS, 1)])
    held = nodes_of(source)
    assert (len(held), held.left_out) == (2, 2)


def test_where_steps_were_recorded_whole_they_alone_are_re_run() -> None:
    rows, windows, steps = [], [], []
    for at in range(5):
        for rank in (0, 1):
            rows.append(kernel(100 * MS * at, 38 * MS, rank=rank))
            steps.append(step(at, 100 * MS * at, 40 * MS, rank=rank))
            windows.append(window(100 * MS * at, 39 * MS, rank))
    # A slice of a step: as long as all of the others are, nothing can move in it.
    rows += [kernel(900 * MS, 5 * MS), kernel(900 * MS, 5 * MS, rank=1)]
    windows += [window(900 * MS, 6 * MS), window(900 * MS, 6 * MS, 1)]
    source = source_of(*rows)
    source.add("windows", windows)
    assert (len(nodes_of(source)), nodes_of(source).whole_steps) == (12, False)
    source.add("steps", steps[: 2 * FEWEST - 1])
    assert not nodes_of(source).whole_steps
    source.add("steps", steps[2 * FEWEST - 1 : 2 * FEWEST])
    held = nodes_of(source)
    assert (len(held), held.left_out, held.whole_steps) == (2 * FEWEST, 12 - 2 * FEWEST, True)


def test_steps_that_fit_into_slices_as_they_are_short_stand_for_no_others() -> None:
    rows, windows, steps = [], [], []
    for at in range(12):
        length = 5 if at % 2 else 400
        rows.append(kernel(1000 * MS * at, 4 * MS))
        steps.append(step(at, 1000 * MS * at, length * MS))
        windows.append(window(1000 * MS * at, 6 * MS))
    source = source_of(*rows)
    source.add("windows", windows).add("steps", [*steps, step(99, 20_000 * MS, 400 * MS)])
    held = nodes_of(source)
    assert (len(held), held.whole_steps) == (12, False)
