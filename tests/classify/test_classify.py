"""Kernel names of several GPU generations and libraries, as they stand in real traces and in public sources."""

import csv
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moescope.collectors.schema import KINDS
from moescope.profiler.classify.classifier import (
    RULES,
    UNKNOWN,
    classify,
    classify_table,
    explain,
    head_of,
    is_host_call,
)
from moescope.profiler.classify.names import LONGEST, take_apart
from moescope.profiler.classify.rules import COLLECTIVES

CORPUS = list(csv.DictReader((Path(__file__).parents[1] / "data" / "kernel_names.csv").read_text().splitlines()))
COLLECTIVE_WORDS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
EXPERT_LIBRARIES = ("deep_ep", "dpsk::ep", "vendor::ep", "uccl", "engine::comm::deep_ep")


def of_kind(*kinds):
    return [row["name"] for row in CORPUS if row["kind"] in kinds]


def test_every_name_of_the_corpus_has_its_kind_and_class():
    assert len({row["name"] for row in CORPUS}) == len(CORPUS) > 700
    wrong = []
    for row in CORPUS:
        found = classify(row["name"])
        if found.kind != row["kind"] or row["class"] not in ("", found.operator):
            wrong.append(f"{row['kind']}/{row['class']} is taken for {found}: {row['name'][:100]}")
    assert not wrong, "\n".join(wrong)


def test_the_corpus_says_where_each_name_is_from():
    assert all(row["source"] and row["kind"] in KINDS for row in CORPUS)


def test_types_of_call_arguments_decide_nothing():
    arguments = "(ncclDevComm*, deep_ep::internode::SourceMeta const*, all_reduce::Params, cutlass::gemm::X)"
    for row in CORPUS:
        parts = take_apart(row["name"])
        if parts.body.count("<") == parts.body.count(">") > 0 and not parts.body.startswith("_Z"):
            assert classify(parts.body + arguments) == classify(row["name"]), row["name"]
    assert classify("void my_add_kernel<float>(ncclDevComm*, float*)").kind == "compute"


def test_a_name_cut_off_in_its_arguments_is_still_known():
    for name in of_kind("comm", "compute", "fused"):
        parts = take_apart(name)
        body_at = name.find(parts.body[-20:]) if parts.body else -1
        if not name.startswith("_Z") and body_at >= 0 and name.endswith(")") and parts.body != name:
            cut = name[: body_at + len(parts.body[-20:]) + 3]
            assert classify(cut).kind == classify(name).kind, cut


def test_communication_is_known_by_the_function_alone():
    templates = ("pattern", "allreducefusion", "mscclpp", "flux", "gemm")
    for name in of_kind("comm"):
        if not any(word in name.lower() for word in templates):
            assert classify(head_of(name)).kind == "comm", name


@pytest.mark.parametrize("name", sorted({row["name"] for row in CORPUS if row["name"].endswith(".kd")}))
def test_what_the_rocm_runtime_appends_to_a_name_changes_nothing(name):
    assert classify(name) == classify(name.removesuffix(".kd")) == classify(name.removesuffix(".kd") + " [clone .kd]")


@pytest.mark.parametrize("library", EXPERT_LIBRARIES)
@pytest.mark.parametrize(
    ("function", "operator"),
    [
        ("internode::dispatch", "dispatch"),
        ("internode::combine", "combine"),
        ("internode_ll::dispatch", "dispatch"),
        ("intranode::combine", "combine"),
        ("internode::notify_dispatch", "notify"),
        ("internode::cached_notify", "notify"),
        ("intranode::cached_notify_combine", "notify"),
        ("internode_ll::clean_low_latency_buffer", "notify"),
    ],
)
def test_deepep_is_known_in_whatever_namespace_it_is_built(library, function, operator):
    found = classify(f"void {library}::{function}<false, 8, true>(int4*, float*)")
    assert (found.kind, found.operator) == ("comm", operator)


@pytest.mark.parametrize("word", COLLECTIVE_WORDS)
@pytest.mark.parametrize("form", ["{}_permute_kernel", "_unpack_after_{}", "reorder_for_{}_kernel", "pack_{}_buffer"])
def test_layout_kernels_move_nothing_between_ranks(word, form):
    assert classify(form.format(word)).kind == "compute"


@pytest.mark.parametrize("word", COLLECTIVE_WORDS)
def test_what_a_compiler_fused_is_compute_whatever_its_name_lists(word):
    for form in ("triton_poi_fused_{}_view_0", "triton_red_fused_add_{}_mean_1", "triton_tem_fused_{}_mm_2"):
        assert classify(form.format(word)).kind == "compute"


@pytest.mark.parametrize("word", [*COLLECTIVE_WORDS, "broadcast", "send", "recv", "dispatch", "nccl"])
def test_a_functor_of_pytorchs_elementwise_kernels_is_compute(word):
    name = (
        f"void at::native::vectorized_elementwise_kernel<4, at::native::{word}_functor, std::array<char*, 2ul> >(int)"
    )
    assert classify(name).kind == "compute"


@pytest.mark.parametrize("name", ["c10d::allreduce_", "record_param_comms", "_c10d_functional::all_reduce"])
def test_calls_that_only_issue_a_collective_are_no_kernels(name):
    assert classify(name).kind == "host"
    assert is_host_call(name)


@pytest.mark.parametrize("name", ["", "frobnicate_v7", "kernel", "_Z", "<", "void ", "(", "\x1b[2J", "_ZN99999999f"])
def test_what_no_rule_knows_is_unknown(name):
    assert classify(name) == UNKNOWN


@settings(max_examples=60, deadline=None)
@example("_ZN" + "9" * 5000)
@example("(" * 20000)
@example("<" * 20000)
@example("all_reduce_" * 2000 + "norm")
@given(st.text(max_size=60))
def test_any_text_is_classified_and_explained(name):
    answer = explain(name)
    assert answer.found.kind in (*KINDS, "host")
    assert answer.reason
    assert len(answer.head) <= LONGEST


def test_mangled_names_are_what_they_are_demangled():
    pairs = {
        "_ZN7deep_ep9internode8dispatchILb0ELi8EEEvPv": "deep_ep::internode::dispatch",
        "_ZN4vllm26cross_device_reduce_1stageI13__nv_bfloat16Li2EEEvPNS_8RankDataE": "vllm::cross_device_reduce_1stage",
        "_ZN12_GLOBAL__N_126multimem_all_reduce_kernelILi16EEEvPv": "multimem_all_reduce_kernel",
        "_Z22ncclDevKernel_SendRecv24ncclDevKernelArgsStorageILm4096EE": "ncclDevKernel_SendRecv",
        "_ZN7ck_tile6kentryILi1ENS_16MoeSortingKernelINS_1XEEEEEvv": "ck_tile::kentry<MoeSortingKernel",
    }
    for mangled, head in pairs.items():
        assert head_of(mangled) == head
        assert classify(mangled) == classify(head)


def test_heads_are_functions_without_types_and_arguments():
    heads = {
        "void at::native::(anonymous namespace)::f<int, g<2> >(ncclDevComm*)": "at::native::f",
        "void at::native::<unnamed>::f<(int)2>(int)": "at::native::f",
        "std::enable_if<!(false), void>::type internal::gemvx::kernel<int, float>(P)": "internal::gemvx::kernel",
        "(anonymous namespace)::push_kernel(uint4 const*": "push_kernel",
        "void ck_tile::kentry<2, ck_tile::MoeFlatmmKernel<X> >(P)": "ck_tile::kentry<ck_tile::MoeFlatmmKernel",
        "Memcpy PtoP (Device -> Device)": "Memcpy PtoP (Device -> Device)",
        "f(x) [clone .kd]": "f",
    }
    assert {name: head_of(name) for name in heads} == heads


def test_the_stream_decides_nothing_and_the_source_outranks_the_name():
    cast = "void quantize_fp8_kernel<float>(float*)"
    assert classify(cast, stream="nccl") == classify(cast)
    assert classify(cast).kind == "compute"
    assert classify("link_emulation", kind_hint="comm").kind == "comm"
    assert classify("ncclDevKernel_SendRecv(Args)", phase="nccl:all_to_all").operator == "all_to_all"


def test_the_launching_operator_speaks_only_where_no_rule_knows_the_name():
    found = classify("frobnicate_v7", op="aten::mm")
    assert (found.kind, found.operator, found.rule) == ("compute", "gemm", "launching-operator")
    assert classify("ncclDevKernel_SendRecv", op="aten::mm").kind == "comm"
    assert classify("ncclDevKernel_SendRecv", op="c10d::alltoall_base_").operator == "all_to_all"
    assert classify("ncclDevKernel_SendRecv", op="record_param_comms").operator == "p2p"
    assert classify("frobnicate_v7", op="c10d::allreduce_") == UNKNOWN
    assert classify("frobnicate_v7", op="vendor::exchange") == UNKNOWN


def test_every_rule_has_a_name_of_its_own_a_reason_and_a_known_kind():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason and rule.kind in (*KINDS, "host") for rule in RULES)
    classes = {operator for _, operator in COLLECTIVES} | {rule.operator for rule in RULES}
    assert {row["class"] for row in CORPUS if row["kind"] != "unknown"} <= classes | {"", "collective"}


def test_a_table_is_classified_row_by_row_like_single_names():
    import pyarrow as pa

    names = [None, "aten::mm", "gloo:send", "aten::mm", "x", "x", "x"]
    hints = [None, None, None, None, "comm", None, None]
    ops = [None, None, None, None, None, "aten::bmm", None]
    columns = {"name": names, "kind": hints, "op": ops}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    rows = list(zip(*classify_table(table), strict=True))
    expected = [
        classify(name or "", kind_hint=hint, op=op or "") for name, hint, op in zip(names, hints, ops, strict=True)
    ]
    assert rows == [(one.kind, one.operator, one.rule) for one in expected]
    assert list(zip(*classify_table(table.slice(0, 0)), strict=True)) == []
