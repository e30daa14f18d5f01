"""A program whose GPU is the stand-in for libcupti (cupti_stand_in.c): what it does there is told on stdout, as JSON.

Run with STAND_IN and MOESCOPE_CUPTI naming the stand-in. It does what the CUDA driver would do: it loads what
CUDA_INJECTION64_PATH names.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import threading
import time
from typing import Any

RUNTIME, DRIVER = 5, 4
LAUNCH, GRAPH_LAUNCH, COPY_ASYNC, SET_ASYNC, STREAM_SYNCHRONIZE, DRIVER_LAUNCH = 211, 311, 41, 51, 131, 307
GEMM = b"_ZN2at6native11gemm_kernelIfLi128EEEvPKT_S4_PS2_i"
REDUCE = b"ncclDevKernel_AllReduce_Sum_f32_RING_LL(ncclDevKernelArgsStorage<4096ul>)"
LONG = b"void cutlass::device_kernel<" + b"cute::tuple<int, " * 60 + b">(Params)"

gpu = ctypes.CDLL(os.environ["STAND_IN"])
i64, u64, u32 = ctypes.c_int64, ctypes.c_uint64, ctypes.c_uint32
gpu.stand_in_kernel.argtypes = (ctypes.c_char_p, u32, u32, u32, i64, i64, u64)
gpu.stand_in_copy.argtypes = (u32, u32, u32, u32, i64, i64, u64)
gpu.stand_in_set.argtypes = (u32, u32, u32, i64, i64, u64)
gpu.stand_in_wait.argtypes = (u32, u32, u32, u32, i64, i64)
gpu.stand_in_drop.argtypes = (ctypes.c_size_t,)
gpu.stand_in_counter.argtypes = (ctypes.c_double,)

told: list[dict[str, Any]] = []


def kernel(
    name: bytes, phase: str | None, start: int, dur: int, *, stream: int = 7, correlation: int = 0, node: int = 0
) -> None:
    """A kernel, launched here and now unless `correlation` says where."""
    launch = correlation or gpu.stand_in_call(RUNTIME, LAUNCH)
    gpu.stand_in_kernel(name, launch, 0, stream, start, start + dur, node)
    told.append(
        {
            "name": name.decode(),
            "phase": phase,
            "start": start,
            "dur": dur,
            "stream": str(stream),
            "correlation": launch,
        }
        | {"node": node or None}
    )


def main() -> None:
    if len(sys.argv) > 1:
        gpu.stand_in_counter(float(sys.argv[1]))
    import torch
    from torch.autograd.profiler import profile
    from torch.profiler import record_function

    ctypes.CDLL(os.environ["CUDA_INJECTION64_PATH"]).InitializeInjection()
    us = 1000
    t = time.monotonic_ns()
    with record_function("attn(F)"):
        kernel(GEMM, "attn(F)", t, 400 * us)
        with record_function("dispatch(F)"):
            kernel(REDUCE, "dispatch(F)", t + 300 * us, 300 * us, stream=13)
        kernel(b"softmax_kernel", "attn(F)", t + 400 * us, 50 * us)
        wait = gpu.stand_in_call(RUNTIME, STREAM_SYNCHRONIZE)
        gpu.stand_in_wait(3, wait, 1, 7, t + 20 * us, t + 900 * us)
    kernel(LONG, None, t + 600 * us, 10 * us)
    gpu.stand_in_copy(1, gpu.stand_in_call(RUNTIME, COPY_ASYNC), 0, 7, t + 620 * us, t + 640 * us, 4096)
    gpu.stand_in_copy(10, gpu.stand_in_call(RUNTIME, COPY_ASYNC), 0, 7, t + 640 * us, t + 660 * us, 8192)
    gpu.stand_in_set(gpu.stand_in_call(RUNTIME, SET_ASYNC), 0, 7, t + 660 * us, t + 665 * us, 256)
    with record_function("mlp(F)"):
        graph = gpu.stand_in_call(RUNTIME, GRAPH_LAUNCH)
        for i in range(3):
            start = t + (700 + 20 * i) * us
            kernel(b"triton_mm", "mlp(F)", start, 20 * us, correlation=graph, node=41 + i)

    def other_thread() -> None:
        with record_function("mlp(W)"):
            launch = gpu.stand_in_call(DRIVER, DRIVER_LAUNCH)
            kernel(b"triton_dw", "mlp(W)", t + 800 * us, 30 * us, correlation=launch)

    thread = threading.Thread(target=other_thread)
    thread.start()
    thread.join()
    gpu.stand_in_call(RUNTIME, 10)  # a call that launches nothing
    gpu.stand_in_drop(5)
    with record_function("outer"):
        with profile():
            gpu.stand_in_other_profiler(1)
            gpu.stand_in_kernel(b"not_ours", gpu.stand_in_call(RUNTIME, LAUNCH), 0, 7, t + us, t + 2 * us, 0)
            gpu.stand_in_other_profiler(0)
        now = time.monotonic_ns()
        kernel(b"after", "outer", now, us)
        with record_function("combine(F)"):
            kernel(b"after_inside", "combine(F)", now + us, us)
    gpu.stand_in_kernel(b"unfinished", gpu.stand_in_call(RUNTIME, LAUNCH), 0, 7, now, 0, 0)
    print(json.dumps({"told": told, "taken": gpu.stand_in_taken(), "torch": torch.__version__}))


if __name__ == "__main__":
    main()
