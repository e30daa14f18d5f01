"""Measures a GPU's peaks as reached here: FP8 and BF16 products, copies, and how long the smallest copy takes.

`python -m moescope.collectors.calibrate_gpu` prints them as JSON, in a process of its own: whoever reads peaks must not
import torch. Nothing of the device is set: clocks are what they are. Not yet run on a GPU; the tests run the same code
on the CPU.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import torch

CUDA_LIBRARY: Final = "libcuda.so.1"
SIZES: Final = (4096, 8192)
COPY_BYTES: Final = 1 << 30
SMALL_BYTES: Final = 4096
BUDGET_S: Final = 0.8
_SMALL_COPIES: Final = 200


def gpu_peaks() -> tuple[list[dict[str, Any]], str]:
    """What `measure` gives for each kind of GPU here, and why there is nothing. Starts nothing without a driver."""
    try:
        ctypes.CDLL(CUDA_LIBRARY)
    except OSError:
        return [], "no NVIDIA driver on this machine"
    command = [sys.executable, "-m", "moescope.collectors.calibrate_gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        found = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else None
    except (subprocess.TimeoutExpired, ValueError, IndexError) as error:
        return [], f"the GPU could not be measured: {type(error).__name__}"
    if not isinstance(found, list):
        return [], "the GPU could not be measured: " + (done.stderr.strip().splitlines() or ["no message"])[-1]
    return found, "" if found else "this torch has no CUDA, or sees no GPU"


def measure(
    device: torch.device, sizes: tuple[int, ...] = SIZES, copy_bytes: int = COPY_BYTES, budget_s: float = BUDGET_S
) -> dict[str, Any]:
    """Peaks of one device: `fp8`, `bf16` FLOP/s, `copy_bytes_per_s` (read plus written), `small_copy_s`.

    sizes: of square products; copy_bytes: of the large copy. What the device cannot do is null, with the reason.
    """
    import torch

    today = time.strftime("%Y-%m-%d")
    label = {"evidence": "measured", "source": f"moescope calibrate, {today}, torch {torch.__version__}"}
    found: dict[str, Any] = {}
    for name, product in (("fp8", _fp8), ("bf16", _bf16)):
        try:
            rates = [2 * n**3 / _fastest(product(n, device), device, budget_s) for n in sizes]
            found[name] = {"flops_per_s": max(rates)} | label
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            found |= {name: None, f"{name}_reason": str(error).splitlines()[0][:200]}
    source = torch.zeros(copy_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = _fastest(lambda: target.copy_(source), device, budget_s)
    found["copy_bytes_per_s"] = {"value": 2 * copy_bytes / seconds} | label
    small, into = source[:SMALL_BYTES], target[:SMALL_BYTES]
    found["small_copy_s"] = {"value": _median(lambda: into.copy_(small), device), "bytes": SMALL_BYTES} | label
    return found


def _bf16(n: int, device: torch.device) -> Callable[[], object]:
    import torch

    a, b = (torch.randn(n, n, device=device).to(torch.bfloat16) for _ in range(2))
    out = torch.empty(n, n, dtype=torch.bfloat16, device=device)
    return lambda: torch.mm(a, b, out=out)


def _fp8(n: int, device: torch.device) -> Callable[[], object]:
    """One scale a tensor, the second operand column by column, as the tensor cores take it."""
    import torch

    a, b = (torch.randn(n, n, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    one = torch.ones((), device=device)
    return lambda: torch._scaled_mm(a, b.t(), scale_a=one, scale_b=one, out_dtype=torch.bfloat16, use_fast_accum=True)


def _fastest(action: Callable[[], object], device: torch.device, budget_s: float) -> float:
    """Seconds of the fastest of as many runs as the time takes, after one that does not count."""
    _seconds(action, device)
    fastest, until = float("inf"), time.perf_counter() + budget_s
    while time.perf_counter() < until or fastest == float("inf"):
        fastest = min(fastest, _seconds(action, device))
    return fastest


def _seconds(action: Callable[[], object], device: torch.device) -> float:
    """By the device's own clock where it has one: the launch does not count."""
    import torch

    if device.type != "cuda":
        start = time.perf_counter()
        action()
        return time.perf_counter() - start
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    action()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def _median(action: Callable[[], object], device: torch.device) -> float:
    """Seconds from asking for it until it is done, as a program waits for it."""
    import torch

    times = []
    for _ in range(_SMALL_COPIES):
        start = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def main() -> None:
    """Measures the first GPU of each name."""
    import torch

    found: dict[str, dict[str, Any]] = {}
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = torch.cuda.get_device_name(number)
        if name not in found:
            with torch.cuda.device(number):
                found[name] = {"name": name} | measure(torch.device("cuda", number))
    print(json.dumps(list(found.values())))


if __name__ == "__main__":
    main()
