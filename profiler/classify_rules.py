"""Classifier rules for communication and memory, with the reason for each; the first match wins.

Patterns are searched without regard to case. `head` rules see only the function's name, without return type, template
and call arguments, so that a type in an argument list decides nothing; `any` rules see the whole name.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: what it matches, what it says, and why that is so.

    operator: the operator's class; with a `*` at the end, `operator_of_collective` finds the class in the name
    """

    name: str
    where: Literal["head", "any"]
    pattern: str
    kind: str
    operator: str
    reason: str


COLLECTIVES: Final = (
    (r"all_?to_?all|a2a", "all_to_all"),
    (r"reduce_?scatter", "reduce_scatter"),
    (r"all_?gather", "all_gather"),
    (r"all_?reduce|cross_device_reduce|allreduce", "all_reduce"),
    (r"broadcast", "broadcast"),
    (r"send_?recv|(?:^|[^a-z])(?:send|recv|put|get|pull|push)|p2p|pushrecv|pullsend", "p2p"),
    (r"dispatch", "dispatch"),
    (r"combine", "combine"),
    (r"notify|barrier|signal|sync|fcollect", "notify"),
    (r"reduce", "reduce"),
    (r"gather", "gather"),
    (r"scatter", "scatter"),
)
"""Which collective a name speaks of; the first match wins."""

_ALL_REDUCE = r"all_?reduce|cross_device_reduce|(?:one|two)_?shot_?(?:push|pull)?_?(?:reduce|all)"
_GEMM_WORD = r"gemm|gemv|matmul|nvjet|(?:^|[^a-z])(?:b|add|baddb)?mm(?:[^a-z]|$)"

HOST: Final = (
    Rule(
        "host-issue",
        "any",
        r"^(?:c10d|_c10d_functional|c10d_functional|_c10d_functional_autograd|symm_mem)::\w+$"
        r"|^record_param_comms$|^profiler::|^\[pytorch\|",
        "host",
        "issue",
        "the call that issues a collective on the host: its execution is recorded by itself",
    ),
)

COMMUNICATION: Final = (
    Rule(
        "inductor-triton",
        "head",
        r"^triton_(?:tem_)\w*(?:mm|conv)",
        "compute",
        "gemm",
        "a matrix product from TorchInductor's templates; its name lists what it fuses, even a collective's wait",
    ),
    Rule(
        "inductor-attention",
        "head",
        r"^triton_tem_\w*(?:attention|flex)",
        "compute",
        "attention",
        "attention from TorchInductor's templates",
    ),
    Rule(
        "inductor-norm",
        "head",
        r"^triton_(?:poi|red|per|for|mix|split_scan)_fused\w*(?:norm|rsqrt)",
        "compute",
        "norm",
        "a TorchInductor kernel computes on its own device; its name lists the operators fused, rsqrt marks a norm",
    ),
    Rule(
        "inductor",
        "head",
        r"^triton_(?:poi|red|per|for|mix|split_scan)_",
        "compute",
        "elementwise",
        "a TorchInductor kernel computes on its own device, even when its name mentions a collective",
    ),
    Rule(
        "inductor-cpu",
        "head",
        r"^(?:cpp_fused|graph_\d+_cpp_fused)_",
        "compute",
        "elementwise",
        "a TorchInductor loop on the CPU",
    ),
    Rule(
        "mega-moe",
        "any",
        r"mega_?moe|fused_(?:moe_)?(?:dispatch|combine)_\w*gemm|dispatch_\w*gemm|gemm\w*combine_(?:kernel|impl)",
        "fused",
        "grouped_gemm",
        "one kernel exchanges tokens and multiplies them: communication and compute at once",
    ),
    Rule(
        "gemm-collective",
        "head",
        r"(?:ag|all_?gather)_\w*gemm|gemm_?(?:rs|ar)(?:[^a-z]|$)|(?<!fb)gemm\w*(?:reduce_?scatter|all_?reduce)"
        r"|gemm_one_shot|(?:reduce_?scatter|all_?reduce|all_?gather)\w*(?:gemm|matmul)|matmul\w*(?:reduce_?scatter|all_?reduce)",
        "fused",
        "gemm",
        "a matrix product fused with a collective (flux, triton-distributed, symmetric memory)",
    ),
    Rule("flux", "any", r"\bbytedance::flux|\bflux::\w*", "fused", "gemm", "flux kernels overlap tiles with transfers"),
    Rule(
        "nccl-symmetric",
        "head",
        r"^nccl(?:sym\w*|gin\w*)",
        "comm",
        "*",
        "NCCL's symmetric-memory and device-initiated kernels",
    ),
    Rule(
        "nccl",
        "head",
        r"^(?:nccl|rccl)\w+",
        "comm",
        "*",
        "NCCL's or RCCL's device kernel, old names (ncclKernel_) and new ones (ncclDevKernel_)",
    ),
    Rule("msccl", "any", r"(?:^|[^a-z])msccl(?:pp)?", "comm", "*", "MSCCL and MSCCL++ collectives"),
    Rule(
        "collective-range",
        "head",
        r"^(?:gloo|nccl|rccl|mpi|ucc|xccl|hccl|ccl|oneccl):{1,2}\w+",
        "comm",
        "*",
        "the range in which a backend executes a collective",
    ),
    Rule(
        "dispatch-layout",
        "head",
        r"get_dispatch_layout|deep_ep::layout::|hybrid_ep::(?:scan|permute|unpermute|preprocess)|moea2a(?:prepare|sanitize)"
        r"|moe_comm::\w*(?:prepare|sanitize|indice)|computecountandindice|computecumsum|movein?dice",
        "compute",
        "routing",
        "counts and orders tokens for an exchange; moves nothing between ranks",
    ),
    Rule(
        "deepep-notify",
        "head",
        r"(?:deep_ep|uccl|intranode|internode|internode_ll|elastic|legacy)::(?:\w+::)*(?:cached_)?(?:notify|barrier|clean)"
        r"|^(?:cached_notify|notify_dispatch|notify_combine|clean_low_latency)",
        "comm",
        "notify",
        "DeepEP tells the ranks how many tokens come, or waits for all of them",
    ),
    Rule(
        "deepep-dispatch",
        "head",
        r"(?:deep_ep|uccl|intranode|internode|internode_ll|elastic|hybrid_ep|pplx)::(?:\w+::)*\w*dispatch|^dispatch(?:_kernel|_impl|_send|_recv|_main)?$",
        "comm",
        "dispatch",
        "DeepEP and its kin send tokens to the ranks of their experts",
    ),
    Rule(
        "deepep-combine",
        "head",
        r"(?:deep_ep|uccl|intranode|internode|internode_ll|elastic|hybrid_ep|pplx)::(?:\w+::)*\w*combine|^combine(?:_kernel|_impl|_send|_recv|_main)?$",
        "comm",
        "combine",
        "DeepEP and its kin bring tokens back from the experts' ranks",
    ),
    Rule(
        "deepep",
        "head",
        r"deep_ep::(?!.*(?:layout|permute|cast|quant|elementwise))",
        "comm",
        "*",
        "other kernels of DeepEP's exchange",
    ),
    Rule(
        "ep-dispatch",
        "head",
        r"a2a_?dispatch|alltoall_?dispatch|epdispatch|ep_dispatch|moe_?dispatch_?(?:send|recv|kernel_?a2a)|alltoallinternode::dispatch|alltoallintranode::dispatch",
        "comm",
        "dispatch",
        "expert-parallel dispatch of serving engines (pplx, TensorRT-LLM, mori)",
    ),
    Rule(
        "ep-combine",
        "head",
        r"a2a_?combine|alltoall_?combine|epcombine|ep_combine|alltoallinternode::combine|alltoallintranode::combine",
        "comm",
        "combine",
        "expert-parallel combine of serving engines (pplx, TensorRT-LLM, mori)",
    ),
    Rule(
        "moe-all-to-all",
        "head",
        r"moe_?all_?to_?all|moe_?comm(?:_?kernel)?(?:[^a-z]|$)|moecommkernel|fusedmoecomm",
        "comm",
        "all_to_all",
        "TensorRT-LLM's exchange of tokens over NVLink",
    ),
    Rule(
        "nvshmem",
        "head",
        r"nvshmem|rocshmem|(?:^|::)barrier_(?:all_)?on_stream|ibgda|symmetric_memory::",
        "comm",
        "*",
        "NVSHMEM and symmetric-memory kernels read and write other devices",
    ),
    Rule(
        "lamport-init",
        "head",
        r"lamport_?init|init\w*lamport",
        "compute",
        "elementwise",
        "fills a buffer of this device",
    ),
    Rule(
        "allreduce-fusion-plain",
        "any",
        r"allreduce_fusion_kernel.*(?:allreducefusionpattern\)0|pattern::kallreduce[,>])",
        "comm",
        "all_reduce",
        "the fusion kernel with the pattern that fuses nothing",
    ),
    Rule(
        "allreduce-fusion",
        "any",
        r"allreduce_fusion_kernel|moe(?:reduction|finalize)_?allreduce|allreduce_?(?:add_?)?(?:residual_?)?(?:rms_?)?norm"
        r"|(?:^|[^a-z])all_?reduce_\w*(?:norm|residual|quant)|fused_\w*all_?reduce_\w*norm|allreducefusionkernel<[^>]*true|(?:rms_?norm|layer_?norm)\w*(?:lamport|all_?reduce)",
        "fused",
        "all_reduce",
        "an all-reduce fused with residual, norm or quantisation (FlashInfer, TensorRT-LLM, aiter)",
    ),
    Rule(
        "custom-all-reduce",
        "head",
        rf"{_ALL_REDUCE}|quickreduce|multimem_",
        "comm",
        "*",
        "all-reduce kernels of the serving engines read their peers' buffers directly",
    ),
    Rule(
        "userbuffers",
        "head",
        r"userbuffers_|kuserbuffers|ub_(?:push|pull)",
        "comm",
        "*",
        "Transformer Engine's userbuffers move tensors between devices",
    ),
    Rule(
        "collective-copy",
        "head",
        r"all_?gather_copy|chunk_cat|split_with_sizes_copy|fsdp::",
        "compute",
        "elementwise",
        "packs or unpacks a collective's buffer on its own device",
    ),
    Rule(
        "collective-word",
        "head",
        r"(?:^|[^a-z])(?:reduce_scatter|reducescatter|all_gather|allgather|all_to_all|alltoall|allreduce|sendrecv|send_recv)"
        r"|(?:put|wait)_(?:signal|remote)|(?:^|::)(?:stream_write_value|wait_eq|wait_value)|exchangesplit|all_to_one|cross_device|crossdevice|peer_(?:copy|put|get)|p2p_(?:copy|put|get|send|recv)|remote_(?:put|get|copy)",
        "comm",
        "*",
        "the name speaks of a transfer between ranks",
    ),
)

MEMORY: Final = (
    Rule(
        "peer-copy",
        "head",
        r"memcpy\s*(?:ptop|p2p|peer)|copypeer|\[cuda memcpy (?:ptop|peer)",
        "comm",
        "p2p",
        "a copy between devices moves data between ranks",
    ),
    Rule(
        "memcpy",
        "head",
        r"^\[?(?:cuda )?mem(?:cpy|set)|^copy(?:host|device)to(?:host|device)|__amd_rocclr_(?:copy|fill)"
        r"|^fillbuffer|^(?:hip|cuda)mem(?:cpy|set)",
        "memory",
        "memcpy",
        "a copy or fill on one device, or between it and its host",
    ),
    Rule(
        "cpu-copy",
        "head",
        r"^aten::(?:copy_|fill_|zero_)$",
        "memory",
        "memcpy",
        "a plain copy or fill on the CPU",
    ),
)
