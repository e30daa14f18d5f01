"""Classifier rules for compute: matrix products, attention, and everything between them. The first match wins."""

from __future__ import annotations

from typing import Final

from moescope.profiler.classify_rules import Rule


def _compute(name: str, pattern: str, operator: str, reason: str, where: str = "any") -> Rule:
    return Rule(name, "head" if where == "head" else "any", pattern, "compute", operator, reason)


CPU: Final = (
    _compute("cpu-grouped-gemm", r"^aten::_?(?:scaled_)?grouped_mm", "grouped_gemm", "an operator of PyTorch", "head"),
    _compute(
        "cpu-gemm",
        r"^(?:aten|mkldnn|quantized)::_?(?:mm|addmm|addmm_activation|bmm|baddbmm|addbmm|addmv|mv|dot|vdot|scaled_mm|int_mm"
        r"|linear|mkldnn_linear|linear_dynamic|matmul|weight_int4pack_mm\w*|weight_int8pack_mm|einsum|addr|ger|outer|inner)_?$",
        "gemm",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-conv", r"^aten::\w*conv(?:olution|\d|_)\w*|^aten::_?slow_conv", "conv", "an operator of PyTorch", "head"
    ),
    _compute("cpu-attention", r"^aten::\w*attention\w*", "attention", "an operator of PyTorch", "head"),
    _compute(
        "cpu-softmax",
        r"^aten::_?(?:log_)?softmax\w*|^aten::_\w*softmax\w*",
        "softmax",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-norm", r"^aten::\w*(?:layer|rms|batch|group|instance)_norm\w*", "norm", "an operator of PyTorch", "head"
    ),
    _compute(
        "cpu-activation",
        r"^aten::_?\w*(?:silu|gelu|relu|sigmoid|tanh|softplus|swish|glu|elu|mish|threshold)\w*",
        "activation",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-routing",
        r"^aten::(?:topk|bincount|histc|one_hot|searchsorted)",
        "routing",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-optimizer",
        r"^aten::(?:_foreach_|_fused_(?:adam|sgd|adagrad))\w*|^optimizer\.",
        "optimizer",
        "an operator of PyTorch",
        "head",
    ),
    _compute("cpu-embedding", r"^aten::\w*embedding\w*", "embedding", "an operator of PyTorch", "head"),
    _compute("cpu-quantize", r"^aten::\w*quantize\w*", "quantize", "an operator of PyTorch", "head"),
    _compute(
        "cpu-index",
        r"^aten::(?:index|gather|scatter|take|masked_|where|nonzero|sort|argsort|unique|cat|stack|select_backward|slice_backward)\w*",
        "index",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-reduce",
        r"^aten::(?:sum|mean|max|min|amax|amin|aminmax|argmax|argmin|norm|linalg_vector_norm|cumsum|prod|std|var|any|all|logsumexp|nansum|count_nonzero)\w*$",
        "reduce",
        "an operator of PyTorch",
        "head",
    ),
    _compute("cpu-loss", r"^aten::\w*(?:nll_loss|cross_entropy|mse_loss)\w*", "loss", "an operator of PyTorch", "head"),
    _compute(
        "cpu-random",
        r"^aten::(?:normal|uniform|random|bernoulli|multinomial|exponential|rand|native_dropout|dropout)\w*",
        "random",
        "an operator of PyTorch",
        "head",
    ),
    _compute(
        "cpu-view",
        r"^aten::(?:_?(?:unsafe_)?view|_reshape_alias|reshape|as_strided|expand|expand_as|transpose|permute|t|numpy_T|unsqueeze"
        r"|squeeze|slice|select|narrow|split|split_with_sizes|chunk|unbind|unfold|flatten|detach|alias|lift_fresh|view_as"
        r"|empty|empty_like|empty_strided|new_empty|new_empty_strided|resize|set|is_nonzero|item|_local_scalar_dense"
        r"|result_type)_?$",
        "view",
        "changes a shape, or allocates or reads a scalar: its time is the host's, no element is computed",
        "head",
    ),
    _compute("cpu-elementwise", r"^aten::", "elementwise", "any other operator of PyTorch", "head"),
    _compute(
        "autograd-node",
        r"^(?:autograd::engine::evaluate_function|torch::autograd::)|(?-i:^[A-Z]\w*Backward\d*$)",
        "elementwise",
        "what a node of the backward graph does besides its operators",
        "head",
    ),
)

GPU: Final = (
    _compute(
        "embedding-table",
        r"(?:split|dense|ssd)_embedding|embedding_(?:bag|codegen|forward|backward)",
        "embedding",
        "embedding tables; the fused optimizer stands in their names",
    ),
    _compute(
        "moe-routing",
        r"permute_with_mask|deepep_(?:permute|run|post)|(?:^|::)(?:sbtopk|mbtopk)::|topk|top_k(?!_top_p)|moe_?align|grouped_topk|routing(?:custom|deepseek|renormalize|indices|::|_)"
        r"|moe_?(?:permute|unpermute|sum|sort|gather|scatter|finalize|fused_gate|router|reduce)|(?:expand|permute|unpermute)_?(?:input|rows|tokens|_kernel)"
        r"|expert_?(?:count|sort|histogram|offset|token|first|map|ids)|count_and_sort|finalize_?kernel|finalizemoerouting|finalizekernel"
        r"|ep_(?:scatter|gather)|(?:_fwd_kernel_ep_)|moesorting|moe_sorting|fused_?gate|token_?permut|sort_?(?:by_?)?expert|compute_(?:expert|problem|arg_sorts)"
        r"|masked_m|permute_kernel|unpermute_kernel|row_id_map|histogram_kernel|cumsum_moe|post_reorder|pre_reorder|gate_?up_?router|router_",
        "routing",
        "decides which tokens go to which expert, or orders them by expert, on one device",
        "head",
    ),
    _compute(
        "attention",
        r"^_?fwd_(?:grouped_)?kernel(?:_stage\d)?$|bwd_kernel_d[kq]|bwd_(?:dkdv|dq)|flash_?(?:fwd|bwd|attn|attention|mla|decod|splitkv|combine)|\bflash::(?!.*norm)|flashattn|flash_fwd|fmha|attention|paged_?attn|(?:^|[^a-z])attn"
        r"|_attn(?:_|$|[^a-z])|(?:^|[^a-z])mla(?![a-z])|mlasparse|xqa|masked_multihead|mmha|mqa_logits|sdpa|batchdecodewith|batchprefill|singleprefill|singledecode"
        r"|pagedkv|paged_kv|mergestate|merge_state|persistentvariablelength|fmla|pytorch_flash|efficient_?attention|attentionkernel"
        r"|(?:chunk|recurrent)_(?:gated|kda|delta|fwd|bwd)|gated_delta|lightning_attn|linear_attn|selective_scan|mamba|ssd_|sparse_?attn|indexer_(?:k|q)",
        "attention",
        "attention, its merges, and the linear kinds of it",
    ),
    _compute(
        "rope-cache",
        r"rotary|rope(?:_|[^a-z]|kernel|quantize|append|store)|reshape_and_cache|set_?kv_?(?:buffer|cache)|store_?(?:kv_?)?cache|concat_(?:mla|and_cache)|append_?paged|kv_?cache",
        "rope",
        "turns queries and keys, or writes them to the cache",
    ),
    _compute(
        "norm",
        r"(?:rms|layer|group|batch|instance|qk|l2)_?norm|norm_?(?:fwd|bwd|forward|backward|kernel)|ln_(?:fwd|bwd|parallel)|\bbn_(?:fw|bw)|gammabeta"
        r"|rowwisemoments|computegroup|compute_?grad_?input|cucompute|normalization|_norm(?:_|$|[^a-z])|add_?norm|batchnorm",
        "norm",
        "a normalisation",
    ),
    _compute(
        "softmax",
        r"softmax(?!.*topk)",
        "softmax",
        "a softmax by itself",
        "head",
    ),
    _compute(
        "grouped-gemm-deep",
        r"deep_gemm::.*(?:gemmtype\)[1-9]|grouped|m_?grouped)|deep_gemm.*(?:masked|contiguous)",
        "grouped_gemm",
        "DeepGEMM's grouped products: one of its arguments names the grouping",
    ),
    _compute(
        "grouped-gemm",
        r"group(?:ed)?_?(?:gemm|mm|matmul|gmm)|(?:gemm|matmul|mm)_?grouped|grouped_?(?:b?gemm|conv_gemm)|groupproblemshape|ptrarray|moe_?(?:fc)?_?gemm|moefcgemm|moegemm"
        r"|moe_?(?:ck2?stages|mx|stage|wna16|kernel|fp8|w8a8|bf16|flatmm|ck)|moe_c?k|fused_?moe|fmoe|moe_?marlin|marlin_?moe|^bmm_\w*_fp32_t\d|^bmm_\w+_t\d+x|batchedgemm|(?:^|[^a-z])gmm(?:[^a-z]|$)"
        r"|gemm_?(?:gather|scatter)|expert_?(?:gemm|mm|matmul)|ragged_?(?:dot|gemm|matmul)|_p?_?matmul_ogs|matmul_ogs|vbatch\w*gemm|gemm\w*vbatch",
        "grouped_gemm",
        "one kernel multiplies many experts' tokens by their weights",
    ),
    _compute(
        "conv",
        r"wgrad|dgrad|fprop|implicit_?gemm|implicitgemm|convolve|winograd|conv(?:olution)?(?:\d|_|[^a-z]|$)|scudnn|cudnn_\w*conv|miopen\w*conv|igemm_(?:fwd|bwd|wrw)|nhwckrsc|_xregs_|fft2d_|depthwise",
        "conv",
        "a convolution",
    ),
    _compute(
        "gemm-library",
        r"(?:^|[^a-z])nvjet|xmma_gemm|xmma|cublas|cijk_|splitk_?reduce|splitkreduce|[shdci]\d*gemm|(?<!fb)gemm|gemv|dot_kernel|reduce_1block_kernel|hipblas|wvsplitk|llmm1"
        r"|tensorop_[sdh]\d+|_tensorop_|hgemm|sgemm|dgemm|cutlass(?:_\w+)?::(?:device_)?kernel|_scaled_mm|scaled_mm|tinygemm|machete|marlin|awq_|gptq_|w8a8|a8w8|w4a(?:8|16)|a16w|a4w4|wna16"
        r"|int4_?mm|int8_?mm|triton_mm|matmul|(?:^|_)(?:b|add|f)?mm_kernel|linear_kernel|_mm_(?:kernel|fp8|bf16)|flatmm|tgv_|kernel_mm|wgmma|mxf[48]|qmm|dsv3_(?:router|fused_a)|fused_a_gemm",
        "gemm",
        "a matrix product of a library or a compiler",
    ),
    _compute(
        "activation",
        r"silu|gelu|(?:^|[^a-z])relu|swiglu|sigmoid|tanh|swish|softplus|act_and_mul|activation|threshold_kernel|leaky|geglu|(?:^|[^a-z])glu|hardtanh",
        "activation",
        "an activation, with or without the product and quantisation behind it",
    ),
    _compute(
        "quantize",
        r"quant(?!ile)|float8_copy|cast_?transpose|(?:^|[^a-z])cast|_cast|fp8_?(?:cast|scale|convert)|(?:fp8|fp4|mxfp\d|nvfp4|float8)_(?:cast|conv|block|row|group)|cvt_|convert_?(?:to_?)?(?:fp|bf|float|e4m3|e5m2)"
        r"|amax|compute_?scale|scale_?(?:swizzle|layout|factor)|swizzle_?s|block_?scale(?:d?_interleave)?|transform_?sf|transpose_?(?:and_pack|fp32|sf|scal)|pack_?(?:fp32_into_ue8m0|ue8m0)|to_?(?:fp8|fp4|mxfp)|smooth_?quant|scaled_fp8",
        "quantize",
        "a cast to or from a narrow format, its scales, or their layout",
        "any",
    ),
    _compute(
        "optimizer",
        r"multi_tensor_apply|multitensor|adam|(?:^|[^a-z])sgd(?:[^a-z]|$)|adagrad(?!.*embedding)|lamb(?:_|[^a-z]|$)(?!da)|optimizer|clip_?(?:grad|coef)|muon|unscale|newton_schulz",
        "optimizer",
        "an optimizer's sweep over the parameters",
    ),
    _compute(
        "embedding",
        r"embedding|indexselect|index_select|bounds_check_indices|linearize_index",
        "embedding",
        "a look-up of rows",
        "any",
    ),
    _compute("loss", r"nll_?loss|cross_?entropy|logsumexp|mse_loss|(?:^|[^a-z])ce_loss", "loss", "a loss"),
    _compute(
        "sampling",
        r"sampling|sample_|top_?p(?:_|[^a-z]|$)|argmax|penalt|multinomial|logits|future_token|resolve_\w*token|alloc_(?:decode|extend)|position_kernel|input_?ids|prepare_inputs|create_flashinfer|req_to_token|write_req|token_ids",
        "sampling",
        "chooses tokens or keeps a serving engine's books",
    ),
    _compute(
        "random",
        r"dropout|philox|distribution_(?:elementwise|nullary)|random|curand|bernoulli|uniform_kernel|normal_kernel",
        "random",
        "random numbers",
    ),
    _compute(
        "sort-scan",
        r"radix_?sort|sort(?:_|kernel|[^a-z]|$)|devicescan|(?:^|[^a-z])scan|cumsum|devicereduce|deviceselect|devicecompact|devicepartition|reducebykey|histogram|unique|bitonic|cub::|thrust::|rocprim|hipcub|merge_?path|devicefor",
        "sort",
        "a sort, scan or selection",
    ),
    _compute(
        "index",
        r"index|gather|scatter|catarray|concat|(?:^|[^a-z])cat(?:_|[^a-z]|$)|masked|where_kernel|nonzero|triu|tril|roll|split_(?:with|q)|chunk|permute|transpose|nchwtonhwc|nhwctonchw|layout|slice|pad_|unpad|im2col|col2im|pool",
        "index",
        "moves elements on one device",
        "any",
    ),
    _compute(
        "reduce",
        r"reduce|(?:^|[^a-z])(?:sum|mean|max|min|norm)_?kernel|welford|reduction",
        "reduce",
        "a reduction on one device",
        "any",
    ),
    _compute(
        "elementwise",
        r"elementwise|at::native::|at_cuda_detail|copy_?kernel|fill|pointwise|elemwise|unrolled|vectorized|arange|(?:^|[^a-z])(?:add|mul|div|sub|clamp|scale|exp|log|neg|copy|zero|set|init|ones|residual|bias)(?:_|kernel|[^a-z]|$)|broadcast|memory_?set",
        "elementwise",
        "one operation for each element",
    ),
    _compute(
        "compute-library",
        r"^cudnn|cudnn::|cask|cutlass|ck_tile|\bck::|flashinfer|vllm::|sgl|aiter|fbgemm|tensorrt_llm|transformer_engine|apex|liger|triton|xformers|trtllm|moe::dev|miopen|_Z\w*(?:at6native)|(?:^|_)fusion(?:_\d+)?$",
        "other",
        "a library that computes on its own device",
    ),
    _compute(
        "phase-named-product",
        r"^(?:torch\.ops\.|\w+::)?\w*(?:mlp|expert|ffn|proj)\w*$",
        "gemm",
        "the layer's name stands for its products",
        "head",
    ),
)
