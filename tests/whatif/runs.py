"""Small runs whose answers are known by reasoning: kernels of GPUs in ms, on streams that are named for their work."""

from __future__ import annotations

from typing import Any

from moescope.profiler.whatif.nodes import Nodes, nodes_of
from moescope.profiler.whatif.project import Projected, Projection, project
from tests.live_recording import MemorySource, Row

MS = 1_000_000
NAMES = {
    "compute": "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64",
    "comm": "ncclDevKernel_AllReduce_Sum_bf16_RING_LL(ncclDevKernelArgsStorage<4096ul>)",
    "quantize": "per_token_group_quant_8bit_kernel",
    "grouped_gemm": "deep_gemm::fp8_grouped_gemm_kernel",
    "transpose": "transpose_kernel",
}


def gpu(start: float, end: float, kind: str = "compute", *, rank: int = 0, stream: str = "7", **more: Any) -> Row:
    """A kernel from start to end, ms."""
    return {
        "rank": rank,
        "device": f"cuda:{rank}",
        "stream": stream,
        "name": NAMES[kind],
        "start_ns": round(start * MS),
        "dur_ns": round((end - start) * MS),
        "evidence": "measured",
    } | more


def source_of(*rows: Row, meta: Row | None = None) -> MemorySource:
    """A finished recording of these kernels."""
    return MemorySource(meta=meta).add("kernels", sorted(rows, key=lambda row: row["start_ns"]))


def nodes(*rows: Row) -> Nodes:
    return nodes_of(source_of(*rows))


def projected(source: MemorySource, **wanted: Any) -> Projected:
    found = project(source, **wanted)
    assert found is not None
    return found


def scenario(found: Projected, identity: str) -> Projection:
    return next(one for one in found.projections if one.scenario.id == identity)


def reason(found: Projected, identity: str) -> str:
    return next(one for one in found.untold if one.id == identity).reason


H100 = {
    "ranks": [{"rank": rank, "device_properties": {f"cuda:{rank}": {"numSms": 132, "name": "H100"}}} for rank in (0, 1)]
}
