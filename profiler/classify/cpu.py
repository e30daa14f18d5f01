"""Classifier rules for the operators of PyTorch, which are what the CPU backend records. The first match wins."""

from __future__ import annotations

from typing import Final

from moescope.profiler.classify.rules import Rule

_REASON: Final = "an operator of PyTorch"


def _compute(name: str, pattern: str, operator: str, reason: str = _REASON) -> Rule:
    return Rule(name, "head", pattern, "compute", operator, reason)


CPU: Final = (
    _compute("cpu-grouped-gemm", r"^aten::_?(?:scaled_)?grouped_mm", "grouped_gemm"),
    _compute(
        "cpu-gemm",
        r"^(?:aten|mkldnn|quantized)::_?(?:mm|addmm|addmm_activation|bmm|baddbmm|addbmm|addmv|mv|dot|vdot|scaled_mm|int_mm"
        r"|linear|mkldnn_linear|linear_dynamic|matmul|weight_int4pack_mm\w*|weight_int8pack_mm|einsum|addr|ger|outer|inner)_?$",
        "gemm",
    ),
    _compute("cpu-conv", r"^aten::\w*conv(?:olution|\d|_)\w*|^aten::_?slow_conv", "conv"),
    _compute("cpu-attention", r"^aten::\w*attention\w*", "attention"),
    _compute("cpu-softmax", r"^aten::_?(?:log_)?softmax\w*|^aten::_\w*softmax\w*", "softmax"),
    _compute("cpu-norm", r"^aten::\w*(?:layer|rms|batch|group|instance)_norm\w*", "norm"),
    _compute(
        "cpu-activation",
        r"^aten::_?\w*(?:silu|gelu|relu|sigmoid|tanh|softplus|swish|glu|elu|mish|threshold)\w*",
        "activation",
    ),
    _compute("cpu-routing", r"^aten::(?:topk|bincount|histc|one_hot|searchsorted)", "routing"),
    _compute("cpu-optimizer", r"^aten::(?:_foreach_|_fused_(?:adam|sgd|adagrad))\w*|^optimizer\.", "optimizer"),
    _compute("cpu-embedding", r"^aten::\w*embedding\w*", "embedding"),
    _compute("cpu-quantize", r"^aten::\w*quantize\w*", "quantize"),
    _compute(
        "cpu-index",
        r"^aten::(?:index|gather|scatter|take|masked_|where|nonzero|sort|argsort|unique|cat|stack|select_backward|slice_backward)\w*",
        "index",
    ),
    _compute(
        "cpu-reduce",
        r"^aten::(?:sum|mean|max|min|amax|amin|aminmax|argmax|argmin|norm|linalg_vector_norm|cumsum|prod|std|var|any|all|logsumexp|nansum|count_nonzero)\w*$",
        "reduce",
    ),
    _compute("cpu-loss", r"^aten::\w*(?:nll_loss|cross_entropy|mse_loss)\w*", "loss"),
    _compute(
        "cpu-random",
        r"^aten::(?:normal|uniform|random|bernoulli|multinomial|exponential|rand|native_dropout|dropout)\w*",
        "random",
    ),
    _compute(
        "cpu-view",
        r"^aten::(?:_?(?:unsafe_)?view|_reshape_alias|reshape|as_strided|expand|expand_as|transpose|permute|t|numpy_T|unsqueeze"
        r"|squeeze|slice|select|narrow|split|split_with_sizes|chunk|unbind|unfold|flatten|detach|alias|lift_fresh|view_as"
        r"|empty|empty_like|empty_strided|new_empty|new_empty_strided|resize|set|is_nonzero|item|_local_scalar_dense"
        r"|result_type)_?$",
        "view",
        "changes a shape, or allocates or reads a scalar: its time is the host's, no element is computed",
    ),
    _compute("cpu-elementwise", r"^aten::", "elementwise", "any other operator of PyTorch"),
    _compute(
        "autograd-node",
        r"^(?:autograd::engine::evaluate_function|torch::autograd::)|(?-i:^[A-Z]\w*Backward\d*$)",
        "elementwise",
        "what a node of the backward graph does besides its operators",
    ),
)
