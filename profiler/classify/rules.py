"""What a classifier rule is, and the rules for calls of the host, copies, and code that a compiler wrote.

Patterns are searched without regard to case, the first rule that matches speaks. A `head` rule sees only the function's
name; a `body` rule also its template arguments; a `whole` rule the name as it stands. None of the built-in rules sees
the types of call arguments: a pointer to a communicator makes no transfer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Where: TypeAlias = Literal["head", "body", "whole"]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: where it looks, what it matches, what it says, and why that is so.

    operator: the operator's class; `*` takes it from the collective that the name speaks of
    """

    name: str
    where: Where
    pattern: str
    kind: str
    operator: str
    reason: str


def any_of(*patterns: str) -> str:
    """One pattern for several."""
    return "|".join(patterns)


COLLECTIVES: Final = (
    (r"put_?mem|get_?mem|send_?recv|push_?recv|pull_?send|push_?send", "p2p"),
    (r"reduce[_-]?scatter", "reduce_scatter"),
    (r"all[_-]?gather|fcollect|ag_nvl|gather_multimem|multimem_gather", "all_gather"),
    (r"all[_-]?reduce|cross_?device_?reduce|rdxn", "all_reduce"),
    (r"all[_-]?to[_-]?all|all_?2_?all|(?<![a-z])a2a", "all_to_all"),
    (r"broadcast", "broadcast"),
    (r"notify|barrier|signal", "notify"),
    (r"dispatch", "dispatch"),
    (r"combine", "combine"),
    (r"(?<![a-z])(?:send|recv|put|get|pull|push)|p2p|ptop|peer", "p2p"),
    (r"sync|wait|quiet|fence", "notify"),
    (r"reduce", "reduce"),
    (r"gather", "gather"),
    (r"scatter", "scatter"),
)
"""Which collective a name speaks of; the first match wins."""

HOST: Final = (
    Rule(
        "host-issue",
        "whole",
        any_of(
            r"^(?:c10d|_c10d_functional|c10d_functional|_c10d_functional_autograd|symm_mem)::\w+$",
            r"^record_param_comms$|^profiler::|^\[pytorch\|",
        ),
        "host",
        "issue",
        "the call that issues a collective on the host: its execution is recorded by itself",
    ),
    Rule(
        "host-compiled",
        "whole",
        any_of(
            r"^TorchDynamo Cache Lookup$|^Pregraph bytecode$|^AOTDispatcher Runtime Wrapper Prologue$",
            r"^Torch-Compiled Region: |^CompiledFunction(?:Backward)?$|^## Call CompiledFxGraph ",
        ),
        "host",
        "issue",
        "how torch.compile calls the code that it made: that is recorded by itself",
    ),
)

MEMORY: Final = (
    Rule(
        "peer-copy",
        "whole",
        any_of(
            r"^\[?(?:cuda |hip )?memcpy\s*(?:ptop|p2p|peer)",
            r"^copy_?(?:peer|device_?to_?peer)|memcpy_?peer",
        ),
        "comm",
        "p2p",
        "a copy between devices moves data between ranks",
    ),
    Rule(
        "memcpy",
        "whole",
        any_of(
            r"^\[?(?:cuda |hip )?mem(?:cpy|set)(?![a-z]*(?:expert|idx|indic))",
            r"^(?:cuda|hip)_?mem(?:cpy|set)",
            r"^copy_?(?:host|device|array)_?to_?(?:host|device|array)",
            r"^fill_?buffer|__amd_rocclr_|^hip_?(?:copy|fill)",
        ),
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

_TEMPLATE = r"^triton_tem_|^triton_(?:mm|bmm|addmm|flex)"
_FUSED = r"^triton_(?:poi|red|per|for|mix|unk|spl|split_scan)_"


def _compiled(name: str, pattern: str, operator: str, reason: str) -> Rule:
    return Rule(name, "head", pattern, "compute", operator, reason)


COMPILERS: Final = (
    _compiled(
        "inductor-grouped-gemm",
        rf"(?:{_TEMPLATE})\w*grouped_mm",
        "grouped_gemm",
        "a grouped product from TorchInductor's templates",
    ),
    _compiled(
        "inductor-attention",
        rf"(?:{_TEMPLATE})\w*(?:attention|flex)",
        "attention",
        "attention from TorchInductor's templates",
    ),
    _compiled(
        "inductor-conv", rf"(?:{_TEMPLATE})\w*convolution", "conv", "a convolution from TorchInductor's templates"
    ),
    _compiled(
        "inductor-gemm",
        _TEMPLATE,
        "gemm",
        "a matrix product from TorchInductor's templates; its name lists what it fuses, even a collective's wait",
    ),
    _compiled(
        "inductor-norm",
        rf"(?:{_FUSED})\w*(?:norm|rsqrt)",
        "norm",
        "a TorchInductor kernel computes on its own device; its name lists the operators fused, rsqrt marks a norm",
    ),
    _compiled(
        "inductor-softmax",
        rf"(?:{_FUSED})\w*softmax",
        "softmax",
        "a TorchInductor kernel computes on its own device; its name lists a softmax among the operators fused",
    ),
    _compiled(
        "inductor-activation",
        rf"(?:{_FUSED})\w*(?:silu|gelu|sigmoid|relu|tanh)",
        "activation",
        "a TorchInductor kernel computes on its own device; its name lists an activation among the operators fused",
    ),
    _compiled(
        "inductor",
        _FUSED,
        "elementwise",
        "a TorchInductor kernel computes on its own device, even when its name mentions a collective",
    ),
    _compiled("inductor-cpu", r"^(?:cpp_fused|graph_\d+_cpp_fused)_", "elementwise", "a TorchInductor loop on the CPU"),
    _compiled(
        "inductor-graph",
        r"^compiled graph\b",
        "elementwise",
        "what code of torch.compile does on the CPU between the operators that it calls: mostly fused loops",
    ),
    _compiled("xla-gemm", r"^(?:gemm|dot|cublas\w*|__cublas\w*|triton_gemm)_fusion", "gemm", "a matrix product by XLA"),
    _compiled(
        "xla-fusion",
        any_of(
            r"^(?:wrapped_|loop_|input_|nested_|horizontal_|triton_)\w*?(?:fusion|reduce|convert|transpose|broadcast)",
            r"^(?:fusion|fused_computation|command_buffer)(?:[_.]\d+)*$",
            r"^[\w.]*_fusion(?:[_.]\d+)*$",
        ),
        "elementwise",
        "a fusion by XLA computes on its own device: `broadcast` in its name repeats elements",
    ),
)
