"""Streams of a device, on the CPU: what is ordered before what, and every read, write and reuse of memory held to it.

Operations run at once, as they are given; whether a GPU may run them so is told by vector clocks. A block of memory is
free when its last tensor is gone, and the next allocation on the stream that it was allocated on may be given it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._pytree import tree_leaves

from tests.model.other_device import Crossing

_aten = torch.ops.aten
Clock = dict[str, int]
"""How far each stream has come, as one of them knows, or the host."""
UNREAD = -(10**9)
"""What lies in memory of the host until a copy that was not waited for has come."""


class Race(AssertionError):
    """Two streams use the same memory, in an order that nothing gives."""


def _merge(into: Clock, other: Clock) -> None:
    for stream, at in other.items():
        into[stream] = max(into.get(stream, 0), at)


@dataclass
class _Block:
    """Memory that a stream has allocated; accesses: the last of each stream, and whether it wrote"""

    owner: str
    alive: StorageWeakRef
    written: tuple[str, int]
    reads: Clock = field(default_factory=dict)


class Streams:
    """What `lane.Aside` takes in place of torch.cuda, and a `Watcher` of a device's operations.

    beside: operations of the main stream that another's last need not have come before
    """

    def __init__(self) -> None:
        self._clocks: dict[str, Clock] = {"main": {}}
        self._current = ["main"]
        self._host: Clock = {}
        self._blocks: dict[int, _Block] = {}
        self._shared: set[int] = set()
        """Those that more than one stream has used."""
        self._many = 1000
        self._free: list[_Block] = []
        self._coming: list[tuple[torch.Tensor, torch.Tensor, Clock]] = []
        self.beside = 0
        runtime = self

        class Stream:
            def __init__(self, device: Any = None, priority: int = 0, name: str | None = None) -> None:
                self.name = name or f"aside {len(runtime._clocks)}"
                runtime._clocks.setdefault(self.name, {})

            def wait_stream(self, other: Stream) -> None:
                _merge(runtime._clocks[self.name], runtime._clocks[other.name])

            def wait_event(self, event: Event) -> None:
                _merge(runtime._clocks[self.name], event.clock)

        class Event:
            clock: Clock

            def record(self, stream: Stream) -> None:
                self.clock = dict(runtime._clocks[stream.name])

            def query(self) -> bool:
                return True

            def synchronize(self) -> None:
                runtime._waited(self.clock)

        self.Stream, self.Event = Stream, Event

    def current_stream(self, device: Any = None) -> Any:
        return self.Stream(name=self._current[-1])

    @contextmanager
    def stream(self, stream: Any) -> Iterator[None]:
        self._current.append(stream.name)
        try:
            yield
        finally:
            self._current.pop()

    def before(self, func: Any, args: Any, kwargs: Any, crossing: Crossing) -> None:
        """Blocks whose last tensor is gone are free from now on; those of one stream alone are so in any order."""
        gone = [key for key in self._shared if self._blocks[key].alive.expired()]
        self._shared.difference_update(gone)
        self._free += [self._blocks.pop(key) for key in gone]
        if len(self._blocks) > self._many:
            self._blocks = {k: b for k, b in self._blocks.items() if k in self._shared or not b.alive.expired()}
            self._many = 2 * len(self._blocks) + 1000

    def read(self, tensor: torch.Tensor) -> None:
        """A blocking copy to the host: of what the current stream has done."""
        self._access(tensor, self._step(), "tolist", write=False)
        self._waited(self._clocks[self._current[-1]])

    def after(self, func: Any, args: Any, kwargs: Any, result: Any, crossing: Crossing) -> None:
        self.before(func, args, kwargs, crossing)
        at = self._step()
        name = self._current[-1]
        if name == "main":
            self.beside += self.ahead(name)
        waits = crossing is not None and not (kwargs.get("non_blocking") or args[2:] == (True,))
        pinned = crossing == "to host" and func is _aten.copy_.default and not waits
        written = [
            t
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
            for t in tree_leaves(value)
            if isinstance(t, torch.Tensor)
        ]
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        for t in operands:
            if (pinned and t is args[0]) or (crossing == "to device" and func is _aten._to_copy.default):
                continue  # the host's own
            self._access(t, at, str(func), write=any(t is w for w in written))
        if pinned:
            self._coming.append((args[0], args[0].clone(), dict(self._clocks[name])))
            args[0].fill_(UNREAD)
            return
        if waits:
            self._waited(self._clocks[name])
        given = {t.untyped_storage()._cdata for t in operands}
        for t in tree_leaves(result):
            if crossing != "to host" and isinstance(t, torch.Tensor) and t.untyped_storage()._cdata not in given:
                self._allocated(t, at)

    def ahead(self, name: str) -> bool:
        """Whether another stream has been given something that this one need not come after."""
        return any(self._clocks[name].get(other, 0) < clock.get(other, 0) for other, clock in self._clocks.items())

    def _step(self) -> int:
        """One more operation on the current stream, which the host gives after all that it has waited for."""
        name = self._current[-1]
        clock = self._clocks[name]
        _merge(clock, self._host)
        clock[name] = clock.get(name, 0) + 1
        return clock[name]

    def _waited(self, clock: Clock) -> None:
        _merge(self._host, clock)
        for there, values, when in list(self._coming):
            if self._covers(self._host, when):
                there.copy_(values)
        self._coming = [coming for coming in self._coming if not self._covers(self._host, coming[2])]

    def _covers(self, clock: Clock, other: Clock) -> bool:
        return all(clock.get(stream, 0) >= at for stream, at in other.items())

    def _access(self, t: torch.Tensor, at: int, what: str, *, write: bool) -> None:
        block = self._blocks.get(t.untyped_storage()._cdata)
        if block is None:
            if t.dim():  # from before anybody watched: written by the main stream, which all have waited for since
                self._allocated(t, 0, owner="main")
            return
        name = self._current[-1]
        clock = self._clocks[name]
        if name != block.owner:
            self._shared.add(t.untyped_storage()._cdata)
        before: Clock = {block.written[0]: block.written[1]}
        if write:
            _merge(before, block.reads)
        if not self._covers(clock, before):
            raise Race(f"{what} on {name} at {at} {'writes' if write else 'reads'} what is {before}: it knows {clock}")
        if write:
            block.written, block.reads = (name, at), {}
        else:
            block.reads[name] = at

    def _allocated(self, t: torch.Tensor, at: int, owner: str | None = None) -> None:
        name = owner or self._current[-1]
        clock = self._clocks[name]
        for block in [block for block in self._free if block.owner == name]:
            used: Clock = dict(block.reads)
            _merge(used, {block.written[0]: block.written[1]})
            if not self._covers(clock, used):
                raise Race(f"memory that {name} allocates at {at} may still be in use: {used}, it knows {clock}")
        self._free = [block for block in self._free if block.owner != name]
        storage = t.untyped_storage()
        self._blocks[storage._cdata] = _Block(name, StorageWeakRef(storage), (name, at))
