"""Every backend against FP64 in all three forms, what it may be given, and how one is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.__main__ import main  # noqa: E402
from moescope.instrumented_model.config import ConfigError  # noqa: E402
from moescope.instrumented_model.gemm import products  # noqa: E402
from moescope.instrumented_model.gemm.backend import Backend  # noqa: E402
from moescope.instrumented_model.gemm.backends.cpu import Cpu  # noqa: E402
from moescope.instrumented_model.gemm.backends.emulated import Emulated  # noqa: E402
from moescope.instrumented_model.gemm.backends.reference import Reference  # noqa: E402
from moescope.instrumented_model.gemm.choice import NAMES, PREFERRED, choose, unusable  # noqa: E402
from moescope.instrumented_model.numerics.quantise import (  # noqa: E402
    Quantised,
    quantise_blocks,
    quantise_columns,
    quantise_tiles,
    transposed,
)

CPU = torch.device("cpu")
ERROR = {"reference": 1e-7, "cpu": 1e-6, "emulated": 1e-3}
"""Relative to FP64 products of the operands, with FP32 results."""


@pytest.fixture(autouse=True)
def _as_before() -> Any:
    before = products.active()
    yield
    products.use(before)


def _plain(x: Quantised) -> torch.Tensor:
    """Element by tile, in float64, for any tiles. returns: [..., n, k]"""
    n, k = x.q.shape[-2:]
    row, column = torch.arange(n) // x.rows, torch.arange(k) // x.columns
    return x.q.float().double() * x.scale.double()[..., row, :][..., column]


def _close(got: torch.Tensor, want: torch.Tensor, error: float) -> None:
    assert got.shape == want.shape
    assert float((got.double() - want).norm()) <= error * float(want.norm())


@settings(max_examples=12, deadline=None)
@given(
    rows=st.lists(st.integers(0, 150), min_size=1, max_size=3),
    n=st.integers(1, 150),
    k=st.integers(1, 150),
    backend=st.sampled_from([Reference(), Cpu(), Emulated()]),
    out_dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_all_forms_equal_fp64_products_of_the_operands(
    rows: list[int], n: int, k: int, backend: Backend, out_dtype: torch.dtype
) -> None:
    torch.manual_seed(sum(rows) + n + k)
    m = sum(rows)
    x, dy, w = torch.randn(m, k), torch.randn(m, n), torch.randn(len(rows), n, k)
    xq, wq, first = quantise_tiles(x), quantise_blocks(w), quantise_blocks(w[0])
    x_t, dy_t = quantise_columns(x, groups=rows), quantise_columns(dy, groups=rows)
    error = max(ERROR[backend.name], 0 if out_dtype == torch.float32 else 2**-8)

    def given(product: Any, *operands: Any) -> torch.Tensor:
        result: torch.Tensor = product(*operands, out_dtype=out_dtype, backend=backend)
        assert result.dtype == out_dtype
        return result

    _close(given(products.dense, xq, first), _plain(xq) @ _plain(first).mT, error)
    _close(given(products.dense, xq, quantise_tiles(w[0])), _plain(xq) @ _plain(quantise_tiles(w[0])).mT, error)
    by_group = zip(_plain(xq).split(rows), _plain(wq), strict=True)
    _close(given(products.grouped_m, xq, wq, rows), torch.cat([a @ b.mT for a, b in by_group]), error)
    dyq = quantise_tiles(dy)
    by_group = zip(_plain(dyq).split(rows), _plain(wq), strict=True)
    _close(given(products.grouped_m, dyq, transposed(wq), rows), torch.cat([a @ b for a, b in by_group]), error)
    padded = [-(-r // 128) * 128 for r in rows]
    by_group = zip(_plain(dy_t).split(padded), _plain(x_t).split(padded), strict=True)
    want = torch.stack([a.mT @ b for a, b in by_group])
    _close(given(products.grouped_k, transposed(dy_t), transposed(x_t), rows), want, error)


def test_the_promotion_interval_is_the_emulators_to_choose() -> None:
    torch.manual_seed(0)
    x, w = torch.rand(4, 512), torch.rand(4, 512)
    a, b = (Quantised(q.q, torch.ones_like(q.scale), 1) for q in (quantise_tiles(x), quantise_tiles(w)))
    exact = _plain(a) @ _plain(b).mT
    errors = [
        float((products.dense(a, b, interval=i, backend=Emulated()).double() - exact).norm()) for i in (32, 128, None)
    ]
    assert errors[0] < errors[1] < errors[2]


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        (((4, 128), (8, 256)), r"A \[4, 128\] and B \[8, 256\] do not multiply: their last axes, 128 and 256"),
        (((4, 128), (2, 8, 128)), r"B has shape \[2, 8, 128\]: give it 2 axes"),
    ],
)
def test_shapes_that_do_not_multiply_are_named(shapes: tuple[tuple[int, ...], ...], why: str) -> None:
    a, b = quantise_tiles(torch.ones(shapes[0])), quantise_blocks(torch.ones(shapes[1]))
    with pytest.raises(ValueError, match=why):
        products.dense(a, b)


def test_groups_tiles_results_and_intervals_that_do_not_fit_are_refused() -> None:
    a, w = quantise_tiles(torch.ones(6, 128)), quantise_blocks(torch.ones(2, 8, 128))
    with pytest.raises(ValueError, match=r"rows \[4, 4\] do not share out the 6 rows of A over the 2 groups of B"):
        products.grouped_m(a, w, [4, 4])
    with pytest.raises(ValueError, match="tiles of 128x1: give 1x128"):
        products.dense(quantise_columns(torch.ones(128, 128)), quantise_blocks(torch.ones(8, 128)))
    columns = transposed(quantise_columns(torch.ones(6, 3), groups=[2, 4]))
    with pytest.raises(ValueError, match=r"groups of \[6\] columns, each filled up"):
        products.grouped_k(columns, columns, [6])
    with pytest.raises(ValueError, match="has scales"):
        products.dense(Quantised(a.q, a.scale[:3], 1), quantise_blocks(torch.ones(8, 128)))
    with pytest.raises(ValueError, match=r"not torch\.float16"):
        products.dense(a, quantise_tiles(torch.ones(8, 128)), out_dtype=torch.float16)
    with pytest.raises(ValueError, match="emulated promotes every 32 elements at the finest, not every 16"):
        products.dense(a, quantise_tiles(torch.ones(8, 128)), interval=16, backend=Emulated())


def test_on_the_cpu_the_first_that_works_is_taken_and_all_before_it_have_a_reason() -> None:
    choice = choose()
    assert choice.backend.name == "cpu"
    assert products.active() is choice.backend
    assert [name for name, _ in choice.rejected] == [b.name for b in PREFERRED if b.name != "cpu"]
    assert all(reason for _, reason in choice.rejected)
    assert "not scaled_mm: needs a GPU of compute capability 9.0" in str(choice)


@pytest.mark.parametrize("name", ["reference", "cpu", "emulated"])
def test_a_backend_can_be_named(name: str) -> None:
    assert choose(name).backend.name == name
    assert products.active().name == name


def test_names_that_are_unknown_or_do_not_work_here_are_refused_with_the_reason() -> None:
    with pytest.raises(ConfigError, match=r"no backend 'abacus': choose one of " + ", ".join(NAMES)):
        choose("abacus")
    with pytest.raises(ConfigError, match="backend scaled_mm does not work here: needs a GPU"):
        choose("scaled_mm")
    assert products.active().name == "cpu"


class Crooked(Cpu):
    """Wrong by a factor in one form."""

    name = "crooked"

    def grouped_m(self, *operands: Any) -> torch.Tensor:
        return 1.02 * super().grouped_m(*operands)


class Broken(Cpu):
    name = "broken"

    def dense(self, *operands: Any) -> torch.Tensor:
        raise RuntimeError("no kernel image\nsecond line")


def test_a_probe_finds_wrong_products_and_kernels_that_fail() -> None:
    assert unusable(Cpu(), CPU) is None
    assert "a grouped M product into torch.float32 is off by 2.0e-02" in str(unusable(Crooked(), CPU))
    assert unusable(Broken(), CPU) == "a small product failed: no kernel image"


@pytest.mark.parametrize(("name", "code"), [("reference", 0), ("abacus", 2)])
def test_the_program_prints_its_choice_or_one_line_and_exits_2(
    name: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--steps=1", f"--gemm={name}"]) == code
    done = capsys.readouterr()
    if code:
        assert done.err.startswith("error: no backend 'abacus'")
        assert done.err.count("\n") == 1
    else:
        assert "gemm reference: E4M3 operands, dequantised, FP64 products" in done.out


def test_the_triton_kernels_pass_the_probe_under_their_interpreter() -> None:
    pytest.importorskip("triton")
    command = [
        sys.executable,
        "-c",
        "from moescope.instrumented_model.gemm.choice import choose; print(choose('triton'))",
    ]
    env = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("triton: ")
