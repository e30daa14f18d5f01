"""A device that is not the CPU, made of the CPU: its tensors hold real values, and refuse to meet a tensor of the CPU.

What runs here bit for bit as on the CPU mixes no devices and makes every tensor where its operands lie, as a GPU needs.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
"""What its tensors say they lie on: the one device without kernels of its own that every build of torch has."""

_aten = torch.ops.aten
_CROSSING = {_aten._to_copy.default, _aten.copy_.default, _aten._foreach_copy_.default}
"""What may take a tensor from one device to the other."""


Crossing = Literal["to host", "to device"] | None
"""What an operation brings from one side to the other."""


class Watcher(Protocol):
    """Is told of what is done with tensors there."""

    def before(self, func: Any, args: Any, kwargs: Any, crossing: Crossing) -> None:
        """An operation is about to be given: its operands, as they are."""

    def after(self, func: Any, args: Any, kwargs: Any, result: Any, crossing: Crossing) -> None:
        """It has been done; operands and result on the CPU."""

    def read(self, tensor: torch.Tensor) -> None:
        """The host asks for the values of `tensor`, there."""


_WATCHERS: list[Watcher] = []


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Inside, `watcher` is told."""
    _WATCHERS.append(watcher)
    try:
        yield
    finally:
        _WATCHERS.remove(watcher)


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
        for watcher in _WATCHERS:
            watcher.read(self.here)
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
    crossing = _crossing(func, args, there=there, wanted=wanted)
    for watcher in _WATCHERS if there or wanted else ():
        watcher.before(func, args, kwargs, crossing)
    if asked is not None:
        kwargs = kwargs | {"device": torch.device("cpu")}
    args_here, kwargs_here = tree_map(_here, args), tree_map(_here, kwargs)
    result = func(*args_here, **kwargs_here)
    for watcher in _WATCHERS if there or wanted else ():
        watcher.after(func, args_here, kwargs_here, result, crossing)
    if not wanted:
        return result
    made = tree_map(lambda t: There(t) if isinstance(t, torch.Tensor) else t, result)
    return return_and_correct_aliasing(func, args, kwargs, made) if there else made


def _crossing(func: Any, args: Any, *, there: bool, wanted: bool) -> Crossing:
    """there: whether an operand is there; wanted: whether the result is to be"""
    if func is _aten._local_scalar_dense.default:
        return "to host" if there else None
    if func is _aten._to_copy.default:
        source, target = isinstance(args[0], There), wanted
    elif func in _CROSSING:
        target, source = (isinstance(tree_leaves(side)[0], There) for side in args[:2])
    else:
        return None
    return None if source == target else "to device" if target else "to host"


def _here(value: Any) -> Any:
    return value.here if isinstance(value, There) else value
