"""Where a rank computes: on the CPU, or on a GPU of its own."""

from __future__ import annotations

import os
from typing import Literal

import torch

from moescope.instrumented_model.config import ConfigError

DeviceName = Literal["cpu", "cuda"]
DEVICES: tuple[DeviceName, ...] = ("cpu", "cuda")

PROCESS_GROUPS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Backend of `torch.distributed` for tensors of each device; what a rank keeps on the CPU goes over gloo on both."""


def brought(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on `device`, without the host waiting for what the device is at, as `to` alone would."""
    return (values.pin_memory() if device.type == "cuda" else values).to(device, non_blocking=True)


def ended(device: torch.device) -> None:
    """Returns when the device has done what the current stream was given."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def device_of(name: DeviceName) -> torch.device:
    """This rank's device, made the current one: the GPU whose number is torchrun's LOCAL_RANK.

    Raises ConfigError where there is none for it. The path over a GPU is not yet run on one.
    """
    if name == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        reason = "this torch is built without CUDA" if torch.version.cuda is None else "torch finds no GPU"
        raise ConfigError(f"--device cuda: {reason}: use --device cpu")
    index, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if index >= count:
        raise ConfigError(
            f"--device cuda: local rank {index} has no GPU of its own, {count} visible: start {count} ranks a host"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)
