"""A rank's part stands for the rank: merged in any order and any grouping, parts give the answer over all ranks."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.ranks.part import Part, merge, merged
from moescope.profiler.ranks.view import HOST, RankView, ranks_in
from moescope.profiler.summary.answer import answer, part_of, summarise
from tests.live_recording import MemorySource, kernel, phase, step, window

times = st.integers(0, 5_000)
kinds = st.sampled_from(["compute", "comm", "memory", "unknown"])
kernels = st.lists(st.tuples(times, times, kinds, st.integers(0, 2)), max_size=12)
worlds = st.lists(st.tuples(kernels, st.integers(0, 2)), min_size=1, max_size=5)


def _rows_of(rank: int, found: list[tuple[int, int, str, int]], steps: int) -> dict[str, list[dict[str, Any]]]:
    return {
        "kernels": [kernel(at, dur, kind, rank=rank, phase_id=1) for at, dur, kind, _ in found],
        "phases": [phase(1, "mlp(F)", 0, 6_000, rank=rank)],
        "steps": [step(number, number * 3_000, 3_000 + rank, rank) for number in range(steps)],
        "windows": [window(100 * rank, 8_000, rank)],
        "experts": [
            {"rank": rank, "t_ns": at, "step": 0, "layer": layer, "expert": rank, "tokens": dur}
            for at, dur, _, layer in found
        ],
        "quantisation": [
            {"rank": rank, "t_ns": at, "tensor": "x", "format": "e4m3", "amax": float(dur), "scale_min": 1.0,
             "scale_max": float(at), "saturated": dur,
             "flushed": 0, "nonfinite": 0, "elements": 6_000}
            for at, dur, _, _ in found[:2]
        ],
        "collectives": [
            {"rank": rank, "call": number, "op": "all_reduce", "group": "0", "issue_ns": at, "start_ns": at,
             "dur_ns": None if layer else dur, "evidence": "measured"}
            for number, (at, dur, _, layer) in enumerate(found)
        ],
        "log": [
            {"t_ns": 0, "rank": rank, "level": "warning", "source": "ring", "message": f"{rank % 2}", "dropped": rank}
        ],
    }  # fmt: skip


def _source(world: list[tuple[list[tuple[int, int, str, int]], int]]) -> MemorySource:
    source = MemorySource(meta={"ranks": [{"rank": rank} for rank in range(len(world))]})
    source.add("log", [{"t_ns": 0, "rank": None, "level": "error", "source": "host", "message": "x", "dropped": 5}])
    for rank, (found, steps) in enumerate(world):
        for table, rows in _rows_of(rank, found, steps).items():
            source.add(table, rows)
    return source


def _alone(world: list[tuple[list[tuple[int, int, str, int]], int]]) -> list[Part]:
    """Each rank from a source that holds this rank and nothing else, and the host's log apart from all of them."""
    parts = []
    for rank, (found, steps) in enumerate(world):
        source = MemorySource(meta={"ranks": [{"rank": other} for other in range(len(world))]})
        for table, rows in _rows_of(rank, found, steps).items():
            source.add(table, rows)
        parts.append(part_of(source, only=rank))
    source = MemorySource(meta={"ranks": [{"rank": other} for other in range(len(world))]})
    source.add("log", [{"t_ns": 0, "rank": None, "level": "error", "source": "host", "message": "x", "dropped": 5}])
    return [*parts, part_of(source, only=HOST)]


def _grouped(parts: list[Part], draw: random.Random) -> Part:
    """The parts in a random order, joined as the leaves of a random binary tree."""
    draw.shuffle(parts)
    while len(parts) > 1:
        at = draw.randrange(len(parts) - 1)
        parts[at : at + 2] = [merge(parts[at], parts[at + 1])]
    return parts[0]


@settings(max_examples=12, deadline=None)
@given(worlds, st.randoms(use_true_random=False))
def test_any_order_and_grouping_of_ranks_gives_the_answer_over_all_of_them(world, draw) -> None:
    if not any(found for found, _ in world):
        return
    whole = summarise(_source(world))
    apart = answer(_grouped(_alone(world), draw), "memory", "finished", {})
    assert json.dumps(apart, sort_keys=True) == json.dumps(whole, sort_keys=True)


def test_the_empty_part_changes_nothing() -> None:
    parts = _alone([([(0, 10, "compute", 0)], 1), ([(5, 10, "comm", 1)], 0)])
    assert merged([Part(), *parts, Part()]) == merged(parts)


def test_a_rank_that_comes_twice_is_refused() -> None:
    (part, _) = _alone([([(0, 10, "compute", 0)], 1)])
    with pytest.raises(ValueError, match="in both"):
        merge(part, part)


def test_views_share_out_every_row() -> None:
    world = [([(0, 10, "compute", 0), (3, 4, "comm", 1)], 1), ([], 0), ([(5, 10, "comm", 1)], 2)]
    source = _source(world)
    ranks = ranks_in(source)
    assert ranks == [0, 1, 2]
    views = [*(RankView(source, rank) for rank in ranks), RankView(source, HOST, frozenset(ranks))]
    for table in ("kernels", "phases", "steps", "windows", "collectives", "experts", "log"):
        assert sum(view.table(table).num_rows for view in views) == source.table(table).num_rows
    assert [row["message"] for row in views[-1].table("log").to_pylist()] == ["x"]
