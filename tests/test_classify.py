"""Kernel names of several GPU generations and libraries, as they stand in real traces."""

import pytest

from moescope.profiler.classify import RULES, classify, classify_table, head_of, read_rules
from moescope.profiler.errors import UsageProblem

ALLREDUCE_FUSION = (
    "void flashinfer::trtllm_allreduce_fusion::allreduce_fusion_kernel_oneshot_lamport<"
    "(flashinfer::trtllm_allreduce_fusion::AllReduceFusionPattern){}, __nv_bfloat16, 8, true>(Params)"
)
COMM = {
    "ncclKernel_SendRecv_RING_SIMPLE_Sum_int8_t(ncclDevComm*, unsigned long, ncclWork*)": "p2p",
    "ncclKernel_AllReduce_RING_LL_Sum_float(ncclDevComm*, unsigned long, ncclWork*)": "all_reduce",
    "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_reduce",
    "ncclDevKernel_ReduceScatter_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "reduce_scatter",
    "ncclDevKernel_AllGather_RING_LL(ncclDevKernelArgsStorage<4096ul>)": "all_gather",
    "ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)": "p2p",
    "ncclSymDevKernel_AllReduce_RSxLD_AGxST_sum_bf16(ncclSymDevArgs)": "all_reduce",
    "void ncclKernel_Generic_4(ncclDevComm*)": "collective",
    "void deep_ep::internode::dispatch<false, 8, true>(int4*, float*)": "dispatch",
    "void deep_ep::intranode::combine<__nv_bfloat16, 8, 768>(void*)": "combine",
    "void deep_ep::internode_ll::dispatch<true, 3, 10, 7168>(void*)": "dispatch",
    "void deep_ep::internode_ll::combine<3, 10, 7168, 9>(void*)": "combine",
    "void deep_ep::intranode::notify_dispatch<8>(int const*)": "notify",
    "void deep_ep::internode::cached_notify<false>(int)": "notify",
    "void vllm::cross_device_reduce_1stage<__nv_bfloat16, 8>(RankData*)": "all_reduce",
    "void sglang::cross_device_reduce_2stage<__half, 4>(RankData*)": "all_reduce",
    "void (anonymous namespace)::multimem_all_reduce_kernel<c10::BFloat16, 8>(c10::BFloat16*)": "all_reduce",
    "void c10d::symmetric_memory::barrier_kernel(unsigned int**, int)": "notify",
    "two_shot_all_reduce_kernel": "all_reduce",
    "nvshmemi_proxy_quiet_kernel": None,
    "void tensorrt_llm::kernels::moe_comm::moeAllToAllKernel<2>(Params)": "all_to_all",
    "kuserbuffers_pushrecv": "p2p",
    ALLREDUCE_FUSION.format(0): "all_reduce",
    "Memcpy PtoP (Device -> Device)": "p2p",
    "gloo:all_to_all": "all_to_all",
    "gloo:all_reduce": "all_reduce",
    "gloo:send": "p2p",
    "_ZN7deep_ep9internode8dispatchILb0ELi8EEEvPv": "dispatch",
    "EpDispatchIntraNodeKernel_bf16": "dispatch",
    "void fbgemm_gpu::one_shot_all_reduce<true>(int)": "all_reduce",
}
COMPUTE = {
    "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warpgroupsize1x1x1_execute": "gemm",
    "nvjet_hsh_128x256_64x4_2x1_v_bz_coopA_NNT": "gemm",
    "void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4>(Params)": "gemm",
    "ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_32x6_tn": "gemm",
    "volta_sgemm_128x32_nn": "gemm",
    "Cijk_Ailk_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x256x32": "gemm",
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u, (deep_gemm::GemmType)0>(float*)": "gemm",
    "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u, (deep_gemm::GemmType)1>(float*)": "grouped_gemm",
    "fused_moe_kernel": "grouped_gemm",
    "void flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4>>(Flash_fwd_params)": "attention",
    "fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP64": "attention",
    "void flash::flash_fwd_splitkv_mla_kernel<Traits>(Params)": "attention",
    "void flashinfer::norm::FusedAddRMSNormKernel<8u, __nv_bfloat16>(__nv_bfloat16*)": "norm",
    "void vllm::act_and_mul_kernel<c10::BFloat16, &vllm::silu_kernel>(c10::BFloat16*)": "activation",
    "void per_token_group_quant_8bit_kernel<c10::BFloat16, c10::Float8_e4m3fn>(void const*)": "quantize",
    "void transformer_engine::block_scaled_cast_transpose_kernel<true>()": "quantize",
    "void vllm::moe::moe_align_block_size_kernel<int>(int*)": "routing",
    "void vllm::moe::topkGatingSoftmax<8, 256, 4, 16>(float const*)": "routing",
    "void at::native::(anonymous namespace)::multi_tensor_apply_kernel<FusedAdamMathFunctor<float, 4>>()": "optimizer",
    "void deep_ep::layout::get_dispatch_layout<256, 32, 8>(long const*)": "routing",
    "triton_poi_fused__to_copy_add_all_reduce_wait_tensor_3": "elementwise",
    "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, char*>(int)": "elementwise",
    "void fbgemm_gpu::permute_2D_data_kernel<false, int>(int)": "index",
    "split_embedding_backward_codegen_adagrad_unweighted_kernel(int)": "embedding",
    "_fwd_grouped_kernel_stage1": "attention",
    "aten::mm": "gemm",
    "aten::_grouped_mm": "grouped_gemm",
    "aten::_softmax": "softmax",
    "aten::silu": "activation",
    "aten::native_layer_norm": "norm",
    "aten::_to_copy": "elementwise",
    "aten::topk": "routing",
}


@pytest.mark.parametrize(("name", "operator"), COMM.items())
def test_kernels_that_move_data_between_ranks_are_communication(name, operator):
    found = classify(name)
    assert found.kind == "comm"
    assert operator is None or found.operator == operator


@pytest.mark.parametrize(("name", "operator"), COMPUTE.items())
def test_kernels_that_work_on_their_own_device_are_compute(name, operator):
    found = classify(name)
    assert (found.kind, found.operator) == ("compute", operator)


@pytest.mark.parametrize(
    "name", ["Memcpy DtoD (Device -> Device)", "Memcpy HtoD (Pinned -> Device)", "Memset (Device)", "aten::copy_"]
)
def test_copies_on_one_device_are_memory(name):
    assert classify(name).kind == "memory"


@pytest.mark.parametrize(
    "name", [ALLREDUCE_FUSION.format(1), "void ag_gemm_kernel<128>(int)", "sm100_fp8_fp4_mega_moe_impl"]
)
def test_kernels_that_compute_and_communicate_are_fused(name):
    assert classify(name).kind == "fused"


@pytest.mark.parametrize("name", ["c10d::allreduce_", "record_param_comms", "_c10d_functional::all_reduce"])
def test_calls_that_only_issue_a_collective_are_no_kernels(name):
    assert classify(name).kind == "host"


def test_what_no_rule_knows_is_unknown():
    assert classify("frobnicate_v7").kind == "unknown"
    assert classify("").kind == "unknown"


def test_the_stream_decides_nothing_and_the_source_outranks_the_name():
    cast = "void quantize_fp8_kernel<float>(float*)"
    assert classify(cast, stream="nccl") == classify(cast)
    assert classify("link_emulation", kind_hint="comm").kind == "comm"
    assert classify("ncclDevKernel_SendRecv(Args)", phase="nccl:all_to_all").operator == "all_to_all"


def test_types_in_an_argument_list_decide_nothing():
    assert head_of("void at::native::(anonymous namespace)::f<int, g<2> >(ncclDevComm*)") == "at::native::f"
    assert classify("void my_add_kernel<float>(ncclDevComm*, float*)").kind == "compute"


def test_every_rule_has_a_name_of_its_own_and_a_reason():
    assert len({rule.name for rule in RULES}) == len(RULES)
    assert all(rule.reason for rule in RULES)


def test_a_table_is_classified_row_by_row_like_single_names():
    import pyarrow as pa

    names = ["aten::mm", "gloo:send", "aten::mm", "x", "x"]
    hints = [None, None, None, "comm", None]
    table = pa.table({"name": pa.array(names), "kind": pa.array(hints, pa.string())})
    rows = list(zip(*classify_table(table), strict=True))
    expected = [classify(name, kind_hint=hint) for name, hint in zip(names, hints, strict=True)]
    assert rows == [(one.kind, one.operator, one.rule) for one in expected]


def test_user_rules_say_which_entry_is_wrong(tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text('[[rule]]\nname="a"\npattern="x("\nkind="comm"\n')
    with pytest.raises(UsageProblem, match="rule 1"):
        read_rules(file)
    file.write_text('[[rule]]\npattern="x"\nkind="comms"\n')
    with pytest.raises(UsageProblem, match="comms"):
        read_rules(file)
