"""Which operator launched a kernel, with its operands: against a plain search through the same trace."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moescope.profiler.roofline.operands import dtype_named, matrix_dtype, operand_text, parse_operands
from moescope.profiler.source import open_source

DATA = Path(__file__).parents[1] / "data"
DLRM = DATA / "param_dlrm_8rank_v100" / "worker0_step_12.1694128201545.pt.trace.json.gz"


@pytest.fixture(scope="module")
def dlrm():
    return json.loads(gzip.decompress(DLRM.read_bytes()))["traceEvents"]


def launched_by(events, kernel):
    """The shortest operator on the launching thread that was running when the launch began."""
    (launch,) = [
        event
        for event in events
        if event.get("cat") == "cuda_runtime" and event["args"]["correlation"] == kernel["args"]["correlation"]
    ]
    around = [
        event
        for event in events
        if event.get("cat") == "cpu_op"
        and event["tid"] == launch["tid"]
        and event["ts"] <= launch["ts"] < event["ts"] + event["dur"]
    ]
    return min(around, key=lambda event: event["dur"])


def test_kernels_bear_the_operator_that_launched_them_and_its_shapes(dlrm):
    rows = {row["correlation"]: row for row in open_source([DLRM]).table("kernels").to_pylist()}
    products = [event for event in dlrm if event.get("cat") == "kernel" and "gemm" in event["name"].lower()]
    assert len(products) > 20
    for kernel in products:
        operator, row = launched_by(dlrm, kernel), rows[kernel["args"]["correlation"]]
        assert row["op"] == operator["name"]
        dims = [",".join(map(str, shape)) for shape in operator["args"]["Input Dims"]]
        assert row["shapes"].split(";") == dims[: max(at for at, text in enumerate(dims) if text) + 1]
        first = next(at for at, text in enumerate(dims) if text)
        assert row["dtype"] == {"float": "f32", "int": "i32", "long int": "i64"}[operator["args"]["Input type"][first]]


def test_kernels_of_one_call_share_it_and_calls_do_not_share_kernels(dlrm):
    rows = open_source([DLRM]).table("kernels").to_pylist()
    by_call = {}
    for row in rows:
        by_call.setdefault(row["op_call"], set()).add((row["op"], row["shapes"]))
    assert all(len(told) == 1 for told in by_call.values())
    split = [row for row in rows if "splitKreduce" in row["name"]]
    assert split
    for row in split:
        assert sum(other["op_call"] == row["op_call"] for other in rows) >= 2


def test_kernels_of_a_graph_do_not_bear_the_operator_around_the_graph_s_launch():
    rows = open_source([DATA / "tracelens_sglang_moe_decode_b300"]).table("kernels").to_pylist()
    shared = [row["correlation"] for row in rows]
    graph = [row for row in rows if shared.count(row["correlation"]) > 1]
    assert len(graph) == 676
    assert all(row["op"] is None and row["shapes"] is None for row in graph)
    assert {row["op"] for row in rows} > {"aten::argmax", "aten::cumsum"}


sizes = st.integers(0, 2**40)
shape = st.lists(sizes, min_size=1, max_size=5)
scalar = st.sampled_from(["True", "0.0", "[1, 1]", "", "None"])
argument = st.one_of(
    shape.map(lambda dims: (dims, "")),
    st.lists(shape, min_size=1, max_size=3).map(lambda dims: (dims, "")),
    scalar.map(lambda value: ([], value)),
)


@settings(max_examples=60)
@given(st.lists(argument, max_size=8))
def test_operands_come_back_from_their_text(arguments):
    text = operand_text([dims for dims, _ in arguments], [value for _, value in arguments])
    if text is None:
        assert not any(dims for dims, _ in arguments)
        return
    read = parse_operands(text)
    assert read is not None
    for at, (dims, value) in enumerate(arguments):
        single = bool(dims) and all(isinstance(size, int) for size in dims)
        assert read.tensor(at) == (tuple(dims) if single else None)
        if dims and not single:
            assert read.lists[at] == tuple(tuple(part) for part in dims)
        if not dims:
            assert (read.value(at) or "") == value


@pytest.mark.parametrize("dims", [None, 7, "64", [], [[]], [[-1, 4]], [[True]], [[1.5]], [{}], [[[2**70]]]])
def test_what_is_no_shape_is_left_out_and_never_guessed(dims):
    assert operand_text(dims) is None
    assert matrix_dtype(dims, ["float"] * 4) is None


@pytest.mark.parametrize("text", ["64,x", "64,,3", "-1", "[64|x]", "6_4", "٣"])
def test_text_of_another_form_is_not_read(text):
    assert parse_operands(text) is None


def test_types_are_named_as_the_project_names_them():
    names = ["c10::BFloat16", "float", "c10::Half", "c10::Float8_e4m3fn", "long int", "Scalar", "", 3, None]
    assert [dtype_named(name) for name in names] == [
        "bf16",
        "f32",
        "f16",
        "fp8_e4m3",
        "i64",
        None,
        None,
        None,
        None,
    ]
    assert matrix_dtype([[], [64, 32], [32]], ["Scalar", "c10::Float8_e4m3fn", "float"]) == "fp8_e4m3"
