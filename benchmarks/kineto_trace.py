"""A PyTorch (Kineto) trace of any size, the same bytes each time: one rank of an FP8 mixture-of-experts run.

Laid out as libkineto writes it. The host's part comes first (Python frames as with `with_stack`, operators with shapes,
annotations), then launches, kernels, copies, and the arrows between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

LAYERS: Final = 16
PID: Final = 4711
BACKWARD_TID: Final = 4790
BASE_NS: Final = 1_775_078_550_000_000_000
FRAMES: Final = (
    "torch/nn/modules/module.py(1773): _wrapped_call_impl",
    "torch/nn/modules/module.py(1784): _call_impl",
    "nn.Module: Linear_{layer}",
    "torch/nn/modules/linear.py(125): forward",
    "/opt/model/layers/moe.py({line}): forward",
)


@dataclass(frozen=True, slots=True)
class _Call:
    """One operator of a layer: its own operators from the outermost in, its kernel, launch shape, stream, µs."""

    phase: str
    operators: tuple[str, ...]
    dims: str
    types: str
    kernel: str
    grid: int
    stream: int
    lasts: float


_BF16 = '"c10::BFloat16", "c10::BFloat16"'
_FP8 = '"c10::Float8_e4m3fn", "c10::Float8_e4m3fn", "float", "float"'
_POINTERS = "int4*, float*, bool const*, int4 const*, float const*, int4 const*, int4 const*, int const*"
_TENSOR_MAPS = ", ".join(["CUtensorMap_st"] * 4)


def _vectorised(what: str) -> str:
    functor = f"at::native::{what}Functor<c10::BFloat16>"
    return (
        f"void at::native::vectorized_elementwise_kernel<4, {functor}, std::array<char*, 3ul> >"
        f"(int, {functor}, std::array<char*, 3ul>)"
    )


_LAYER: Final = (
    _Call(
        "attn(F)", ("aten::rms_norm", "aten::mul"), "[[4096, 7168], [7168]]", _BF16, _vectorised("Mul"), 1024, 7, 9.1
    ),
    _Call(
        "attn(F)",
        ("aten::linear", "aten::matmul", "aten::mm"),
        "[[4096, 7168], [7168, 1536]]",
        _BF16,
        "nvjet_tst_128x256_64x4_2x1_v_bz_coopA_TNT",
        132,
        7,
        61.3,
    ),
    _Call(
        "attn(F)",
        ("aten::scaled_dot_product_attention", "aten::_flash_attention_forward"),
        "[[1, 128, 4096, 192], [1, 128, 4096, 192], [1, 128, 4096, 128]]",
        _BF16,
        "void flash::flash_fwd_kernel<Flash_fwd_kernel_traits<192, 64, 64, 4, false, false, cutlass::bfloat16_t, "
        "Flash_kernel_traits<192, 64, 64, 4, cutlass::bfloat16_t> >, false, true, false, false, false, true, false, "
        "false>(Flash_fwd_params)",
        2048,
        7,
        240.7,
    ),
    _Call(
        "dispatch(F)",
        ("deep_ep::quantize", "aten::to"),
        "[[4096, 7168]]",
        _BF16,
        "void deep_gemm::per_token_cast_to_fp8<128, false>(__nv_bfloat16 const*, __nv_fp8_e4m3*, float*, "
        "unsigned int, unsigned int)",
        4096,
        20,
        14.2,
    ),
    _Call(
        "dispatch(F)",
        ("deep_ep::dispatch",),
        "[[4096, 7168], [4096, 8]]",
        _BF16,
        f"void deep_ep::internode::dispatch<false, 8, false, 16, 7168, 512>({_POINTERS}, {_POINTERS})",
        20,
        20,
        190.9,
    ),
    _Call(
        "mlp(F)",
        ("deep_gemm::m_grouped_gemm",),
        "[[32768, 7168], [256, 4096, 7168], [32768, 56], [256, 32, 56]]",
        _FP8,
        "void deep_gemm::sm90_fp8_gemm_1d2d_impl<0u, 4096u, 7168u, 256u, 128u, 128u, 128u, 128u, 5u, 2u, 128u, 256u, "
        f"1u, true, 112u, (deep_gemm::GemmType)1>(float*, int*, unsigned int, unsigned int, {_TENSOR_MAPS})",
        112,
        7,
        310.4,
    ),
    _Call("mlp(F)", ("aten::silu", "aten::empty_like"), "[[32768, 2048]]", _BF16, _vectorised("Silu"), 2048, 7, 22.5),
    _Call(
        "combine(F)",
        ("deep_ep::combine",),
        "[[32768, 7168]]",
        _BF16,
        f"void deep_ep::internode::combine<false, 8, __nv_bfloat16, 24, 512>({_POINTERS})",
        20,
        20,
        205.6,
    ),
    _Call("combine(F)", ("aten::add_",), "[[4096, 7168], [4096, 7168], []]", _BF16, _vectorised("Add"), 1024, 7, 8.8),
)


def write_trace(path: Path, size: int, progress: Callable[[int], None] = lambda done: None) -> dict[str, int]:
    """Write a trace of at least `size` bytes; returns events by category."""
    counts: dict[str, int] = {}
    steps = _steps_for(size)
    with path.open("w", encoding="ascii") as file:
        file.write(_HEAD)
        written = 0
        for part in (_host_events, _device_events):
            for step in range(steps):
                events = list(part(step))
                for category, _ in events:
                    counts[category] = counts.get(category, 0) + 1
                text = "".join(event for _, event in events)
                written += len(text)
                file.write(text)
                progress(written)
        file.write(_TAIL)
    return counts


_HEAD: Final = f"""
{{
  "schemaVersion": 1,
  "deviceProperties": [
    {{
      "id": 0, "name": "NVIDIA H800", "totalGlobalMem": 85017231360,
      "computeMajor": 9, "computeMinor": 0,
      "maxThreadsPerBlock": 1024, "maxThreadsPerMultiprocessor": 2048,
      "regsPerBlock": 65536, "warpSize": 32,
      "sharedMemPerBlock": 49152, "numSms": 132
    }}
  ],
  "distributedInfo": {{"backend": "nccl", "rank": 0, "world_size": 64, "pg_count": 1, "nccl_version": "2.28.9"}},
  "record_shapes": 1, "with_stack": 1,
  "displayTimeUnit": "ms",
  "baseTimeNanoseconds": {BASE_NS},
  "traceEvents": ["""
_TAIL: Final = """
  {
    "name": "Record Window End", "ph": "i", "s": "g",
    "pid": "", "tid": "", "ts": 7721337000000.000
  }
  ],
  "traceName": "/tmp/rank0.pt.trace.json"
}
"""


def _steps_for(size: int) -> int:
    one = sum(len(event) for part in (_host_events, _device_events) for _, event in part(0))
    return max(1, -(-size // one))


def _complete(category: str, name: str, pid: int, tid: int, start: int, lasts: int, args: str) -> tuple[str, str]:
    return category, (
        f'\n  {{\n    "ph": "X", "cat": "{category}", "name": "{name}", "pid": {pid}, "tid": {tid},\n'
        f'    "ts": {start // 1000}.{start % 1000:03d}, "dur": {lasts // 1000}.{lasts % 1000:03d},\n'
        f'    "args": {{\n      {args}\n    }}\n  }},'
    )


def _arrow(end: bool, number: int, pid: int, tid: int, start: int) -> tuple[str, str]:
    return "ac2g", (
        f'\n  {{\n    "ph": "{"f" if end else "s"}", "id": {number}, "pid": {pid}, "tid": {tid}, '
        f'"ts": {start // 1000}.{start % 1000:03d},\n    "cat": "ac2g", "name": "ac2g"{", " if end else ""}'
        f"{chr(34) + 'bp' + chr(34) + ': ' + chr(34) + 'e' + chr(34) if end else ''}\n  }},"
    )


@dataclass(frozen=True, slots=True)
class _Launch:
    number: int
    layer: int
    call: _Call
    tid: int
    host: int
    """ns"""
    device: int
    lasts: int


def _launches(step: int) -> Iterator[_Launch]:
    """Every call of a step, forward and backward, with its times on host and device, ns."""
    draw = np.random.default_rng(step)
    host = 7_721_328_752_000_000 + step * 60_000_000
    free = {7: host + 200_000, 20: host + 250_000}
    number = 1_000_000 + step * LAYERS * len(_LAYER) * 2
    for backward in (False, True):
        for layer in range(LAYERS):
            for call in _LAYER:
                host += int(draw.integers(18_000, 45_000))
                lasts = int(call.lasts * 1000 * draw.uniform(0.9, 1.2))
                start = max(host + 9_000, free[call.stream])
                free[call.stream] = start + lasts
                number += 1
                yield _Launch(number, layer, call, BACKWARD_TID if backward else PID, host, start, lasts)


def _host_events(step: int) -> Iterator[tuple[str, str]]:
    first = 7_721_328_752_000_000 + step * 60_000_000
    yield _complete("user_annotation", f"ProfilerStep#{step}", PID, PID, first, 59_000_000, f'"External id": {step}')
    for one in _launches(step):
        call, begin = one.call, one.host - 12_000
        phase = call.phase if one.tid == PID else call.phase.replace("(F)", "(B)")
        yield _complete("user_annotation", phase, PID, one.tid, begin - 3_000, 17_500, f'"External id": {one.number}')
        for depth, frame in enumerate(FRAMES):
            name = frame.format(layer=one.layer, line=100 + one.layer)
            own = one.number * 8 + depth
            ids = f'"Python parent id": {own - 1}, "Python id": {own}, "Ev Idx": {depth}'
            yield _complete(
                "python_function", name, PID, one.tid, begin - 2_500 + depth * 300, 16_000 - depth * 700, ids
            )
        for depth, name in enumerate(call.operators):
            args = (
                f'"External id": {one.number}, "Record function id": 0, "Concrete Inputs": ["", "", "", ""], '
                f'"Input type": [{call.types}], "Input Strides": [[7168, 1], [1, 7168]], "Input Dims": {call.dims}, '
                f'"Sequence number": {one.number}, "Fwd thread id": 0, "Ev Idx": {one.number + depth}'
            )
            yield _complete("cpu_op", name, PID, one.tid, begin + depth * 900, 13_500 - depth * 1_900, args)


def _device_events(step: int) -> Iterator[tuple[str, str]]:
    for one in _launches(step):
        call, number = one.call, one.number
        ids = f'"External id": {number}, "cbid": {{cbid}}, "correlation": {{number}}'
        query = ids.format(cbid=152, number=number + 500_000_000)
        yield _complete("cuda_runtime", "cudaStreamIsCapturing", PID, one.tid, one.host - 2_000, 310, query)
        launch = ids.format(cbid=211, number=number)
        yield _complete("cuda_runtime", "cudaLaunchKernel", PID, one.tid, one.host, 4_100, launch)
        yield _arrow(False, number, PID, one.tid, one.host)
        args = (
            f'"External id": {number}, "queued": 0, "device": 0, "context": 1,\n      "stream": {call.stream}, '
            f'"correlation": {number},\n      "registers per thread": 168,\n      "shared memory": 199704,\n'
            f'      "blocks per SM": {call.grid / 132:.6f},\n      "warps per SM": {call.grid * 12 / 132:.6f},\n'
            f'      "grid": [{call.grid}, 1, 1],\n      "block": [384, 1, 1],\n      "est. achieved occupancy %": 19'
        )
        yield _complete("kernel", call.kernel, 0, call.stream, one.device, one.lasts, args)
        yield _arrow(True, number, 0, call.stream, one.device)
