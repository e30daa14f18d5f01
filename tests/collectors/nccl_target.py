"""A program that makes NCCL's calls on the stand-in for libcupti; what they did is told on stdout, as JSON.

The methods of `ProcessGroup` that launch are stood in for as well, and wrapped as the agent wraps the real ones: what
runs between a call and its kernel in the recording is moescope's own.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import time
from types import SimpleNamespace
from typing import Any

from device_target import COPY_ASYNC, DRIVER, GEMM, LAUNCH, RUNTIME, gpu

LAUNCH_EX = 652
SEND_RECEIVE = b"ncclDevKernel_SendRecv(ncclDevKernelArgsStorage<4096ul>)"
US = 1000


class Tensor:
    """As much of a tensor on a GPU as a collective is told by."""

    is_cuda = True

    def __init__(self, rows: int, row_bytes: int, dtype: Any) -> None:
        self.shape, self.nbytes, self.dtype = (rows, row_bytes), rows * row_bytes, dtype


class Group:
    group_name = "7"
    group_desc = "internode"


class OnGpu:
    device = SimpleNamespace(type="cuda")


class Future:
    def add_done_callback(self, callback: Any) -> None:
        callback(self)


class Work:
    """What NCCL gives back: its future is done as soon as the kernel is in the queue."""

    def get_future(self) -> Future:
        return Future()


def main() -> None:
    import torch
    import torch.distributed as dist
    from torch.autograd.profiler import profile
    from torch.profiler import record_function

    told: dict[str, Any] = {}
    now = time.monotonic_ns()

    def kernel(start_us: int, dur_us: int, name: bytes = SEND_RECEIVE) -> None:
        launch = gpu.stand_in_call(DRIVER, LAUNCH_EX)
        gpu.stand_in_kernel(name, launch, 0, 13, now + start_us * US, now + (start_us + dur_us) * US, 0)

    def launches(*kernels: tuple[int, int]) -> Any:
        def method(group: Group, *args: Any, opts: Any = None) -> Work:
            gpu.stand_in_copy(8, gpu.stand_in_call(RUNTIME, COPY_ASYNC), 0, 13, now, now + US, 64)
            for start_us, dur_us in kernels:
                kernel(start_us, dur_us)
            return Work()

        return method

    def unfinished(group: Group, *args: Any) -> Work:
        gpu.stand_in_kernel(SEND_RECEIVE, gpu.stand_in_call(DRIVER, LAUNCH_EX), 0, 13, now, 0, 0)
        return Work()

    def raises(group: Group, *args: Any) -> Work:
        raise ValueError("not so")

    def nothing(group: Group, *args: Any) -> Work | None:
        return None

    dist.get_process_group_ranks = lambda group: [0, 1]  # type: ignore[assignment]
    dist.get_group_rank = lambda group, rank: rank  # type: ignore[assignment]
    dist.get_rank = lambda group=None: 0  # type: ignore[assignment]
    dist.get_world_size = lambda group=None: 2  # type: ignore[assignment]
    backend = os.environ.get("BACKEND", "nccl")
    dist.get_backend = lambda group=None: backend  # type: ignore[assignment, return-value]
    dist.get_backend_config = lambda group=None: "cpu:gloo,cuda:nccl"  # type: ignore[assignment]
    (calls,) = (one for one in gc.get_objects() if type(one).__name__ == "Calls" and hasattr(one, "wrap"))
    comm = __import__(type(calls).__module__, fromlist=["METHODS"])
    methods, ranges = comm.METHODS, comm.RANGES

    def wrapped(method: str, original: Any) -> Any:
        op, bytes_of = methods[method]
        return calls.wrap(original, op, bytes_of, f"gloo:{op}".encode() if op in ranges else b"", sure=True)

    ctypes.CDLL(os.environ["CUDA_INJECTION64_PATH"]).InitializeInjection()
    group, fp8 = Group(), torch.float8_e4m3fn
    half = Tensor(6, 7168, fp8), Tensor(10, 7168, fp8), [4, 6], [2, 4]
    start, end = calls.wrap_start(nothing), calls.wrap_end(launches((500, 50)))
    with record_function("dispatch(F)"):
        wrapped("alltoall_base", launches((100, 40)))(group, *half)
        kernel(150, 10, GEMM)
    wrapped("alltoall_base", launches((200, 30), (240, 30)))(group, *half)
    gpu.stand_in_kernel(GEMM, gpu.stand_in_call(RUNTIME, LAUNCH), 0, 7, now + 300 * US, now + 310 * US, 0)
    try:
        wrapped("allreduce", raises)(group, [Tensor(1, 4, torch.float32)])
    except ValueError:
        told["raised"] = True
    with record_function("pipeline"):
        start(group, "cuda:0")
        wrapped("send", nothing)(group, [Tensor(1, 4096, torch.bfloat16)], 1, 0)
        try:
            wrapped("_allgather_base", raises)(group, Tensor(2, 4, torch.float32), Tensor(1, 4, torch.float32))
        except ValueError:
            told["raised_together"] = True
        wrapped("recv", nothing)(group, [Tensor(1, 2048, torch.bfloat16)], 1, 0)
        end(group, "cuda:0")
    wrapped("barrier", launches((600, 5)))(group, opts=OnGpu())
    with profile():
        wrapped("alltoall_base", launches((700, 40)))(group, *half)
    wrapped("broadcast", unfinished)(group, [Tensor(1, 512, torch.float32)])
    told["now"] = now
    print(json.dumps(told))


if __name__ == "__main__":
    main()
