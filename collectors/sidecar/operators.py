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
    starts, ends = operators["start_ns"], operators["start_ns"] + operators["dur_ns"]
    whole = (operators["flags"] & COMPOSITE) == 0
    order = np.lexsort((operators["depth"], -ends, starts))
    reach = np.where(whole[order], ends[order], np.iinfo(np.int64).min)
    before = np.concatenate(([np.iinfo(np.int64).min], np.maximum.accumulate(reach)[:-1]))
    inside = (before >= ends[order]) & (operators["depth"][order] > 0)
    result = np.empty(len(operators), dtype=np.bool_)
    result[order] = whole[order] & ~inside
    return result


def whole_trees(types: npt.NDArray[np.uint8], depths: npt.NDArray[np.uint16], operator: int) -> int:
    """How many records from the start form whole operator trees: children come before their parents."""
    is_operator = types == operator
    roots = np.flatnonzero(is_operator & (depths == 0))
    after = int(roots[-1]) + 1 if len(roots) else 0
    open_children = np.flatnonzero(is_operator[after:])
    return after + int(open_children[0]) if len(open_children) else len(types)
