"""Groups of torch.distributed as this process sees them."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

HOPS = frozenset({"internode", "intranode"})
"""What a group may be described as (`new_group(group_desc=)`), so that its transfers are told by hop."""


class Group:
    """A group as this process sees it.

    me: its own place among the group's `n` ranks; gloo, nccl: whether they serve its tensors of the host and of GPUs;
    row: as it is told; mark: its number in the ring; same: gives torch's group, which another may follow under its name
    kinds: `comm_kind` by dtype; together: calls that are to be launched as one, None outside of such
    """

    __slots__ = ("gloo", "kinds", "mark", "me", "n", "name", "nccl", "row", "same", "together")

    def __init__(self, row: dict[str, Any], me: int, n: int, gloo: bool, nccl: bool, mark: int, group: Any) -> None:
        """group: torch's"""
        self.row, self.me, self.n, self.gloo, self.nccl, self.mark = row, me, n, gloo, nccl, mark
        self.now(group)
        self.name: str = row["name"]
        self.kinds: dict[Any, bytes] = {}
        self.together: list[int] | None = None

    def now(self, group: Any) -> None:
        """It is torch's `group` that goes by this name now; it is not kept alive."""
        try:
            self.same: Callable[[], Any] = weakref.ref(group)
        except TypeError:
            self.same = lambda: group


def told_of(distributed: Any, group: Any, name: str, ranks: list[int]) -> tuple[dict[str, Any], bool, bool]:
    """A group as it is told, and whether gloo serves its tensors of the host and NCCL those of GPUs."""
    backend, gloo, nccl = backends(distributed, group)
    # A group that was made for one hop of an exchange carries the hop's name as its description.
    hop = group.group_desc if group.group_desc in HOPS else "direct"
    return {"name": name, "ranks": ranks, "backend": backend, "hop": hop}, gloo, nccl


def backends(distributed: Any, group: Any) -> tuple[str, bool, bool]:
    """The group's backend as it is told, and whether gloo serves tensors of the host and NCCL those of GPUs.

    A group that was made without a backend says `undefined` of itself: it has one for each kind of device.
    """
    backend = str(distributed.get_backend(group))
    if backend in ("gloo", "nccl"):
        return backend, backend == "gloo", backend == "nccl"
    try:
        config = str(distributed.get_backend_config(group))
    except Exception:  # noqa: BLE001  fail open: a backend that has none is known by its name alone
        config = ""
    pairs = [pair.partition(":") for pair in config.split(",")]
    found = {device: name for device, _, name in pairs if name}
    if not found:
        return backend, False, False
    names = set(found.values())
    text = names.pop() if len(names) == 1 else ",".join(f"{device}:{name}" for device, name in sorted(found.items()))
    return text, found.get("cpu") == "gloo", found.get("cuda") == "nccl"
