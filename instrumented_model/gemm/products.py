"""Products in FP8 through the backend that was chosen at start-up; shapes are checked here, once for all backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from moescope.instrumented_model.gemm.backend import Backend, Counts
from moescope.instrumented_model.gemm.backends.cpu import Cpu
from moescope.instrumented_model.numerics.formats import TILE
from moescope.instrumented_model.numerics.quantise import Quantised, padded_rows, tiles

N_C = 128
"""Elements of k between promotions to FP32 (arXiv 2412.19437 section 3.3.2): 4 WGMMAs."""


class _Chosen:
    backend: Backend = Cpu()


def use(backend: Backend) -> None:
    """Multiply with `backend` from now on; before the first call it is `cpu`."""
    _Chosen.backend = backend


def leave(sms: int) -> bool:
    """Keep products off so many of the device's SMs from now on; whether the backend can."""
    return _Chosen.backend.leave(sms)


def active() -> Backend:
    """The backend that products go to where none is given."""
    return _Chosen.backend


def dense(
    a: Quantised,
    b: Quantised,
    *,
    interval: int | None = N_C,
    out_dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> torch.Tensor:
    """C = A B^T.

    a: [m, k] in 1x128 tiles; b: [n, k] in 128x128 blocks or 1x128 tiles
    interval: the most elements of k between promotions to FP32, None for no bound
    out_dtype: float32 or bfloat16
    returns: [m, n] `out_dtype`
    raises: ValueError on shapes that do not multiply, or what the backend cannot do
    """
    backend = _checked(backend, interval, out_dtype)
    _operand("A", a, 2, blocks=False)
    _operand("B", b, 2, blocks=b.rows == TILE)
    _same_k(a, b)
    return backend.dense(a, b, interval, out_dtype)


def grouped_m(
    a: Quantised,
    b: Quantised,
    rows: Counts,
    *,
    interval: int | None = N_C,
    out_dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> torch.Tensor:
    """C[rows of g] = A[rows of g] B_g^T: Fprop and Dgrad of experts.

    a: [m, k] in 1x128 tiles, ordered by group; b: [groups, n, k] in 128x128 blocks; rows: [groups], summing to m
    (on the device, where the backend's `counts_stay` says that it can, they are taken as they are)
    returns: [m, n] `out_dtype`; the rest as in `dense`
    """
    backend = _checked(backend, interval, out_dtype)
    _operand("A", a, 2, blocks=False)
    _operand("B", b, 3, blocks=True)
    _same_k(a, b)
    m, groups = a.q.shape[0], b.q.shape[0]
    if isinstance(rows, torch.Tensor):
        if not backend.counts_stay:
            raise ValueError(f"backend {backend.name} takes no rows on {rows.device}: give a list")
        if rows.shape != (groups,):
            raise ValueError(f"rows {list(rows.shape)} for {groups} groups of B: give one number for each")
    elif len(rows) != groups or min(rows) < 0 or sum(rows) != m:
        raise ValueError(
            f"rows {list(rows)} do not share out the {m} rows of A over the {groups} groups of B: give one number, not "
            f"below 0, for each group, summing to {m}"
        )
    return backend.grouped_m(a, b, rows, interval, out_dtype)


def grouped_k(
    a: Quantised,
    b: Quantised,
    rows: Sequence[int],
    *,
    interval: int | None = N_C,
    out_dtype: torch.dtype = torch.float32,
    backend: Backend | None = None,
) -> torch.Tensor:
    """C_g = A[:, columns of g] B[:, columns of g]^T: Wgrad of experts.

    a: [m, K], b: [n, K]: `transposed(quantise_columns(…, groups=rows))` of dY and of X
    rows: [groups] columns of each group before they were filled up, K = 128 * sum of ceil(rows/128)
    returns: [groups, m, n] `out_dtype`, zeros where a group has none; the rest as in `dense`
    """
    backend = _checked(backend, interval, out_dtype)
    _operand("A", a, 2, blocks=False)
    _operand("B", b, 2, blocks=False)
    _same_k(a, b)
    if not rows or min(rows) < 0 or padded_rows(rows) != a.q.shape[1]:
        raise ValueError(
            f"groups of {list(rows)} columns, each filled up to a multiple of {TILE}, are not the {a.q.shape[1]} "
            f"columns of A {list(a.q.shape)}: quantise both operands with quantise_columns(groups=rows)"
        )
    return backend.grouped_k(a, b, rows, interval, out_dtype)


def _checked(backend: Backend | None, interval: int | None, out_dtype: torch.dtype) -> Backend:
    backend = active() if backend is None else backend
    if out_dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"products come out as float32 or bfloat16, not {out_dtype}: choose one of them")
    if interval is not None and interval < max(1, backend.finest):
        raise ValueError(
            f"backend {backend.name} promotes every {backend.finest} elements at the finest, not every {interval}: ask "
            f"for {backend.finest} or more, or name another backend"
        )
    return backend


def _operand(name: str, x: Quantised, axes: int, blocks: bool) -> None:
    if x.q.dim() != axes:
        raise ValueError(f"{name} has shape {list(x.q.shape)}: give it {axes} axes")
    want = (TILE, TILE) if blocks else (1, TILE)
    if (x.rows, x.columns) != want:
        raise ValueError(
            f"{name} {list(x.q.shape)} is in tiles of {x.rows}x{x.columns}: give {want[0]}x{want[1]}, transposed where "
            f"the other axis is multiplied over"
        )
    n, k = x.q.shape[-2:]
    scales = [*x.q.shape[:-2], tiles(n) if blocks else n, tiles(k)]
    if list(x.scale.shape) != scales:
        raise ValueError(f"{name} {list(x.q.shape)} has scales {list(x.scale.shape)}: its tiles need {scales}")


def _same_k(a: Quantised, b: Quantised) -> None:
    if a.q.shape[-1] != b.q.shape[-1]:
        raise ValueError(
            f"A {list(a.q.shape)} and B {list(b.q.shape)} do not multiply: their last axes, {a.q.shape[-1]} and "
            f"{b.q.shape[-1]}, must be alike"
        )
    if a.q.device != b.q.device:
        raise ValueError(f"A lies on {a.q.device} and B on {b.q.device}: move both to one device")
