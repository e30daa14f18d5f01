"""Overlap of parts of a device's kernels: by phase, layer, micro-batch, step, operator, or any other label.

A part's times are lengths of unions: kernels that run at once, even on one stream, count once. Its communication is
overlapped where any kernel of the device computes, whichever part that belongs to, and exposed where none does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.overlap.intervals import Intervals, Times, covered_within, union_by_group
from moescope.profiler.overlap.placement import Placement
from moescope.profiler.overlap.sweep import DeviceKernels, Sweep, counted_ns

By: TypeAlias = Literal["phase", "layer", "micro_batch", "step", "stage", "direction", "operator", "kind"]
BY: Final[tuple[By, ...]] = ("phase", "layer", "micro_batch", "step", "stage", "direction", "operator", "kind")
Key: TypeAlias = str | int | tuple[str, ...]
NOWHERE: Final = -1
"""The label of kernels that belong to no part."""

_KINDS: Final[dict[str, tuple[str, ...]]] = {
    "compute": ("compute", "fused"),
    "comm": ("comm", "fused"),
    "memory": ("memory",),
    "unknown": ("unknown",),
}


@dataclass(frozen=True, slots=True)
class OverlapPart:
    """One part of a device's kernels; times ns, inside the counted time.

    key: the phase's name, the layer's number, …; kernels: those that count; total_ns: sum of their durations, all else
    lengths of unions
    """

    key: Key
    kernels: int
    total_ns: int
    busy_ns: int
    compute_ns: int
    comm_ns: int
    memory_ns: int
    unknown_ns: int
    overlapped_ns: int
    exposed_ns: int


def overlap_by(kernels: DeviceKernels, swept: Sweep, by: By, places: Placement) -> list[OverlapPart]:
    """The parts of a device in the order in which they first run; kernels that belong to none are in no part.

    places: where its kernels belong, from `placement.place`
    """
    keys, labels = labels_of(kernels, by, places)
    return overlap_of_labels(kernels, swept, keys, labels)


def labels_of(kernels: DeviceKernels, by: By, places: Placement) -> tuple[Sequence[Key], Times]:
    """The keys of all parts, and of each kernel the place of its own among them: [kernels], NOWHERE for none."""
    if by in ("operator", "kind"):
        classes, numbers = class_labels(kernels, by)
        return [key[0] for key in classes], numbers
    if by == "phase":
        return list(places.phase_names), places.phase
    if by == "step":
        return list(places.step_names), places.step
    if by in ("stage", "direction"):
        keys, labels = _numbered(getattr(places, by))
        return keys, np.where(getattr(places, by) == "", NOWHERE, labels)
    values: Times = getattr(places, by)
    distinct, place_of = np.unique(values, return_inverse=True)
    known = int(np.searchsorted(distinct, 0))
    return distinct[known:].tolist(), np.where(values < 0, NOWHERE, place_of.reshape(-1) - known)


def class_labels(kernels: DeviceKernels, *parts: Literal["kind", "operator"]) -> tuple[list[tuple[str, ...]], Times]:
    """Parts by what the classifier says: the distinct (kind, operator) or one of them, and each kernel's: [kernels]."""
    number: dict[tuple[str, ...], int] = {}
    if kernels.classes:
        keys = [tuple(str(getattr(one, part)) for part in parts) for one in kernels.classes]
        of_class = np.array([number.setdefault(key, len(number)) for key in keys], np.int64)
        return list(number), of_class[kernels.codes]
    words = [(kernels.kinds if part == "kind" else kernels.operators).tolist() for part in parts]
    rows = [number.setdefault(key, len(number)) for key in zip(*words, strict=True)]
    return list(number), np.array(rows, np.int64)


def _numbered(words: NDArray[np.object_]) -> tuple[list[str | int], Times]:
    number: dict[str | int, int] = {}
    labels = np.fromiter((number.setdefault(word, len(number)) for word in words.tolist()), np.int64, len(words))
    return list(number), labels


def overlap_of_labels(kernels: DeviceKernels, swept: Sweep, keys: Sequence[Key], labels: Times) -> list[OverlapPart]:
    """Overlap of any parts.

    keys: [parts]; labels: [kernels] index into the keys, NOWHERE for a kernel of no part
    """
    count = len(keys)
    placed = labels >= 0
    inside = counted_ns(kernels.starts, kernels.ends, swept.recorded)
    counts = placed & ((inside > 0) | (kernels.starts == kernels.ends))
    told = np.bincount(labels[counts], minlength=count)
    total = _sums(labels[counts], inside[counts], count)
    busy = _covered(kernels, placed, labels, count, swept.recorded)[0]
    of_kind: dict[str, Times] = {}
    overlapped = exposed = np.zeros(count, np.int64)
    for kind, kinds in _KINDS.items():
        pick = placed & np.isin(kernels.kinds, kinds)
        if kind == "comm":
            of_kind[kind], overlapped = _covered(kernels, pick, labels, count, swept.recorded, swept.compute)
            exposed = of_kind[kind] - overlapped
        else:
            of_kind[kind] = _covered(kernels, pick, labels, count, swept.recorded)[0]
    first = _first(kernels.starts[counts], labels[counts], count)
    return [
        OverlapPart(
            key=keys[at],
            kernels=int(told[at]),
            total_ns=int(total[at]),
            busy_ns=int(busy[at]),
            compute_ns=int(of_kind["compute"][at]),
            comm_ns=int(of_kind["comm"][at]),
            memory_ns=int(of_kind["memory"][at]),
            unknown_ns=int(of_kind["unknown"][at]),
            overlapped_ns=int(overlapped[at]),
            exposed_ns=int(exposed[at]),
        )
        for at in np.argsort(first, kind="stable").tolist()
        if told[at]
    ]


def _covered(
    kernels: DeviceKernels, pick: NDArray[np.bool_], labels: Times, count: int, *within: Intervals
) -> tuple[Times, ...]:
    """Time of each part's union inside each of the sets: [parts] each."""
    owner, (starts, ends) = union_by_group(labels[pick], kernels.starts[pick], kernels.ends[pick])
    return tuple(_sums(owner, covered_within(one, starts, ends), count) for one in within)


def _sums(labels: Times, values: Times, count: int) -> Times:
    sums = np.zeros(count, np.int64)
    np.add.at(sums, labels, values)
    return sums


def _first(starts: Times, labels: Times, count: int) -> Times:
    first = np.full(count, np.iinfo(np.int64).max)
    np.minimum.at(first, labels, starts)
    return first
