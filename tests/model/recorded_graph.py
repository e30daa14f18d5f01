"""What a CUDA graph does, on the CPU: notes every operation on a device's tensors, and does them again in their memory.

As on a GPU, nothing that is captured may ask for a value, wait, or bring a tensor from the host; and what was computed
while capturing is worth nothing until it is replayed: here it is overwritten.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from tests.model.other_device import Crossing, watched

_aten = torch.ops.aten
_ASKING = {
    _aten.nonzero.default, _aten.bincount.default, _aten.is_nonzero.default,
    _aten.masked_select.default, _aten.repeat_interleave.Tensor, _aten._unique2.default, _aten.equal.default,
}  # fmt: skip
"""Operations whose result, or its shape, the host waits for."""
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default}
"""Which wait as well, where an index is a mask."""


class NotCapturable(AssertionError):
    """What a GPU would refuse while it captures."""


class RecordedGraph:
    """`Capture`; operations: how many a replay does"""

    def __init__(self) -> None:
        self.operations = self.replays = self.captures = 0
        self._noted: list[tuple[Any, Any, Any, Any]] = []
        """Of what is captured now: operation, operands, result."""

    def warm_up(self, work: Callable[[], None]) -> None:
        work()

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        noted: list[tuple[Any, Any, Any, Any]] = []
        self._noted, self.captures = noted, self.captures + 1
        with watched(self):
            work()
        self.operations = len(noted)
        for func, args, kwargs, result in noted:
            operands = {t.data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
            for t in tree_leaves(result):
                if isinstance(t, torch.Tensor) and t.data_ptr() not in operands and not func.is_view:
                    t.untyped_storage().fill_(0x7F)
        return lambda: self._replay(noted)

    def _replay(self, noted: list[tuple[Any, Any, Any, Any]]) -> None:
        self.replays += 1
        for func, args, kwargs, result in noted:
            again = func(*args, **kwargs)
            for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                if isinstance(old, torch.Tensor) and old.data_ptr() != new.data_ptr():
                    old.copy_(new)

    def before(self, func: Any, args: Any, kwargs: Any, crossing: Crossing) -> None:
        masks = func in _INDEXING and any(t.dtype in (torch.bool, torch.uint8) for t in args[1] if t is not None)
        if func in _ASKING or masks:
            raise NotCapturable(f"{func} waits for the device")
        if crossing is not None:
            raise NotCapturable(f"{func} copies {crossing}")

    def after(self, func: Any, args: Any, kwargs: Any, result: Any, crossing: Crossing) -> None:
        self._noted.append((func, args, kwargs, result))

    def read(self, tensor: torch.Tensor) -> None:
        raise NotCapturable("tolist() waits for the device")
