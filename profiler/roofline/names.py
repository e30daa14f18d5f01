"""What a kernel's name tells for certain: the type of its products, sizes that are template constants, causal masks.

Tile sizes are no problem sizes and are read as such only: how many tokens share a weight that was read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

_TYPES: Final = (
    (r"mxe2m1|[^a-z0-9]e2m1|nvfp4|mxfp4|float4_e2m1|fp4_gemm|mxf4", "fp4"),
    (r"e4m3|float8_?e4m3|fp8_e4m3", "fp8_e4m3"),
    (r"e5m2|float8_?e5m2|fp8_e5m2", "fp8_e5m2"),
    (r"(?<![a-z])fp8|float8|f8f8|_f8_|qgmma", "fp8"),
    (r"tf32|tensorop_s1688(?:gemm|fprop|dgrad|wgrad)(?!_bf16|_f16|bf16|f16)|s1688tf32", "tf32"),
    (r"bfloat16|bf16|__nv_bfloat16|[^a-z]bf16", "bf16"),
    (r"(?<![a-z])(?:half|fp16|f16)|__half|h884|h1688|s884gemm|s16816gemm_f16|hgemm|_s884", "f16"),
    (r"int8|(?<![a-z])i8|s8_|_s8s8|igemm|imma", "i8"),
    (r"dgemm|(?<![a-z])f64|double|dmma", "f64"),
    (r"sgemm|(?<![a-z])simt_s|gemmsn|gemv\w*<float|gemmk1|scudnn", "f32"),
)
"""The first that a name holds; an accumulator's `fp32` or `float` decides nothing."""

_COMPILED: Final = tuple((re.compile(pattern, re.IGNORECASE), dtype) for pattern, dtype in _TYPES)
_NVJET: Final = re.compile(r"(?:^|[^a-z])nvjet_(?:sm\d+_)?(?P<types>[a-z]{3,5})_")
_NVJET_TYPES: Final = {"t": "bf16", "h": "f16", "q": "fp8", "r": "fp8", "d": "f64"}
_TENSILE: Final = re.compile(r"Cijk_[A-Z][a-z]+_[A-Z][a-z]+_(?P<type>[A-Z0-9]+?)(?:_|(?=MT))")
_TENSILE_TYPES: Final = (
    ("F8", "fp8"), ("B8", "fp8"), ("BB", "bf16"), ("BS", "bf16"), ("HH", "f16"), ("HS", "f16"), ("SB", "f32"),
    ("S", "f32"), ("D", "f64"), ("I8", "i8"), ("X", "tf32"),
)  # fmt: skip
_TRTLLM_TYPE: Final = r"(?:Bfloat16|Fp16|MxE4m3|MxE2m1|E4m3|E2m1)"
_TRTLLM: Final = re.compile(
    rf"(?:^|[^a-z])(?:bmm|gemm)_{_TRTLLM_TYPE}_(?P<a>{_TRTLLM_TYPE})(?P<b>{_TRTLLM_TYPE})?_Fp32"
)
_TRTLLM_TYPES: Final = {
    "Bfloat16": "bf16", "Fp16": "f16", "E4m3": "fp8_e4m3", "MxE4m3": "fp8_e4m3", "E2m1": "fp4", "MxE2m1": "fp4",
}  # fmt: skip
_WIDEST_FIRST: Final = ("bf16", "f16", "fp8_e4m3", "fp4")
_FMHA_TILE: Final = re.compile(r"^fmhaSm\w*?Q(\d+)Kv\d+")
_DECODING: Final = re.compile(
    r"BatchDecodeWithPagedKVCacheKernel|SingleDecodeWithKVCache|paged_attention_v[12]|masked_multihead_attention"
)
_GROUP_OF_HEADS: Final = 16
"""Query heads that share a head of keys and values, at most, where attention has such groups."""

_TRTLLM_TILE: Final = re.compile(r"^bmm_\w+?_t(?P<m>\d+)x(?P<n>\d+)x\d+")
_DEEP: Final = re.compile(r"(?:^|[^a-z])(?:deep_gemm|dpsk::gemm)::(?P<kind>\w+)<(?P<arguments>[^>]*)")
_NUMBER: Final = re.compile(r"(?:\((?:unsigned int|int)\))?(\d+)u?$")
_GROUPED: Final = re.compile(r"GemmType\)(\d)|GemmType::(\w+)")
_FLASH_2: Final = re.compile(
    r"flash_(?:fwd|bwd)\w*<\w*Flash_\w+_traits<[^>]*>\s*(?:>\s*)?,\s*(\w+),\s*(\w+)", re.IGNORECASE
)
_FLASH_3: Final = re.compile(r"CollectiveMainloop(?:Fwd|Bwd)Sm90<.*?cutlass::arch::Sm90,\s*(true|false)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class WeightShape:
    """A product's weight as a template constant: [n, k]; grouped: one for each expert, how many is not told."""

    n: int
    k: int
    grouped: bool


@lru_cache(maxsize=65536)
def dtype_in(name: str) -> str | None:
    """Type that the products of a kernel of this name are computed in; None where the name does not tell."""
    match = _NVJET.search(name)
    if match is not None:
        return _NVJET_TYPES.get(match["types"][0])
    match = _TENSILE.search(name)
    if match is not None:
        kind = match["type"]
        return next((dtype for prefix, dtype in _TENSILE_TYPES if kind.startswith(prefix)), None)
    match = _TRTLLM.search(name)
    if match is not None:
        # A product of two types runs at the rate of the wider one.
        both = {_TRTLLM_TYPES[kind] for kind in (match["a"], match["b"]) if kind}
        return next(dtype for dtype in _WIDEST_FIRST if dtype in both)
    return next((dtype for pattern, dtype in _COMPILED if pattern.search(name)), None)


@lru_cache(maxsize=65536)
def weight_in(name: str) -> WeightShape | None:
    """The weight's shape from DeepGEMM's template constants; None for all other names, and where they are left open.

    `fp8_gemm_kernel<N, K, BLOCK_M, …, GemmType>` up to its version 1; from 2 on
    `sm90_fp8_gemm_1d2d_impl<Major, M, N, K, groups, …>` and their like, in which a size that is not compiled in is 0.
    """
    match = _DEEP.search(name)
    if match is None:
        return None
    numbers: list[int] = []
    for argument in match["arguments"].split(","):
        found = _NUMBER.match(argument.strip())
        if found is not None:
            numbers.append(int(found[1]))
        elif numbers:
            break
    old = match["kind"] == "fp8_gemm_kernel"
    sizes = numbers[:2] if old else _sizes_of_version_2(numbers)
    if len(sizes) != 2 or 0 in sizes:
        return None
    kind = _GROUPED.search(name)
    grouped = kind is None or (kind[1] not in (None, "0")) or (kind[2] not in (None, "Normal"))
    return WeightShape(sizes[0], sizes[1], grouped)


def _sizes_of_version_2(numbers: list[int]) -> list[int]:
    """n and k behind m, which is never compiled in; two granularities of scales may stand before it."""
    if len(numbers) >= 3 and numbers[0] == 0:
        return numbers[1:3]
    if len(numbers) >= 5 and numbers[2] == 0 and numbers[0] in (32, 128) and numbers[1] in (32, 128):
        return numbers[3:5]
    return []


@lru_cache(maxsize=65536)
def tokens_of_tile(name: str) -> int | None:
    """The most rows that share what a tile has read once, a weight or the cache; None where the name does not tell.

    TensorRT-LLM's kernels: `bmm_…_t128x8x128…_transOut…` has tiles of 128 rows of the weight by 8 tokens,
    `fmhaSm100…Q8Kv128…` of 8 queries by 128 keys. Kernels for decoding alone: the queries of one group of heads.
    """
    match = _TRTLLM_TILE.match(name)
    if match is not None:
        return int(match["n" if "_transOut" in name else "m"])
    match = _FMHA_TILE.search(name)
    if match is not None:
        return int(match[1])
    return _GROUP_OF_HEADS if _DECODING.search(name) else None


@lru_cache(maxsize=65536)
def causal_in(name: str) -> bool | None:
    """Whether a FlashAttention kernel masks causally, from its template arguments; None where they do not tell."""
    match = _FLASH_3.search(name)
    if match is not None:
        return match[1].lower() == "true"
    match = _FLASH_2.search(name)
    if match is not None and match[2] in ("true", "false"):
        return match[2] == "true"
    return None
