"""The stack's own kernels are known by their names: an exchange communicates, and nothing else does."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from moescope.profiler.classify.classifier import classify

FOLDER = Path(__file__).parents[2] / "instrumented_model/kernels"
OPERATORS = {
    "combine_kernel": ("comm", "combine"),
    "dispatch_kernel": ("comm", "dispatch"),
    "gemm_kernel": ("compute", "gemm"),
    "grouped_gemm_k_kernel": ("compute", "grouped_gemm"),
    "grouped_gemm_m_kernel": ("compute", "grouped_gemm"),
    "quantise_kernel": ("compute", "quantize"),
    "swiglu_backward_kernel": ("compute", "activation"),
    "swiglu_kernel": ("compute", "activation"),
    "transpose_quantise_kernel": ("compute", "quantize"),
}


def _kernels() -> list[str]:
    """Names of what is launched, as the profiler sees them."""
    return sorted(
        node.name
        for path in FOLDER.glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel") and node.decorator_list
    )


def test_all_of_them_are_here() -> None:
    assert _kernels() == sorted(OPERATORS)


@pytest.mark.parametrize("name", OPERATORS)
def test_a_kernel_is_what_it_does(name: str) -> None:
    found = classify(name)
    assert (found.kind, found.operator) == OPERATORS[name]
