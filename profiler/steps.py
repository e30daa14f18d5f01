"""How long a step takes: one definition for the summary, the dashboard and the findings.

A step takes what its median rank takes, and the median step is the median of these; of two in the middle, the lower.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Literal, TypeAlias

import numpy as np

from moescope.profiler.live_columns import Columns, Names
from moescope.profiler.live_rows import chosen, groups

Noun: TypeAlias = Literal["step", "token"]


def noun_of(stage: str) -> Noun:
    """What one step of a stage is called: decoding makes one token of every sequence in each."""
    return "token" if stage == "decode" else "step"


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of a window.

    durations_ns: [steps] what each takes, the oldest first; stages: the stages that they belong to, the oldest first
    """

    durations_ns: tuple[int, ...] = ()
    stages: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        """The stage of all of them; empty where there is none or more than one."""
        return self.stages[0] if len(self.stages) == 1 else ""

    @property
    def alike(self) -> bool:
        """Whether there are steps, all of one stage: a mean or median of a training step and a token tells nothing."""
        return len(self.stages) == 1

    def why_not(self) -> str:
        """Why there is no typical step."""
        if len(self.stages) > 1:
            *others, last = (stage or "unnamed" for stage in self.stages)
            return f"steps of {', '.join(others)} and {last} are not alike: choose a time with one stage"
        return "no step is known"


def quantile_step(durations_ns: Sequence[int], share: float = 0.5) -> int | None:
    """The shortest duration that at least `share` of the steps do not exceed; None without steps."""
    if not durations_ns:
        return None
    ordered = sorted(durations_ns)
    return ordered[max(ceil(len(ordered) * share) - 1, 0)]


def steps_in(steps: Columns, names: Names, ranks: Sequence[int] | None, window: tuple[int, int]) -> Steps:
    """The steps that end in the window, of these ranks, or of all where it is None.

    steps: the table `steps`
    """
    ends = steps["start_ns"] + steps["dur_ns"]
    pick = chosen(steps["rank"], ranks) & (ends > window[0]) & (ends <= window[1]) & (steps["dur_ns"] >= 0)
    if not pick.any():
        return Steps()
    durations, stages, ends = steps["dur_ns"][pick], steps["stage"][pick], ends[pick]
    number, first = groups(stages, steps["step"][pick])
    order = np.lexsort((durations, number))
    edges = np.flatnonzero(np.diff(number[order], prepend=-1))
    counts = np.diff(np.append(edges, len(number)))
    median_rank = durations[order][edges + (counts - 1) // 2]
    last = np.zeros(len(edges), np.int64)
    np.maximum.at(last, number, ends)
    by_time = np.argsort(last, kind="stable")
    return Steps(
        durations_ns=tuple(int(value) for value in median_rank[by_time]),
        stages=tuple(dict.fromkeys(names.text(int(stages[first[at]])) for at in by_time)),
    )
