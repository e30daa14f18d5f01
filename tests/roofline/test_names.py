"""What kernel names tell for certain, and that tile sizes are never taken for problem sizes."""

import pytest

from moescope.profiler.roofline.names import WeightShape, causal_in, dtype_in, tokens_of_tile, weight_in


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("nvjet_sm103_tst_32x64_64x16_4x1_v_bz_splitK_TNN", "bf16"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "f16"),
        ("nvjet_qqtst_128x128_128x6_1x2_h_bz_TNT", "fp8"),
        ("void cutlass::Kernel<cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4>(Params)", "tf32"),
        ("sm80_xmma_fprop_implicit_gemm_indexed_tf32f32_tf32f32_f32_nhwckrsc_nchw", "tf32"),
        ("ampere_bf16_s16816gemm_bf16_128x64_ldg8_f2f_stages_64x4_tn", "bf16"),
        ("volta_sgemm_128x32_nt", "f32"),
        ("volta_h884gemm_256x128_ldg8_tn", "f16"),
        ("Cijk_Alik_Bljk_BBS_BH_Bias_HAS_SAV_UserArgs_MT256x256x64_MI16x16x1", "bf16"),
        ("Cijk_Alik_Bljk_F8BS_BH_Bias_MT256x256x128", "fp8"),
        ("Cijk_Ailk_Bjlk_SB_MT64x64x16", "f32"),
        ("bmm_Bfloat16_Bfloat16Bfloat16_Fp32_t128x8x128u2_s6_et128x8", "bf16"),
        ("bmm_E4m3_E4m3E4m3_Fp32_t128x16x128_s6", "fp8_e4m3"),
        ("bmm_Bfloat16_MxE2m1MxE4m3_Fp32_t128x8x512", "fp8_e4m3"),
        ("bmm_E2m1_E2m1E2m1_Fp32_t128x8x512", "fp4"),
        ("fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP64", "bf16"),
        ("void deep_gemm::fp8_gemm_kernel<4096u, 7168u, 128u>(int)", "fp8"),
        ("fused_moe_kernel", None),
        ("void flash_fwd_splitkv_mla_kernel(int)", None),
    ],
)
def test_the_type_of_products_is_read_from_names(name, dtype):
    assert dtype_in(name) == dtype


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        (
            "void dpsk::gemm::fp8_gemm_kernel<4096u, 7168u, 128u, 128u, 128u, 5u, 128u, 128u, 2u, "
            "(dpsk::gemm::GemmType)1>(__nv_bfloat16*, float*)",
            WeightShape(4096, 7168, True),
        ),
        (
            "void deep_gemm::fp8_gemm_kernel<(unsigned int)7168, (unsigned int)2048, 64u, 128u, 128u, 6u, "
            "(deep_gemm::GemmType)0>(float*)",
            WeightShape(7168, 2048, False),
        ),
        (
            "void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 4096u, 1024u, 1u, 256u, 128u, 128u, "
            "128u, 128u, 128u, 3u, 128u, 256u, 2u, true, 132u, (deep_gemm::GemmType)0, EpilogueIdentity>(float*)",
            WeightShape(4096, 1024, False),
        ),
        (
            "void deep_gemm::sm100_fp8_gemm_1d1d_impl<(cute::UMMA::Major)0, (cute::UMMA::Major)0, 128u, 128u, 0u, "
            "2048u, 7168u, 128u, 128u, 128u, 32u, (deep_gemm::GemmType)2>(int)",
            WeightShape(2048, 7168, True),
        ),
        ("void deep_gemm::sm90_fp8_gemm_1d2d_impl<(cute::UMMA::Major)0, 0u, 0u, 0u, 1u, 256u>(float*)", None),
        ("nvjet_sm103_tst_32x64_64x16_4x1_v_bz_splitK_TNN", None),
        ("cutlass_80_tensorop_s1688gemm_256x64_16x4_nn_align4", None),
        ("bmm_Bfloat16_Bfloat16Bfloat16_Fp32_t128x8x128u2_s6", None),
    ],
)
def test_a_weight_s_shape_is_read_from_template_constants_alone(name, shape):
    assert weight_in(name) == shape


def test_a_tile_tells_how_many_rows_share_what_it_reads():
    swapped = (
        "bmm_Bfloat16_Bfloat16Bfloat16_Fp32_t128x8x128u2_s6_et128x8_m128x8x16_rM_BN_transOut_schPd2x1x2x3_dynB_sm100f"
    )
    assert tokens_of_tile(swapped) == 8
    assert tokens_of_tile(swapped.replace("_transOut", "")) == 128
    assert (
        tokens_of_tile("fmhaSm100fKernel_QkvBfloat16OBfloat16H128PagedKvCausalP64VarSeqQ8Kv128StaticSwapsAbForGen") == 8
    )
    assert tokens_of_tile("nvjet_sm103_tst_32x64_64x16_4x1_v_bz_splitK_TNN") is None


@pytest.mark.parametrize(
    ("name", "causal"),
    [
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t, "
         "Flash_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t> >, false, true, false, false>(Params)", True),
        ("void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<128, 128, 64, 4, false, false, cutlass::bfloat16_t, "
         "Flash_kernel_traits<128, 128, 64, 4, cutlass::bfloat16_t> >, true, false, false, false>(Params)", False),
        ("void cutlass::device_kernel<flash::enable_sm90<flash::FlashAttnFwdSm90<flash::CollectiveMainloopFwdSm90<2, "
         "cute::tuple<cute::C<1> >, 128, cutlass::bfloat16_t, float, cutlass::arch::Sm90, true, false>>>>(int)", True),
        ("void flash_fwd_splitkv_mla_kernel(int)", None),
    ],
)  # fmt: skip
def test_a_causal_mask_is_read_from_template_arguments(name, causal):
    assert causal_in(name) is causal
