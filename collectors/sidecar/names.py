"""The names of one process's ring, with what is asked of each again and again worked out once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from moescope.collectors.agent.packed import COMM, PREFIX

if TYPE_CHECKING:
    import pyarrow as pa

OTHER, COMM_PACKED, COMM_JSON, COMM_FAILED, ROW_PACKED, ISSUES, DEVICE, ANYONES, TOGETHER, NCCL = range(10)
"""What a name is: the kind of a blob, or an operator of c10d that only issues calls, which stand in `collectives`.

ANYONES: blobs that any process which imports torch may leave, at work or not; NCCL: a kernel of NCCL's
"""

_DEVICE: Final = "=device 2"
"""Kind of the blobs that hold a GPU's records (collectors/native/device.h); the number changes with their layout."""

_BLOBS: Final = {
    "comm": COMM_JSON,
    "comm_failed": COMM_FAILED,
    "comm_together": TOGETHER,
    "log": ANYONES,
    "group": ANYONES,
}
_DIRECTION: Final = re.compile(r"\(([FBW])\)$")


class Names:
    """Grows with the ring's table; `names[number]` is the text."""

    def __init__(self, read: Callable[[], Sequence[str]]) -> None:
        """read: all names so far, by number"""
        self._read = read
        self._texts: list[str] = []
        self.kinds: npt.NDArray[np.uint8] = np.empty(0, np.uint8)
        self._arrow: pa.Array | None = None
        self._directions: pa.Array | None = None

    def update(self) -> None:
        """Takes in what is new."""
        texts = self._read()
        if len(texts) == len(self._texts):
            return
        new = [_kind(text) for text in texts[len(self._texts) :]]
        self.kinds = np.concatenate((self.kinds, np.array(new, np.uint8)))
        self._texts = list(texts)
        self._arrow = self._directions = None

    def __getitem__(self, number: int) -> str:
        return self._texts[number]

    def take(self, numbers: npt.NDArray[Any]) -> pa.Array:
        """The texts of `numbers`; null for 0."""
        import pyarrow as pa

        if self._arrow is None:
            self._arrow = pa.array([None, *self._texts[1:]], pa.string())
        return self._arrow.take(pa.array(numbers.astype(np.int64)))

    def directions(self, numbers: npt.NDArray[Any]) -> pa.Array:
        """`F`, `B` or `W` of phases' names, `dispatch(F)`; null where they tell none."""
        import pyarrow as pa

        if self._directions is None:
            found = [_DIRECTION.search(text) for text in self._texts]
            self._directions = pa.array([match[1] if match else None for match in found], pa.string())
        return self._directions.take(pa.array(numbers.astype(np.int64)))


def _kind(text: str) -> int:
    if text == _DEVICE:
        return DEVICE
    if text.startswith(COMM):
        return COMM_PACKED
    if text.startswith(PREFIX):
        return ROW_PACKED
    if text.startswith("c10d::"):
        return ISSUES
    if text.startswith("nccl"):
        return NCCL
    return _BLOBS.get(text, OTHER)
