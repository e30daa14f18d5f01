"""Classifier rules for communication, for kernels that compute as well, and for those that only sound like either."""

from __future__ import annotations

from typing import Final

from moescope.profiler.classify.rules import Rule, any_of

_ALL_REDUCE = any_of(
    r"(?<![a-z])all_?reduce",
    r"(?-i:All_?[Rr]educe)",
    r"cross_?device_?reduce",
    r"(?:one|two)_?shot_?(?:push|pull)?_?(?:reduce|all)",
)
_WORDS = any_of(
    r"(?<![a-z])(?:all_?to_?all|all_?2_?all|all_?gather|reduce_?scatter|all_?reduce|send_?recv)",
    r"(?-i:All[Tt]o[Aa]ll|All[Gg]ather|Reduce[Ss]catter|All[Rr]educe|Send[Rr]ecv)",
)
_EXPERTS = r"(?:deep_ep|nixl_ep|nccl_ep|hybrid_ep|uccl|pplx|mori|intranode|internode|internode_ll|elastic|(?<!\w)ep)::"
"""Namespaces of DeepEP (its own, and as it is built into engines) and of libraries that follow it."""

LOCAL: Final = (
    Rule(
        "exchange-layout",
        "head",
        any_of(
            r"get_dispatch_layout|deep_ep::layout::",
            r"hybrid_ep::(?:\w+::)*(?:scan|permute|unpermute|pad|preprocess)|permut\w{0,10}_preprocess|update_expected_value",
            r"(?:dispatch|combine)_(?:\w{1,20}_)?(?:epilogue|prologue|preprocess|postprocess|layout|metadata)",
            r"moea2a(?:prepare|sanitize)|moe_prepare::(?!all_?to_?all)|moe_comm::\w*(?:prepare|sanitize|indice)",
            r"computecountandindice|computecumsumdevice|moveindice|memsetexpertids|increment_epoch",
            r"convert_?(?:dispatch|combine)",
        ),
        "compute",
        "routing",
        "counts, orders or copies tokens before or after an exchange; moves nothing between ranks",
    ),
    Rule(
        "exchange-buffer",
        "head",
        any_of(
            r"all_?gather_copy|chunk_cat|split_with_sizes_copy|fsdp::",
            rf"^(?=.*?(?:{_WORDS}|(?<![a-z])a2a))(?=.*?(?<![a-z])(?:un)?(?:pack|permute|reorder|shuffle)(?![a-z]))",
            r"horovod::common::\w*(?:scale|batched)",
        ),
        "compute",
        "index",
        "packs or unpacks a collective's buffer on its own device",
    ),
    Rule(
        "single-rank",
        "head",
        r"onerankreduce|checkfornan|nvshmemi_init|lamport_?init|init\w{0,20}lamport",
        "compute",
        "elementwise",
        "scales or fills a buffer of this device, for a collective to come or of one rank alone",
    ),
)

FUSED: Final = (
    Rule(
        "mega-moe",
        "body",
        r"mega_?moe|fused_(?:moe_)?(?:dispatch|combine)_\w{0,40}gemm|fused_?deep_?moe",
        "fused",
        "grouped_gemm",
        "one kernel exchanges tokens and multiplies them: communication and compute at once",
    ),
    Rule(
        "expert-gemm-exchange",
        "head",
        any_of(
            r"dispatch_\w{0,30}gemm|group(?:ed)?_?gemm_\w{0,30}combine|(?<![a-z])(?:moe|ep)_\w{0,30}gemm_combine",
            r"(?<![a-z])(?:all_?to_?all|a2a)_\w{0,30}gemm|gemm_\w{0,30}(?<![a-z])(?:all_?to_?all|a2a)",
        ),
        "fused",
        "grouped_gemm",
        "a product of the experts fused with the exchange of their tokens",
    ),
    Rule(
        "gemm-collective",
        "head",
        any_of(
            r"(?<![a-z])(?:ag|all_?gather)_\w{0,30}gemm|gemm_?(?:rs|ar)(?![a-z])|gemm_one_shot",
            r"(?<!fb)gemm(?!a[\d_])\w{0,40}(?:reduce_?scatter|all_?reduce)|matmul\w{0,40}(?:reduce_?scatter|all_?reduce)",
            r"(?:reduce_?scatter|all_?reduce|all_?gather)\w{0,40}(?:gemm(?!a[\d_])|matmul)",
        ),
        "fused",
        "gemm",
        "a matrix product fused with a collective (triton-distributed, symmetric memory)",
    ),
    Rule(
        "gemm-collective-template",
        "body",
        r"gemm_?(?:grouped)?_?(?:v\d)?_?(?:ag(?:kernel|scatter)|gather_?rs|all_?gather|reduce_?scatter|all_?reduce|a2a)",
        "fused",
        "gemm",
        "CUTLASS runs a product that also exchanges its tiles (flux, TensorRT-LLM)",
    ),
)

COLLECTIVE_LIBRARIES: Final = (
    Rule(
        "nccl-symmetric",
        "head",
        r"(?:^|::)nccl(?:sym\w*|gin\w*)",
        "comm",
        "*",
        "NCCL's symmetric-memory and device-initiated kernels",
    ),
    Rule(
        "nccl",
        "head",
        r"(?:^|::)(?:nccl|rccl)\w+$",
        "comm",
        "*",
        "a device kernel of NCCL, NCCLX or RCCL: old names (ncclKernel_) and new ones (ncclDevKernel_)",
    ),
    Rule(
        "ctran",
        "head",
        r"(?:^|::)(?:ctran|comms::pipes|torchcomms)::|(?:^|::)dda_?(?:all|reduce|fused)",
        "comm",
        "*",
        "Meta's transports and direct-access collectives",
    ),
    Rule("msccl", "body", r"(?<![a-z])msccl(?:pp)?", "comm", "*", "MSCCL and MSCCL++ collectives"),
    Rule(
        "collective-range",
        "head",
        r"^(?:gloo|nccl|rccl|mpi|ucc|xccl|hccl|ccl|oneccl):{1,2}\w+|^hcom_\w+|^hccl\w+",
        "comm",
        "*",
        "the range in which a backend executes a collective",
    ),
    Rule(
        "hlo-collective",
        "head",
        r"^(?:all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute|ragged-all-to-all)(?:-start|-done)?(?:\.\d+)?$",
        "comm",
        "*",
        "XLA's own name of a collective",
    ),
    Rule(
        "nvshmem",
        "head",
        r"nvshmem|rocshmem|ishmem|_on_stream_kernel|ibgda|symmetric_memory::",
        "comm",
        "*",
        "NVSHMEM and symmetric-memory kernels read and write other devices",
    ),
)

EXPERT_PARALLEL: Final = (
    Rule(
        "deepep-notify",
        "head",
        any_of(
            rf"{_EXPERTS}(?:\w+::)*(?:cached_)?(?:notify|barrier|clean|device_sync|sync)",
            r"^(?:cached_notify|notify_dispatch|notify_combine|clean_low_latency|device_sync_kernel$)",
            r"epcombinesync|epdispatchsync|epbarrier",
        ),
        "comm",
        "notify",
        "tells the ranks how many tokens come, or waits for all of them (DeepEP and its kin)",
    ),
    Rule(
        "deepep-dispatch",
        "head",
        any_of(
            rf"{_EXPERTS}(?:\w+::)*\w*dispatch",
            r"^dispatch(?:_ll|_kernel|_impl|_send|_recv|_main)?$|kernel_dispatch_token",
        ),
        "comm",
        "dispatch",
        "DeepEP and its kin send tokens to the ranks of their experts",
    ),
    Rule(
        "deepep-combine",
        "head",
        any_of(
            rf"{_EXPERTS}(?:\w+::)*\w*combine",
            r"^combine(?:_ll|_kernel|_impl|_send|_recv|_main)?$|kernel_combine_token",
        ),
        "comm",
        "combine",
        "DeepEP and its kin bring tokens back from the experts' ranks",
    ),
    Rule(
        "deepep",
        "head",
        r"deep_ep::(?!.{0,200}(?:layout|permute|cast|quant|elementwise))|ag_nvl_kernel",
        "comm",
        "*",
        "other kernels of DeepEP's exchange",
    ),
    Rule(
        "ep-dispatch",
        "head",
        r"a2a_?dispatch|alltoall_?dispatch|epdispatch|(?<![a-z])ep_dispatch|moe_?dispatch_?(?:send|recv|kernel_?a2a)",
        "comm",
        "dispatch",
        "expert-parallel dispatch of serving engines (pplx, TensorRT-LLM, mori)",
    ),
    Rule(
        "ep-combine",
        "head",
        r"a2a_?combine|alltoall_?combine|epcombine|(?<![a-z])ep_combine",
        "comm",
        "combine",
        "expert-parallel combine of serving engines (pplx, TensorRT-LLM, mori)",
    ),
    Rule(
        "moe-all-to-all",
        "head",
        r"moe_?all_?to_?all|moe_?comm(?:_?kernel)?(?![a-z])|moecommkernel|fusedmoecomm",
        "comm",
        "all_to_all",
        "TensorRT-LLM's exchange of tokens over NVLink",
    ),
)

ALL_REDUCES: Final = (
    Rule(
        "allreduce-fusion-plain",
        "body",
        any_of(
            r"allreduce_fusion_kernel.{0,200}?(?:allreducefusionpattern\)0|pattern::kallreduce[,>])",
            r"allreducefusionkernel<(?![^>]{0,200}true)",
        ),
        "comm",
        "all_reduce",
        "the fusion kernel with the pattern that fuses nothing",
    ),
    Rule(
        "allreduce-fusion",
        "head",
        any_of(
            r"allreduce_?fusion_?kernel|moe_?(?:reduce|reduction|finalize)_?allreduce",
            r"all_?reduce_?(?:\w{0,30}_?)?(?:rms_?norm|layer_?norm|norm|residual|bias|quant)",
            r"fused_\w{0,30}all_?reduce_\w{0,30}norm",
        ),
        "fused",
        "all_reduce",
        "an all-reduce fused with residual, norm or quantisation (FlashInfer, TensorRT-LLM, aiter)",
    ),
    Rule(
        "lamport-norm",
        "head",
        r"(?:rms_?norm|layer_?norm)\w{0,20}lamport",
        "fused",
        "all_reduce",
        "a norm that waits for its peers' writes to arrive: the second half of a two-shot all-reduce",
    ),
    Rule(
        "userbuffers-norm",
        "head",
        r"userbuffers_\w{0,60}(?:norm|quant)",
        "fused",
        "all_reduce",
        "an all-reduce over userbuffers fused with a norm or quantisation (TensorRT-LLM)",
    ),
    Rule(
        "userbuffers-reduce-scatter",
        "head",
        r"userbuffers_\w{0,60}_rs(?:_|$)",
        "comm",
        "reduce_scatter",
        "Transformer Engine's userbuffers scatter sums",
    ),
    Rule(
        "userbuffers-all-gather",
        "head",
        r"userbuffers_\w{0,60}(?:_ag(?:_|$)|allgather)",
        "comm",
        "all_gather",
        "Transformer Engine's userbuffers gather",
    ),
    Rule(
        "userbuffers-all-reduce",
        "head",
        r"userbuffers_\w{0,30}sum",
        "comm",
        "all_reduce",
        "Transformer Engine's userbuffers sum over devices",
    ),
    Rule(
        "userbuffers",
        "head",
        r"userbuffers_|ub_(?:push|pull)",
        "comm",
        "*",
        "Transformer Engine's userbuffers move tensors between devices",
    ),
    Rule(
        "custom-all-reduce",
        "head",
        rf"{_ALL_REDUCE}|quick_?reduce|multimem_",
        "comm",
        "*",
        "all-reduce kernels of the serving engines read their peers' buffers directly",
    ),
)

WORDS: Final = (
    Rule(
        "wait-combine",
        "head",
        r"wait_\w{0,20}combine",
        "fused",
        "attention",
        "waits for its peers' partial results and adds them up (context parallelism)",
    ),
    Rule(
        "device-barrier",
        "head",
        r"(?:^|::|_)(?:device_)?barrier_(?:all_)?kernel$|(?:^|::)(?:direct_dcp|custom_ar)::\w*signal",
        "comm",
        "notify",
        "devices wait for one another",
    ),
    Rule(
        "flux",
        "body",
        r"(?<!\w)flux::(?!.{0,400}(?:comm_?none|gemm_?only|sort|cast|padding|bsr))",
        "comm",
        "*",
        "flux moves tiles between devices",
    ),
    Rule(
        "collective-word",
        "head",
        any_of(
            _WORDS,
            r"exchange_?split|all_to_one|cross_?device|(?<![a-z])nvls_|(?-i:tileReduceKernel|multiRootTileReduce)",
            r"(?:put|wait)_(?:signal|remote)|(?:^|::)(?:stream_write_value|wait_eq|wait_value)",
            r"peer_(?:copy|put|get)|p2p_(?:copy|put|get|send|recv)|remote_(?:put|get|copy)",
        ),
        "comm",
        "*",
        "the name speaks of a transfer between ranks",
    ),
)

COMMUNICATION: Final = (
    *LOCAL,
    *FUSED,
    *COLLECTIVE_LIBRARIES,
    *EXPERT_PARALLEL,
    *ALL_REDUCES,
    *WORDS,
)
