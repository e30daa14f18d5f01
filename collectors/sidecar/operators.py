"""Which operators are kernels: the leaves, with what they contain absorbed (see docs/architecture.md)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moescope.collectors.ring_reader import COMPOSITE, Records


def leaves(operators: Records) -> npt.NDArray[np.bool_]:
    """Marks the operators that are kernels, of whole operator trees of one thread.

    A composite operator (those below it cover at least half of it) is not one; an operator below another that is no
    composite is part of that one.
    """
    starts = operators["start_ns"]
    whole = (operators["flags"] & COMPOSITE) == 0
    # Records come when operators end: backwards, parents stand before what they contain. Of those seen so far only
    # an ancestor can have begun before a record does.
    never = np.iinfo(np.int64).max
    reach = np.where(whole, starts, never)[::-1]
    before = np.concatenate(([never], np.minimum.accumulate(reach)[:-1]))[::-1] if len(starts) else reach
    inside = (before <= starts) & (operators["depth"] > 0)
    kernels: npt.NDArray[np.bool_] = whole & ~inside
    return kernels


def whole_trees(types: npt.NDArray[np.uint8], depths: npt.NDArray[np.uint16], operator: int) -> int:
    """How many records from the start form whole operator trees: children come before their parents."""
    is_operator = types == operator
    roots = np.flatnonzero(is_operator & (depths == 0))
    after = int(roots[-1]) + 1 if len(roots) else 0
    open_children = np.flatnonzero(is_operator[after:])
    return after + int(open_children[0]) if len(open_children) else len(types)
