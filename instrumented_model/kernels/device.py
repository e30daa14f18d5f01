"""Arithmetic that several kernels share: casts, scales, tiles of E4M3, loads by descriptor or by pointer.

Compiled for sm_90 in the tests; not yet run on a GPU.
"""

# mypy: disable-error-code="no-untyped-def, untyped-decorator"

from __future__ import annotations

import triton
import triton.language as tl

from moescope.instrumented_model.kernels import interpreted

INTERPRETED = tl.constexpr(interpreted())
E4M3_MAX = tl.constexpr(448.0)
TILE = tl.constexpr(128)


@triton.jit
def _e4m3_code(y):
    """E4M3 by integer arithmetic, ties to even, saturating: what `cvt.rn.satfinite.e4m3x2.f32` gives.

    The interpreter's own cast rounds wrongly (31.7 becomes 16).
    """
    bits = y.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    size = tl.minimum(magnitude, 0x43E00000).to(tl.float32, bitcast=True)  # 448
    rounded = size.to(tl.int32, bitcast=True)
    normal = ((rounded + 0x7FFFF + ((rounded >> 20) & 1)) >> 20) - 960  # 3 fraction bits; 120 between the biases
    subnormal = (size + 16384.0).to(tl.int32, bitcast=True) - 0x46800000  # 2**14 has steps of 2**-9
    code = tl.where(size < 0.015625, subnormal, normal)
    code = tl.where(magnitude > 0x7F800000, 0x7F, code)
    return (code | ((bits >> 24) & 0x80)).to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def to_e4m3(y):
    """y: float32; returns: the same shape in E4M3, nearest, ties to even, saturating, NaN kept"""
    if INTERPRETED:
        return _e4m3_code(y)
    else:
        return y.to(tl.float8e4nv)


@triton.jit
def cast(y, dtype: tl.constexpr):
    """float32 to float32 or bfloat16, ties to even; the interpreter's own cast to bfloat16 truncates."""
    if INTERPRETED and dtype == tl.bfloat16:
        bits = y.to(tl.int32, bitcast=True)
        y = ((bits + 0x7FFF + ((bits >> 16) & 1)) & -65536).to(tl.float32, bitcast=True)
    return y.to(dtype)


@triton.jit
def scale_of(amax, POWER_OF_2: tl.constexpr):
    """Scale that brings `amax` to 448, rounded up to a power of 2 if asked; 1 where amax is 0. amax: float32"""
    scale = tl.maximum(tl.div_rn(amax, tl.zeros_like(amax) + E4M3_MAX), 1.1754943508222875e-38)
    if POWER_OF_2:
        bits = scale.to(tl.int32, bitcast=True)
        scale = ((bits + 0x7FFFFF) & -8388608).to(tl.float32, bitcast=True)
    return tl.where(amax > 0, scale, 1.0)


@triton.jit
def quantise_along(y, AXIS: tl.constexpr, POWER_OF_2: tl.constexpr):
    """Quantise with one scale along `AXIS`, the online amax of finite elements (section 3.3.2).

    y: [a, b] float32; returns: q [a, b] E4M3, scale [a] or [b] float32
    """
    size = tl.abs(y)
    amax = tl.max(tl.where(size < float("inf"), size, 0.0), AXIS)
    scale = scale_of(amax, POWER_OF_2)
    if POWER_OF_2:  # the reciprocal is exact, and so is the product
        inverse = ((254 << 23) - scale.to(tl.int32, bitcast=True)).to(tl.float32, bitcast=True)
        return to_e4m3(y * tl.expand_dims(inverse, AXIS)), scale
    else:
        return to_e4m3(tl.div_rn(y, tl.zeros_like(y) + tl.expand_dims(scale, AXIS))), scale


@triton.jit
def load_tile(source, row, column, rows, columns, stride, ROWS: tl.constexpr, WIDTH: tl.constexpr, TMA: tl.constexpr):
    """[ROWS, WIDTH] from `row`, `column` on, zeros outside; `source` is a descriptor where TMA, else a pointer.

    rows, columns: where the matrix ends, for pointers; a descriptor knows its own end
    """
    if TMA:
        return source.load([row, column])
    else:
        r = row + tl.arange(0, ROWS)
        c = column + tl.arange(0, WIDTH)
        inside = (r < rows)[:, None] & (c < columns)[None, :]
        return tl.load(source + r.to(tl.int64)[:, None] * stride + c[None, :], mask=inside, other=0.0)
