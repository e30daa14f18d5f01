"""Products by kernels against float64, over shapes that fill no tile, empty groups and groups of one row."""

from __future__ import annotations

import pytest
import torch

from moescope.instrumented_model.kernels import mainloop
from moescope.instrumented_model.kernels.gemm import gemm
from moescope.instrumented_model.kernels.grouped_gemm import grouped_gemm, grouped_gemm_k
from moescope.instrumented_model.kernels.transpose import transpose_blocks, transpose_quantise
from tests.model.interpreted import plain

SHAPES = [(1, 128, 128), (64, 130, 256), (65, 128, 576), (300, 200, 144), (130, 300, 130), (257, 129, 384)]


@pytest.mark.parametrize("out_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("m", "n", "k"), SHAPES)
def test_product_of_tiles_and_blocks(m: int, n: int, k: int, out_dtype: torch.dtype) -> None:
    xq, xs = plain.quantised(m, k, 1)
    wq, ws = plain.blocks(n, k, 2)
    y = gemm(xq, xs, wq, ws, out_dtype=out_dtype)
    assert y.dtype == out_dtype
    plain.assert_close(y, plain.values(xq, xs), plain.values(wq, ws, rows=128))


@pytest.mark.parametrize(("k", "descriptors"), [(256, True), (130, False)])
def test_operands_that_a_descriptor_cannot_describe_go_by_pointers(k: int, descriptors: bool) -> None:
    assert mainloop.by_descriptor(plain.quantised(3, k, 0)[0]) is descriptors


def test_product_of_tiles_and_tiles_is_added_to_what_is_there() -> None:
    xq, xs = plain.quantised(140, 256, 3)
    wq, ws = plain.quantised(150, 256, 4)
    out = torch.randn(140, 150, generator=torch.Generator().manual_seed(5))
    before = out.clone()
    assert gemm(xq, xs, wq, ws, out_dtype=torch.float32, out=out, accumulate=True) is out
    plain.assert_close(out, plain.values(xq, xs), plain.values(wq, ws), before.double())


def test_scales_are_read_with_their_strides() -> None:
    xq, xs = plain.quantised(70, 384, 6)
    wq, ws = plain.blocks(128, 384, 7)
    by_columns = xs.T.contiguous().T
    assert torch.equal(gemm(xq, xs, wq, ws), gemm(xq, by_columns, wq, ws.T.contiguous().T))


def test_promotion_keeps_what_14_bits_would_lose() -> None:
    xq, xs = torch.ones(1, 4096).to(plain.E4M3), torch.ones(1, 32)
    xs[0, 0] = 2.0**12
    y = gemm(xq, xs, xq, torch.ones(1, 32), out_dtype=torch.float32)
    assert y.item() == 128 * 2**12 + 31 * 128


@pytest.mark.parametrize("sms", [1, 2, 7])
def test_the_limit_on_sms_changes_no_bit(sms: int) -> None:
    xq, xs = plain.quantised(300, 128, 8)
    wq, ws = plain.blocks(260, 128, 9)
    assert torch.equal(gemm(xq, xs, wq, ws, sms=sms), gemm(xq, xs, wq, ws))
    rows = [100, 0, 200]
    wq, ws = wq[:255].reshape(3, 85, 128), ws.repeat(1, 1)[:, None].repeat(1, 1, 1)
    assert torch.equal(grouped_gemm(xq, xs, wq, ws, rows, sms=sms), grouped_gemm(xq, xs, wq, ws, rows))


def test_dgrad_is_the_product_with_transposed_blocks() -> None:
    dyq, dys = plain.quantised(50, 200, 10)
    wq, ws = plain.blocks(200, 300, 11)
    dx = gemm(dyq, dys, *transpose_blocks(wq, ws), out_dtype=torch.float32)
    plain.assert_close(dx, plain.values(dyq, dys), plain.values(wq, ws, rows=128).T)


RAGGED = [[0, 1, 130, 0, 64, 0], [5], [1, 1, 1, 1], [0, 300], [129, 0, 0]]


@pytest.mark.parametrize(("n", "k"), [(128, 256), (200, 130)])
@pytest.mark.parametrize("rows", RAGGED)
def test_ragged_rows_meet_the_weights_of_their_group(rows: list[int], n: int, k: int) -> None:
    xq, xs = plain.quantised(sum(rows), k, 12)
    weights = [plain.blocks(n, k, 100 + g) for g in range(len(rows))]
    wq = torch.stack([q.view(torch.uint8) for q, _ in weights]).view(plain.E4M3)
    ws = torch.stack([s for _, s in weights])
    y = grouped_gemm(xq, xs, wq, ws, rows, out_dtype=torch.float32)
    assert torch.equal(y, grouped_gemm(xq, xs, wq, ws, torch.tensor(rows), out_dtype=torch.float32))
    first = 0
    for (q, s), r in zip(weights, rows, strict=True):
        x = plain.values(xq[first : first + r], xs[first : first + r])
        plain.assert_close(y[first : first + r], x, plain.values(q, s, rows=128))
        first += r


@pytest.mark.parametrize("accumulate", [False, True])
@pytest.mark.parametrize("rows", RAGGED)
def test_weight_gradients_sum_over_the_rows_of_their_group(rows: list[int], accumulate: bool) -> None:
    n, k = 140, 72
    generator = torch.Generator().manual_seed(13)
    dy, x = torch.randn(sum(rows), n, generator=generator), torch.randn(sum(rows), k, generator=generator)
    dyq, dys = transpose_quantise(dy, rows=rows)
    xq, xs = transpose_quantise(x, rows=rows)
    out = torch.randn(len(rows), n, k, generator=generator) if accumulate else None
    before = torch.zeros(len(rows), n, k) if out is None else out.clone()
    dw = grouped_gemm_k(dyq, dys, xq, xs, rows, out=out, accumulate=accumulate)
    first = 0
    for g, r in enumerate(rows):
        tiles = slice(first, first + -(-r // 128))
        columns = slice(128 * tiles.start, 128 * tiles.stop)
        plain.assert_close(
            dw[g],
            plain.values(dyq[:, columns], dys[:, tiles]),
            plain.values(xq[:, columns], xs[:, tiles]),
            before[g].double(),
        )
        first = tiles.stop


def test_no_rows_at_all_give_empty_results_and_zero_gradients() -> None:
    wq, ws = plain.blocks(128, 128, 14)
    xq, xs = plain.quantised(0, 128, 15)
    assert gemm(xq, xs, wq, ws).shape == (0, 128)
    assert grouped_gemm(xq, xs, wq[None], ws[None], [0]).shape == (0, 128)
    assert torch.equal(gemm(xq.T[:5], torch.ones(5, 0), xq.T[:3], torch.ones(1, 0)), torch.zeros(5, 3).bfloat16())
    empty = transpose_quantise(torch.zeros(0, 16), rows=[0, 0])
    assert torch.equal(grouped_gemm_k(*empty, *empty, [0, 0]), torch.zeros(2, 16, 16))


def _refused(message: str, **changed: object) -> None:
    xq, xs = plain.quantised(4, 256, 16)
    wq, ws = plain.blocks(130, 256, 17)
    arguments = {"xq": xq, "xs": xs, "wq": wq, "ws": ws} | changed
    with pytest.raises(ValueError, match=message):
        gemm(**arguments)  # type: ignore[arg-type]


def test_what_does_not_fit_is_named() -> None:
    _refused("xq is float32: give float8_e4m3fn", xq=torch.zeros(4, 256))
    _refused(r"xs has shape \[4, 3\]: give \[4, 2\]", xs=torch.zeros(4, 3))
    _refused(r"wq has shape \[5, 3\]: give \[\*, 256\]", wq=torch.zeros(5, 3).to(plain.E4M3))
    _refused(r"ws has shape \[3, 2\]: give \[130, 2\]", ws=torch.zeros(3, 2))
    _refused("out_dtype is float16: give bfloat16 or float32", out_dtype=torch.float16)
    _refused("accumulate needs `out`", accumulate=True)
    _refused("sms is 0", sms=0)
    xq, xs = plain.quantised(4, 256, 16)
    wq, ws = plain.blocks(130, 256, 17)
    with pytest.raises(ValueError, match="rows names 2 groups, wq has 1"):
        grouped_gemm(xq, xs, wq[None], ws[None], [2, 2])
    with pytest.raises(ValueError, match="rows sums to 3, there are 4 rows"):
        grouped_gemm(xq, xs, wq[None], ws[None], [3])
    with pytest.raises(ValueError, match="rows take 1 tiles, there are 2"):
        grouped_gemm_k(xq, xs, xq, xs, [100])
