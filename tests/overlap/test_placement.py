"""Where kernels belong: by their launch's phase, what is around it, and its name; and how much that covers."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.collectors.schema import arrow_schema
from moescope.profiler.overlap.breakdown import BY, labels_of, overlap_by
from moescope.profiler.overlap.placement import NOWHERE, latest_open, place
from moescope.profiler.overlap.sweep import kernels_by_device, sweep

RANGES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 15)), max_size=10).map(sorted)


def table(name, rows):
    return pa.Table.from_pylist(rows, schema=arrow_schema(name))


def kernel(name, start, dur, **more):
    return {"rank": 0, "device": "cuda:0", "stream": "7", "name": name, "start_ns": start, "dur_ns": dur, **more}


def phase(number, name, start, dur, **more):
    return {"rank": 0, "id": number, "name": name, "start_ns": start, "dur_ns": dur, **more}


def placed(kernels, phases=(), steps=()):
    kernels, phases, steps = table("kernels", kernels), table("phases", list(phases)), table("steps", list(steps))
    (device,) = kernels_by_device(kernels)
    swept = sweep(device)
    return device, swept, place(device, swept, kernels, phases, steps)


PHASES = [
    phase(1, "micro-batch", 0, 100, step=4, stage="train", micro_batch=1),
    phase(2, "mlp(F)", 0, 50, parent=1, layer=7, direction="F"),
    phase(3, "quantise", 10, 5, parent=2),
    phase(4, "layers.12.attention", 60, 20, parent=1),
]
KERNELS = [
    kernel("gemm", 200, 10, phase_id=3, correlation=1),
    kernel("ncclDevKernel_SendRecv", 205, 10, phase_id=2, correlation=2),
    kernel("nvjet", 210, 10, phase_id=4, correlation=3),
    kernel("elementwise_kernel", 300, 10),
]


def test_a_kernel_belongs_where_its_phase_and_those_around_it_say():
    device, _, places = placed(KERNELS, PHASES)
    assert [places.phase_names[at] if at >= 0 else None for at in places.phase.tolist()] == [
        "quantise", "mlp(F)", "layers.12.attention", None,
    ]  # fmt: skip
    assert places.layer.tolist() == [7, 7, 12, NOWHERE]
    assert places.micro_batch.tolist() == [1, 1, 1, NOWHERE]
    assert places.stage.tolist() == ["train", "train", "train", ""]
    assert places.direction.tolist() == ["F", "F", "", ""]
    assert [places.step_names[at] if at >= 0 else None for at in places.step.tolist()] == ["train 4"] * 3 + [None]
    assert places.inferred == {"layer"}
    for by in BY:
        keys, labels = labels_of(device, by, places)
        assert len(labels) == len(KERNELS)
        assert labels.max() < len(keys)


def test_overlap_by_layer_and_operator_are_unions_beside_compute_of_the_device():
    device, swept, places = placed(KERNELS, PHASES)
    by_layer = {part.key: part for part in overlap_by(device, swept, "layer", places)}
    assert set(by_layer) == {7, 12}
    assert (by_layer[7].busy_ns, by_layer[7].comm_ns, by_layer[7].overlapped_ns) == (15, 10, 10)
    by_operator = {part.key: part for part in overlap_by(device, swept, "operator", places)}
    assert (by_operator["gemm"].total_ns, by_operator["gemm"].busy_ns) == (20, 20)
    assert by_operator["p2p"].exposed_ns == 0


def test_the_coverage_states_kernels_and_time_with_a_phase():
    _, _, places = placed(KERNELS, PHASES)
    found = places.coverage
    assert (found.kernels, found.with_phase, found.time_ns, found.with_phase_ns) == (4, 3, 40, 30)
    assert found.share == 0.75
    assert found.graph_kernels == 0


def test_kernels_of_a_graph_share_a_launch_and_its_phase():
    graph = [kernel("gemm", at, 4, phase_id=2, correlation=9) for at in (0, 5, 10)]
    _, _, places = placed([*graph, kernel("gemm", 20, 4, correlation=10), kernel("gemm", 30, 4)], PHASES)
    found = places.coverage
    assert (found.graph_launches, found.graph_kernels, found.graph_ns, found.with_phase) == (1, 3, 12, 3)


def test_no_phases_place_nothing():
    _, _, places = placed(KERNELS)
    assert (places.coverage.with_phase, places.coverage.share) == (0, 0.0)
    assert places.phase.tolist() == places.layer.tolist() == [NOWHERE] * 4


STEPS = [
    {"rank": 0, "step": 1, "stage": None, "start_ns": 0, "dur_ns": 55},
    {"rank": 0, "step": 2, "stage": None, "start_ns": 55, "dur_ns": 60},
]


def test_a_kernel_is_of_the_step_that_its_launch_was_in_however_late_it_runs():
    phases = [phase(1, "forward", 10, 20), phase(2, "forward", 60, 20)]
    kernels = [
        kernel("gemm", 70, 5, phase_id=1, correlation=1),
        kernel("gemm", 90, 5, phase_id=2, correlation=2),
        kernel("gemm", 20, 5),
    ]
    device, _, places = placed(kernels, phases, STEPS)
    names = [places.step_names[at] for at in places.step.tolist()]
    assert dict(zip(device.starts.tolist(), names, strict=True)) == {20: "1", 70: "1", 90: "2"}
    assert "step" in places.inferred


def test_of_phases_that_begin_at_once_the_inner_one_counts():
    phases = [phase(2, "inner", 10, 5, parent=1), phase(1, "outer", 10, 30)]
    _, _, places = placed([kernel("aten::mm", at, 1) | {"device": "cpu"} for at in (10, 20)], phases)
    assert [places.phase_names[at] for at in places.phase.tolist()] == ["inner", "outer"]


def test_a_cpu_kernel_without_a_phase_id_is_of_the_phase_that_is_open():
    rows = [kernel("aten::mm", at, 4) | {"device": "cpu"} for at in (11, 20, 55, 70, 99, 100)]
    _, _, places = placed(rows, PHASES)
    names = [places.phase_names[at] if at >= 0 else None for at in places.phase.tolist()]
    assert names == ["quantise", "mlp(F)", "micro-batch", "layers.12.attention", "micro-batch", None]


@settings(max_examples=80, deadline=None)
@given(RANGES, st.lists(st.integers(0, 60), min_size=1, max_size=12))
def test_the_latest_range_that_is_open_is_found_at_any_time(ranges, times):
    starts = np.array([start for start, _ in ranges], np.int64)
    ends = starts + np.array([dur for _, dur in ranges], np.int64)
    expected = []
    for time in times:
        open_ranges = [at for at, (start, dur) in enumerate(ranges) if start <= time < start + dur]
        expected.append(max(open_ranges, default=NOWHERE))
    assert latest_open(starts, ends, np.array(times, np.int64)).tolist() == expected


@pytest.mark.parametrize(
    ("name", "layer", "micro_batch"),
    [
        ("layer_3", 3, NOWHERE),
        ("Layer 12: MoE", 12, NOWHERE),
        ("model.layers.61.mlp", 61, NOWHERE),
        ("transformer.block-7", 7, NOWHERE),
        ("microbatch 2", NOWHERE, 2),
        ("fwd_bwd_mb0", NOWHERE, 0),
        ("player_3", NOWHERE, NOWHERE),
        ("layer", NOWHERE, NOWHERE),
        ("layer_99999999999999999999", NOWHERE, NOWHERE),
    ],
)
def test_layers_and_micro_batches_are_read_from_names_where_nothing_else_tells(name, layer, micro_batch):
    _, _, places = placed([kernel("gemm", 0, 4, phase_id=1)], [phase(1, name, 0, 9)])
    assert (places.layer.tolist(), places.micro_batch.tolist()) == ([layer], [micro_batch])
