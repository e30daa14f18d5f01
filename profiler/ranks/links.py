"""Groups that transfer more slowly than others like them: a slow link, where nothing else differs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from moescope.profiler.ranks.clocks import Clocks
from moescope.profiler.ranks.waiting import Taken

SLOWER_GROUP: Final = 1.5
_GROUPS_TO_COMPARE: Final = 3


@dataclass(frozen=True, slots=True)
class SlowGroup:
    """A group that takes longer for the same operation and bytes than others of its size: a slow link, if nothing else.

    transfer_ns, usual_ns: its median transfer, and the median over such groups
    """

    op: str
    ranks: tuple[int, ...]
    moved: int
    count: int
    groups: int
    transfer_ns: int
    usual_ns: int


def slow_groups(taken: Sequence[Taken], clocks: Clocks) -> tuple[SlowGroup, ...]:
    """Groups whose transfers of as many bytes take half as long again as in the median group, or more; slowest first.

    Only groups whose ranks lie at the same distances are compared: these are likely to cross the same kinds of links.
    """
    medians: dict[tuple[str, int, tuple[int, ...]], list[tuple[int, int, tuple[int, ...]]]] = {}
    for one in taken:
        for op in dict.fromkeys(one.ops.tolist()):
            for moved in np.unique(one.moved[(one.ops == op) & (one.moved > 0)]).tolist():
                own = one.transfer[(one.ops == op) & (one.moved == moved)]
                key = (op, moved, tuple(np.diff(one.of.ranks).tolist()))
                middle = int(np.sort(own)[(len(own) - 1) // 2])
                medians.setdefault(key, []).append((middle, len(own), one.of.ranks))
    found = []
    for (op, moved, _), held in medians.items():
        usual = sorted(middle for middle, _, _ in held)[(len(held) - 1) // 2]
        for middle, count, ranks in held if len(held) >= _GROUPS_TO_COMPARE else ():
            if middle >= SLOWER_GROUP * usual and middle - usual > clocks.uncertain_ns(ranks):
                found.append(SlowGroup(op, ranks, moved, count, len(held), middle, usual))
    return tuple(sorted(found, key=lambda one: (-(one.transfer_ns - one.usual_ns) * one.count, one.ranks, one.op)))
