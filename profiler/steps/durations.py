"""How long a step takes: one definition for the summary, the dashboard and the findings.

A step takes what its median rank takes, and the median step is the median of these; of two in the middle, the lower.
Steps of several stages are not alike: figures are of the stage that takes most of the time, and say what is left out.
So it is with the first steps of a run where they compile, tune kernels or fill caches: they are no steps like the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Final

import numpy as np

from moescope.profiler.growing.columns import NULL, Column, Columns, Names
from moescope.profiler.growing.rows import chosen, groups

WARM_UP_TIMES: Final = 3
"""A step among a run's first that takes this many times the median belongs to its warm-up, as do those before it."""
WARM_UP_RARE: Final = 0.9
"""Share of all steps that are shorter: where one in ten takes as long, that is no warm-up, wherever it stands."""
WARM_UP_STEPS: Final = 10
"""How many steps a warm-up may have, and no more than a quarter of the run's."""
WARM_STEPS: Final = 3
"""After so many usual steps in a row it is over: what takes long then is a checkpoint, or a validation."""


@dataclass(frozen=True, slots=True)
class Steps:
    """The steps of the stage that takes most of the time.

    stage: empty where it has no name; durations_ns: [steps] what each takes, the oldest first; span_ns: from the first
    one's start to the last one's end, None without any; latest: the last one's number; others: steps of other stages by
    stage; among: how many of those lie within the span; warm_up_ns: what the run's first steps took where they are left
    out of all of these
    """

    stage: str = ""
    durations_ns: tuple[int, ...] = ()
    span_ns: tuple[int, int] | None = None
    latest: int | None = None
    others: tuple[tuple[str, int], ...] = ()
    among: int = 0
    warm_up_ns: tuple[int, ...] = ()

    @property
    def without(self) -> str:
        """What is said of them where a warm-up is left out."""
        count = len(self.warm_up_ns)
        return "" if not count else " but the first" if count == 1 else f" but the first {count}"

    @property
    def mean_ns(self) -> float | None:
        """The mean step; None without steps."""
        return sum(self.durations_ns) / len(self.durations_ns) if self.durations_ns else None


def quantile_step(durations_ns: Sequence[int], share: float = 0.5) -> int | None:
    """The shortest duration that at least `share` of the steps do not exceed; None without steps."""
    if not durations_ns:
        return None
    ordered = sorted(durations_ns)
    return ordered[max(ceil(len(ordered) * share) - 1, 0)]


def warm_up(durations_ns: Sequence[int]) -> int:
    """How many of a run's first steps are its warm-up; durations_ns: of all its steps, the oldest first"""
    first = min(WARM_UP_STEPS, len(durations_ns) // 4)
    later = quantile_step(durations_ns[first:], WARM_UP_RARE) or 0
    long = max(WARM_UP_TIMES * (quantile_step(durations_ns) or 0), later + 1)
    found = usual = 0
    for at in range(first):
        usual = 0 if durations_ns[at] >= long else usual + 1
        if not usual:
            found = at + 1
        elif usual == WARM_STEPS:
            break
    return found


def steps_in(
    steps: Columns, names: Names, ranks: Sequence[int] | None = None, window: tuple[int, int] | None = None
) -> Steps:
    """The steps that end in the window, of these ranks; None is all. Of a whole run without its warm-up.

    A step of another stage that ends in the window and began before it is what comes before the window, not in it:
    ranks do not begin a stage at the same moment.
    steps: the table `steps`
    """
    ends = steps["start_ns"] + steps["dur_ns"]
    pick = chosen(steps["rank"], ranks)
    if window is not None:
        pick &= (ends > window[0]) & (ends <= window[1])
    stages, numbers, starts, durations = (steps[name][pick] for name in ("stage", "step", "start_ns", "dur_ns"))
    return steps_from(stages, numbers, starts, durations, names.text, NULL if window is None else window[0])


def steps_from(
    stages: Column,
    numbers: Column,
    starts: Column,
    durations: Column,
    text: Callable[[int], str],
    since_ns: int = NULL,
) -> Steps:
    """The steps of these rows, one a step and rank; rows without a duration go on and do not count.

    stages, numbers: [rows] small integers; starts, durations: [rows] ns; text: the name of a stage; since_ns: where the
    time that is looked at begins, and other stages' steps that begin earlier are left out; NULL for a whole run, of
    which the warm-up is
    """
    done = durations >= 0
    if not done.any():
        return Steps()
    stages, numbers, starts, durations = stages[done], numbers[done], starts[done], durations[done]
    step, first = groups(stages, numbers)
    order = np.lexsort((durations, step))
    edges = np.flatnonzero(np.diff(step[order], prepend=-1))
    counts = np.diff(np.append(edges, len(step)))
    takes = durations[order][edges + (counts - 1) // 2]
    ends, begins = np.full(len(edges), NULL, np.int64), np.full(len(edges), np.iinfo(np.int64).max)
    np.maximum.at(ends, step, starts + durations)
    np.minimum.at(begins, step, starts)
    by_time = np.argsort(ends, kind="stable")
    stage_of = stages[first]
    seen = dict.fromkeys(stage_of[by_time].tolist())
    total = {stage: int(takes[stage_of == stage].sum()) for stage in seen}
    main = max(total, key=lambda stage: total[stage])
    own = by_time[stage_of[by_time] == main]
    begin = int(starts[stages == main].min())
    first_ones = takes[own].tolist()
    cold = warm_up(first_ones) if since_ns == NULL else 0
    if cold:
        # Ranks do not end it at the same moment: none of it is in the span.
        begin = max(int(begins[own[cold]]), int(ends[own[cold - 1]]))
        own = own[cold:]
    span = (begin, int(ends[own[-1]]))
    other = (stage_of != main) & (begins >= since_ns)
    latest = int(numbers[first[own[-1]]])
    return Steps(
        stage=text(main),
        durations_ns=tuple(int(value) for value in takes[own]),
        span_ns=span,
        latest=None if latest == NULL else latest,
        others=tuple((text(stage), int(count)) for stage in seen if (count := (other & (stage_of == stage)).sum())),
        among=int((other & (begins >= span[0]) & (ends <= span[1])).sum()),
        warm_up_ns=tuple(first_ones[:cold]),
    )
