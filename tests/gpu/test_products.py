"""Products on the tensor core against FP64, within what 14 bits and promotion every 128 elements leave.

Not yet run on a GPU.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tests.model.interpreted import plain  # noqa: E402

pytestmark = pytest.mark.gpu

# A step adds 32 products and the sum so far, each cut 13 bits below the largest: at most 33 * 2^-13 of the largest
# product, which is far below that share of the sum of them all.
TENSOR_CORE = 2.0**-9


def _close(got: torch.Tensor, a: torch.Tensor, b: torch.Tensor, added: torch.Tensor | float = 0.0) -> None:
    """a: [m, k], b: [n, k] float64"""
    want = a @ b.T + added
    bound = TENSOR_CORE * (a.abs() @ b.abs().T) + 1e-30
    bound += want.abs() * (2.0**-8 if got.dtype == torch.bfloat16 else 1e-6)
    assert got.shape == want.shape
    assert ((got.cpu().double() - want).abs() <= bound).all()


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 128, 128), (64, 576, 512), (300, 260, 1000), (129, 128, 7168)])
def test_tiles_by_blocks(m: int, n: int, k: int, out_dtype: torch.dtype, device) -> None:
    from moescope.instrumented_model.kernels.gemm import gemm

    (xq, xs), (wq, ws) = plain.quantised(m, k, 1), plain.blocks(n, k, 2)
    whole = gemm(xq.to(device), xs.to(device), wq.to(device), ws.to(device), out_dtype=out_dtype)
    _close(whole, plain.values(xq, xs), plain.values(wq, ws, 128))
    limited = gemm(xq.to(device), xs.to(device), wq.to(device), ws.to(device), out_dtype=out_dtype, sms=2)
    assert torch.equal(limited, whole)


def test_tiles_by_tiles_added_to_what_is_there(device) -> None:
    from moescope.instrumented_model.kernels.gemm import gemm

    (xq, xs), (wq, ws) = plain.quantised(200, 384, 3), plain.quantised(136, 384, 4)
    there = torch.randn(200, 136, generator=torch.Generator().manual_seed(5))
    out = there.to(device, copy=True)
    operands = (t.to(device) for t in (xq, xs, wq, ws))
    gemm(*operands, out_dtype=torch.float32, out=out, accumulate=True)
    _close(out, plain.values(xq, xs), plain.values(wq, ws), there.double())


@pytest.mark.parametrize("blocks", [True, False])
def test_a_sum_that_is_never_promoted_takes_one_scale_for_all_of_k(blocks: bool, device) -> None:
    from moescope.instrumented_model.kernels.gemm import gemm

    (xq, xs), (wq, ws) = (
        plain.quantised(130, 300, 6),
        plain.blocks(260, 300, 7) if blocks else plain.quantised(260, 300, 7),
    )
    xs, ws = xs[:, :1].expand_as(xs).contiguous(), ws[:, :1].expand_as(ws).contiguous()
    got = gemm(*(t.to(device) for t in (xq, xs, wq, ws)), out_dtype=torch.float32, promote=False)
    _close(got, plain.values(xq, xs), plain.values(wq, ws, 128) if blocks else plain.values(wq, ws))


@pytest.mark.parametrize("rows", [[1, 0, 3, 70], [200, 129, 0, 5]])
def test_experts_with_any_number_of_tokens(rows: list[int], device) -> None:
    from moescope.instrumented_model.kernels.grouped_gemm import grouped_gemm

    xq, xs = plain.quantised(sum(rows), 256, 6)
    weights = [plain.blocks(192, 256, 7 + g) for g in range(len(rows))]
    wq, ws = (torch.stack(parts) for parts in zip(*weights, strict=True))
    operands = [t.to(device) for t in (xq, xs, wq, ws)]
    y = grouped_gemm(*operands, rows, out_dtype=torch.float32)
    counted_there = torch.tensor(rows, dtype=torch.int32, device=device)
    assert torch.equal(grouped_gemm(*operands, counted_there, out_dtype=torch.float32), y)
    at = 0
    for group, count in enumerate(rows):
        part = slice(at, at + count)
        _close(y[part], plain.values(xq[part], xs[part]), plain.values(wq[group], ws[group], 128))
        at += count


def test_weight_gradients_of_experts(device) -> None:
    from moescope.instrumented_model.kernels.grouped_gemm import grouped_gemm_k
    from moescope.instrumented_model.kernels.transpose import transpose_quantise

    rows = [130, 0, 7]
    torch.manual_seed(8)
    dy, x = torch.randn(137, 200).bfloat16().to(device), torch.randn(137, 136).bfloat16().to(device)
    yq, ys = transpose_quantise(dy, rows=rows)
    xq, xs = transpose_quantise(x, rows=rows)
    dw = grouped_gemm_k(yq, ys, xq, xs, rows)
    a, b = plain.values(yq.cpu(), ys.cpu()), plain.values(xq.cpu(), xs.cpu())
    at = 0
    for group, count in enumerate(rows):
        columns = slice(128 * at, 128 * (at + -(-count // 128)))
        _close(dw[group], a[:, columns], b[:, columns])
        at += -(-count // 128)


def test_backends_that_work_here_agree_with_fp64(device) -> None:
    from moescope.instrumented_model.gemm.choice import PREFERRED
    from moescope.instrumented_model.numerics.quantise import Quantised

    (xq, xs), (wq, ws) = plain.quantised(256, 512, 9), plain.blocks(384, 512, 10)
    tried = []
    for backend in PREFERRED:
        if backend.why_not(device) is None:
            x, w = Quantised(xq.to(device), xs.to(device), 1), Quantised(wq.to(device), ws.to(device), 128)
            _close(backend.dense(x, w, 128, torch.bfloat16), plain.values(xq, xs), plain.values(wq, ws, 128))
            tried.append(backend.name)
    assert tried
