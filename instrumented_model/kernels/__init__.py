"""Hopper kernels in Triton: quantisation, FP8 products, exchange, and records made inside them.

Importing this package imports neither triton nor torch; the modules in it import both.
"""

from __future__ import annotations

import importlib.util
import os
import sys


def interpreted() -> bool:
    """Whether Triton's interpreter runs the kernels, on CPU tensors: `TRITON_INTERPRET=1` before triton is imported."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def why_not(device: int = 0) -> str | None:
    """Why the kernels cannot run here; None where they can.

    device: index of the CUDA device that they would run on
    """
    if sys.platform != "linux":
        return f"triton has no build for {sys.platform}"
    for package in ("torch", "triton"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed: pip install 'moescope[model]'"
    if interpreted():
        return None
    import torch

    if not torch.cuda.is_available():
        return "no CUDA device is visible"
    if device >= torch.cuda.device_count():
        return f"there is no CUDA device {device}, only {torch.cuda.device_count()}"
    capability = torch.cuda.get_device_capability(device)
    if capability != (9, 0):
        name = torch.cuda.get_device_name(device)
        return f"{name} has compute capability {capability[0]}.{capability[1]}; the kernels are for 9.0 (Hopper)"
    return None
