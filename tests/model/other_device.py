"""A device that is not the CPU, made of the CPU: its tensors hold real values, and refuse to meet a tensor of the CPU.

What runs here bit for bit as on the CPU mixes no devices and makes every tensor where its operands lie, as a GPU needs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""What its tensors say they lie on: the one device without kernels of its own that every build of torch has."""

_aten = torch.ops.aten
_CROSSING = {_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default}
"""What may take a tensor from one device to the other."""


class There(torch.Tensor):
    """here: the same on the CPU"""

    here: torch.Tensor

    @staticmethod
    def __new__(cls, here: torch.Tensor) -> There:
        made: There = torch.Tensor._make_wrapper_subclass(
            cls, here.shape, strides=here.stride(), storage_offset=here.storage_offset(), dtype=here.dtype,
            device=DEVICE, requires_grad=here.requires_grad,
        )  # fmt: skip
        made.here = here
        return made

    def tolist(self) -> Any:
        """Refused by torch to tensors of classes of their own."""
        return self.here.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class OtherDevice(TorchDispatchMode):
    """While it is open, `DEVICE` is the device that this module makes."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
    there = any(isinstance(t, There) for t in operands)
    if there and func not in _CROSSING and any(not isinstance(t, There) and t.dim() for t in operands):
        raise AssertionError(f"{func} is given tensors of two devices")
    asked = kwargs.get("device")
    wanted = there if asked is None else torch.device(asked) == DEVICE
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    result = func(*tree_map(_here, args), **tree_map(_here, kwargs))
    if not wanted:
        return result
    made = tree_map(lambda t: There(t) if isinstance(t, torch.Tensor) else t, result)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value
