"""What the host side of every kernel asks of its tensors, and how many programs it launches."""

from __future__ import annotations

import torch

from moescope.instrumented_model.kernels import interpreted, why_not

TILE = 128
"""N_C of the paper: width of a tile, side of a block, elements between promotions."""
INTERPRETED_SMS = 3
"""SMs that the interpreter has: few, so that every persistent loop takes several turns."""


def tiles(n: int) -> int:
    """Tiles of 128 that cover `n` elements."""
    return -(-n // TILE)


def require(condition: bool, what: str) -> None:
    """Raise ValueError(what) unless `condition`."""
    if not condition:
        raise ValueError(what)


def tensor(name: str, t: torch.Tensor, shape: tuple[int | None, ...], *dtypes: torch.dtype) -> None:
    """Raise ValueError unless `t` has this shape (None: any size), one of these dtypes, and lies where kernels run."""
    fits = t.dim() == len(shape) and all(want is None or want == got for want, got in zip(shape, t.shape, strict=True))
    wanted = ", ".join("*" if size is None else str(size) for size in shape)
    require(fits, f"{name} has shape {list(t.shape)}: give [{wanted}]")
    require(
        t.dtype in dtypes,
        f"{name} is {str(t.dtype).removeprefix('torch.')}: give "
        + " or ".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
    )
    if interpreted():
        require(t.device.type == "cpu", f"{name} lies on {t.device}: the interpreter takes CPU tensors")
    elif t.device.type != "cuda":
        raise ValueError(f"{name} lies on {t.device}: {why_not() or 'move it to the GPU'}")


def rows_contiguous(name: str, t: torch.Tensor) -> None:
    """Raise ValueError unless the last axis of `t`, [..., n], is contiguous, which loads rely on."""
    require(
        t.numel() == 0 or t.stride(-1) == 1, f"the last axis of {name} has stride {t.stride(-1)}: call contiguous()"
    )


def same_device(first: torch.Tensor, *others: torch.Tensor | None) -> None:
    """Raise ValueError unless all tensors lie on one device."""
    devices = {first.device, *(t.device for t in others if t is not None)}
    require(len(devices) == 1, f"tensors lie on {', '.join(sorted(map(str, devices)))}: give all on one device")


def sm_count(device: torch.device) -> int:
    """Streaming multiprocessors of the device."""
    if interpreted():
        return INTERPRETED_SMS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def programs(work: int, sms: int | None, device: torch.device, per_sm: int = 1) -> int:
    """Programs to launch for `work` pieces on at most `sms` SMs, each with `per_sm` of them.

    sms: None for all of the device
    raises: ValueError where `sms` is below 1 or above what the device has
    """
    there = sm_count(device)
    if sms is not None and not interpreted():
        require(1 <= sms <= there, f"sms is {sms}: give 1 to {there}, what {device} has")
    require(sms is None or sms >= 1, f"sms is {sms}: give at least 1")
    return max(1, min(work, (there if sms is None else sms) * per_sm))
