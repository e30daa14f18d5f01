"""What steps hold, held to a bitmap with one cell a nanosecond."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moescope.profiler.overlap.placement import place
from moescope.profiler.overlap.sweep import kernels_by_device, recorded_windows, sweep
from moescope.profiler.steps.amounts import KEPT, PHASES, step_amounts
from tests.live_recording import MemorySource, bitmap, kernel, phase, step, window

SIZE = 120
KINDS = ("compute", "comm", "memory", "unknown")
NAMES = ("attn(F)", "dispatch(F)")


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[dict[str, Any]]]:
    """Kernels, steps and windows; a kernel's phase is one of two, or none."""
    kernels = [
        kernel(
            draw(st.integers(0, SIZE - 20)),
            draw(st.integers(1, 20)),
            draw(st.sampled_from(KINDS)),
            stream=f"{at}",
            phase_id=draw(st.sampled_from([None, 0, 1])),
        )
        for at in range(draw(st.integers(1, 12)))
    ]
    edges = sorted(draw(st.sets(st.integers(0, SIZE), min_size=2, max_size=8)))
    pairs = list(zip(edges[::2], edges[1::2], strict=False))
    steps = [step(number, low, high - low) for number, (low, high) in enumerate(pairs)]
    windows = [window(low, 15) for low in draw(st.lists(st.integers(0, SIZE - 15), max_size=3))]
    return kernels, steps, windows


def _of(kernels: list[dict[str, Any]], **wanted: Any) -> NDArray[np.bool_]:
    names = {"compute": "aten::mm", "comm": "gloo:all_to_all", "memory": "Memcpy HtoD", "unknown": "zzz_mystery"}
    rows = [row for row in kernels if wanted.get("kind") is None or row["name"] == names[wanted["kind"]]]
    rows = [row for row in rows if "phase" not in wanted or row["phase_id"] == wanted["phase"]]
    return bitmap([(row["start_ns"], row["dur_ns"]) for row in rows], SIZE)


@settings(max_examples=60, deadline=None)
@given(runs())
def test_amounts_agree_with_a_bitmap(made: tuple[list[Any], list[Any], list[Any]]) -> None:
    kernels, steps, windows = made
    # Phases tell no times here: each kernel says whose it is.
    phases = [phase(at, name, 0, SIZE) for at, name in enumerate(NAMES)]
    source = MemorySource(state="trace").add("kernels", [row | {"device": "cuda:0"} for row in kernels])
    source.add("phases", phases).add("steps", steps).add("windows", windows)
    devices = kernels_by_device(source.table("kernels"))
    swept = [sweep(one, recorded_windows(source).get(0)) for one in devices]
    tables = [source.table(name) for name in ("kernels", "phases", "steps")]
    placed = [place(one, each, *tables) for one, each in zip(devices, swept, strict=True)]
    found = step_amounts(source.table("steps"), devices, swept, placed).stages["train"]

    seen = bitmap([(row["start_ns"], row["dur_ns"]) for row in windows], SIZE) if windows else np.ones(SIZE, np.bool_)
    compute, comm = _of(kernels, kind="compute") & seen, _of(kernels, kind="comm") & seen
    truth = {
        ("busy",): _of(kernels) & seen,
        ("compute",): compute,
        ("comm",): comm,
        ("overlapped",): compute & comm,
        ("exposed",): comm & ~compute,
        ("memory",): _of(kernels, kind="memory") & seen,
        ("unknown",): _of(kernels, kind="unknown") & seen,
        ("operator", "gemm", "compute"): compute,
    }
    for at, name in enumerate(NAMES):
        own = _of(kernels, kind="comm", phase=at) & seen
        truth["phase", name, "busy"] = _of(kernels, phase=at) & seen
        truth["phase", name, "comm"], truth["phase", name, "exposed"] = own, own & ~compute
    inside = [slice(row["start_ns"], row["start_ns"] + row["dur_ns"]) for row in steps]
    lasts = [row["dur_ns"] for row in steps]
    # Four steps at most: a quarter of them is all that a warm-up may have.
    cold = int(len(lasts) == 4 and lasts[0] >= 3 * sorted(lasts)[1] and lasts[0] > max(lasts[1:]))
    assert found.recorded_ns == sum(int(seen[part].sum()) for part in inside[cold:])
    for what, cells in truth.items():
        each = [int(cells[part].sum()) for part in inside]
        assert found.sums.get(what, (0, 0.0, 0.0))[0] == sum(each[cold:]), what
        kept = [each[number] for number in found.numbers.tolist()]
        assert found.amounts.get(what, np.zeros(len(kept))).tolist() == kept, what
    whole = [at for at, part in enumerate(inside) if seen[part].all()]
    assert found.numbers.tolist() == [at for at in whole if at >= cold]


def test_what_is_kept_does_not_grow_with_the_run_and_is_the_same_on_every_rank() -> None:
    many = 4 * KEPT
    rows = [kernel(at * 10, 5, rank=rank, phase_id=at) for rank in (0, 1) for at in range(many)]
    source = MemorySource().add("kernels", rows)
    source.add("phases", [phase(at, f"p{at}", at * 10, 5, rank=rank) for rank in (0, 1) for at in range(many)])
    source.add("steps", [step(at, at * 10, 10, rank=rank) for rank in (0, 1) for at in range(many)])
    devices = kernels_by_device(source.table("kernels"))
    kept = []
    for one in devices:
        swept = sweep(one)
        placed = place(one, swept, *(source.table(name) for name in ("kernels", "phases", "steps")))
        own = source.table("steps").filter(source.table("steps").column("rank").to_numpy() == one.rank)
        found = step_amounts(own, [one], [swept], [placed])
        assert found.more
        kept.append(found.stages["train"])
    assert all(len(one.numbers) == KEPT for one in kept)
    assert kept[0].numbers.tolist() == kept[1].numbers.tolist()
    assert sum(what[0] == "phase" for what in kept[0].sums) == 3 * PHASES
    assert kept[0].sums["busy",][0] == 5 * many


@pytest.mark.parametrize("numbers", [[0, 0, 1], [None, None, None]])
def test_steps_without_numbers_of_their_own_go_by_their_order(numbers: list[int | None]) -> None:
    source = MemorySource().add("kernels", [kernel(at * 10, 5) for at in range(3)])
    source.add("steps", [step(0, at * 10, 10) | {"step": number} for at, number in enumerate(numbers)])
    (device,) = kernels_by_device(source.table("kernels"))
    swept = sweep(device)
    placed = place(device, swept, *(source.table(name) for name in ("kernels", "phases", "steps")))
    found = step_amounts(source.table("steps"), [device], [swept], [placed])
    assert found.stages["train"].numbers.tolist() == [0, 1, 2]
