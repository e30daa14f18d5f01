"""Finds decode steps on a device: as the run tells them, as annotations do, else by what repeats (inferred)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.decode.annotations import Told, decode_step_in
from moescope.profiler.labels import Labels
from moescope.profiler.overlap.intervals import Intervals, Times, union
from moescope.profiler.overlap.sweep import DeviceKernels

if TYPE_CHECKING:
    import pyarrow as pa

GRAPH_KERNELS: Final = 16
"""A launch that brings so many kernels or more is a whole graph's."""

MOST_NS: Final = 500_000_000
"""A cycle that takes longer is not called a decode step without being told so."""

_FEWEST_CYCLES: Final = 3
_DECODING: Final = re.compile(
    r"fmha\w*ForGen|splitkv|split_kv|flash_?mla|mla_?decod|decode|paged_attention_v[12]|xqa|mmha|masked_multihead"
    r"|dispatch_ll|combine_ll|low_?latency|internode_ll|batchdecode",
    re.IGNORECASE,
)
"""Kernels that are made for decoding, or for exchanges of its size."""

_TRAINING: Final = re.compile(r"backward|(?:^|[^a-z])bwd|_bwd|dgrad|wgrad|adam|adagrad|sgd_|optimizer", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class DecodeSteps:
    """Decode steps of one device, in order.

    starts, ends: [steps] ns; told: what is known of the batch of each; source: `steps`, `annotation`, `graph` or
    `sequence`; evidence: `measured` where they were told, else `inferred`; how: in words
    """

    starts: Times
    ends: Times
    told: tuple[Told, ...]
    source: str
    evidence: str
    how: str


def decode_steps(
    kernels: DeviceKernels, names: Labels, correlations: Times, steps: pa.Table, phases: pa.Table
) -> DecodeSteps | str:
    """Decode steps of a device, or why there are none.

    names: of the kernels; correlations: [kernels] launch ids, -1 where there is none; steps, phases: tables
    """
    found = _told_steps(kernels, steps, phases)
    if found is not None:
        return found
    stages = {stage for stage in steps.column("stage").to_pylist() if stage}
    if "train" in stages:
        return "its steps are those of training"
    found = _annotated(kernels, phases)
    if found is not None:
        return found
    if kernels.device.startswith("cpu"):
        return "neither steps nor annotations tell of decoding"
    training = names.mapped([bool(_TRAINING.search(name)) for name in names.texts], np.bool_)
    if (training & (kernels.kinds == "compute")).any():
        return "neither steps nor annotations tell of decoding, and kernels of training run"
    decoding = names.mapped([bool(_DECODING.search(name)) for name in names.texts], np.bool_)
    return (
        _replayed(kernels, names.codes, correlations, decoding)
        or _repeated(kernels, names.codes, decoding)
        or "neither steps nor annotations tell of decoding, and no short sequence of kernels repeats"
    )


def _told_steps(kernels: DeviceKernels, steps: pa.Table, phases: pa.Table) -> DecodeSteps | None:
    """Steps that the run itself calls decoding.

    A GPU runs behind its host: there a step lasts from the first to the last kernel that its phases launched.
    """
    rows = sorted(
        (row["start_ns"], row["start_ns"] + row["dur_ns"])
        for row in steps.select(["rank", "stage", "start_ns", "dur_ns"]).to_pylist()
        if row["rank"] in (kernels.rank, None) and row["stage"] == "decode" and (row["dur_ns"] or 0) > 0
    )
    if not rows:
        return None
    evidence, how = "measured", "the run tells its steps"
    if not kernels.device.startswith("cpu"):
        launched = _launched_in(kernels, phases)
        rows = launched or rows
        evidence = "measured" if launched else "derived"
        how += "" if launched else ", as ranges of its host: kernels of no step are told apart"
    nothing = Told(None, None, None)
    return DecodeSteps(
        np.array([start for start, _ in rows], np.int64), np.array([end for _, end in rows], np.int64),
        (nothing,) * len(rows), "steps", evidence, how,
    )  # fmt: skip


def _launched_in(kernels: DeviceKernels, phases: pa.Table) -> list[tuple[int, int]]:
    """From the first to the last kernel of the decode phases of each step."""
    step_of = {
        row["id"]: row["step"]
        for row in phases.select(["rank", "id", "stage", "step"]).to_pylist()
        if row["rank"] in (kernels.rank, None) and row["stage"] == "decode" and row["step"] is not None
    }
    if not step_of:
        return []
    steps = np.array([step_of.get(number, -1) for number in kernels.phases.tolist()], np.int64)
    found = [(int(kernels.starts[own[0]]), int(kernels.ends[own].max())) for _, own in _rows_by(steps)]
    return sorted(found)


def _annotated(kernels: DeviceKernels, phases: pa.Table) -> DecodeSteps | None:
    """Ranges named as decode steps, the outermost of those that lie in one another; on a GPU from the first to the last
    kernel that was launched inside of each."""
    if not phases.num_rows:
        return None
    import pyarrow.compute as pc

    names = pc.unique(phases.column("name")).to_pylist()
    if not pc.any(pc.equal(phases.column("stage"), "decode")).as_py() and not any(
        map(decode_step_in, filter(None, names))
    ):
        return None
    rows = [
        row
        for row in phases.select(["rank", "id", "parent", "name", "stage", "start_ns", "dur_ns"]).to_pylist()
        if row["rank"] in (kernels.rank, None)
    ]
    named = {row["id"]: _told(row) for row in rows}
    parents = {row["id"]: row["parent"] for row in rows}
    outermost: dict[int, int] = {}
    told: dict[int, Told] = {}
    for row in rows:
        at, top, known = row["id"], None, None
        for _ in range(64):
            if at is None or at not in named:
                break
            if named[at] is not None:
                top, known = at, _joined(known, named[at])
            at = parents[at]
        if top is not None:
            outermost[row["id"]] = top
            told[top] = _joined(told.get(top), known) or Told(None, None, None)
    if not told:
        return None
    if kernels.device.startswith("cpu"):
        # A kernel runs while its range is open, and the range is there whole where windows cut what runs in it.
        ranges = {row["id"]: (row["start_ns"], row["start_ns"] + (row["dur_ns"] or 0)) for row in rows}
        spans = [(*ranges[top], known) for top, known in told.items() if ranges[top][1] > ranges[top][0]]
    else:
        steps = np.array([outermost.get(number, -1) for number in kernels.phases.tolist()], np.int64)
        spans = [(int(kernels.starts[own[0]]), int(kernels.ends[own].max()), told[top]) for top, own in _rows_by(steps)]
    if not spans:
        return None
    spans.sort(key=lambda span: span[:2])
    return DecodeSteps(
        np.array([start for start, _, _ in spans], np.int64), np.array([end for _, end, _ in spans], np.int64),
        tuple(known for _, _, known in spans), "annotation", "measured", "annotations name them",
    )  # fmt: skip


def _told(row: dict[str, Any]) -> Told | None:
    found = decode_step_in(row["name"] or "")
    return found if found is not None or row["stage"] != "decode" else Told(None, None, None)


def _joined(a: Told | None, b: Told | None) -> Told | None:
    """What either tells."""
    if a is None or b is None:
        return a or b
    pairs = ((a.sequences, b.sequences), (a.tokens, b.tokens), (a.cached_tokens, b.cached_tokens))
    return Told(*(first if first is not None else second for first, second in pairs))


def _rows_by(keys: NDArray[np.int64], fewest: int = 1) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Every key >= 0 that at least `fewest` rows have, and those rows, rising."""
    order = np.argsort(keys, kind="stable")
    known, first, counts = np.unique(keys[order], return_index=True, return_counts=True)
    for key, begin, count in zip(known.tolist(), first.tolist(), counts.tolist(), strict=True):
        if key >= 0 and count >= fewest:
            yield key, order[begin : begin + count]


def graph_launches(kernels: DeviceKernels, correlations: Times) -> Intervals:
    """From the first to the last kernel of each CUDA graph's launch, as a union. correlations: [kernels], -1: none"""
    spans = [
        (int(kernels.starts[own[0]]), int(kernels.ends[own].max())) for _, own in _rows_by(correlations, GRAPH_KERNELS)
    ]
    return union(np.array([start for start, _ in spans], np.int64), np.array([end for _, end in spans], np.int64))


def _replayed(
    kernels: DeviceKernels, codes: NDArray[np.int64], correlations: Times, decoding: NDArray[np.bool_]
) -> DecodeSteps | None:
    """Replays of a CUDA graph: many kernels of one launch, the same ones each time.

    A step lasts until the next replay, the last one to its last kernel. A graph that was replayed less often than three
    times must hold a kernel made for decoding.
    """
    replays: dict[tuple[int, ...], list[tuple[int, int, bool]]] = {}
    largest = 0
    for _, own in _rows_by(correlations, GRAPH_KERNELS):
        kind = tuple(np.unique(codes[own]).tolist())
        span = (int(kernels.starts[own[0]]), int(kernels.ends[own].max()), bool(decoding[own].any()))
        replays.setdefault(kind, []).append(span)
        largest = max(largest, len(own))
    if not replays:
        return None
    spans = max(replays.values(), key=_sureness)
    if len(spans) < _FEWEST_CYCLES and not any(sure for *_, sure in spans):
        return None
    spans.sort()
    starts = np.array([start for start, *_ in spans], np.int64)
    ends = np.append(starts[1:], np.int64(spans[-1][1]))
    lasting = np.array([end - start for start, end, _ in spans], np.int64)
    if np.median(lasting) > MOST_NS:
        return None
    # Where something else runs between two replays, such as a prompt, the step ends with its own last kernel.
    apart = ends - starts > 2 * np.median(ends - starts)
    ends[apart] = np.array([end for _, end, _ in spans], np.int64)[apart]
    how = f"replays of one CUDA graph of {largest} kernels"
    return DecodeSteps(starts, ends, (Told(None, None, None),) * len(spans), "graph", "inferred", how)


def _sureness(replays: list[tuple[int, int, bool]]) -> tuple[bool, int]:
    """Whether one of the replays holds a kernel made for decoding, then how long they take together."""
    return any(sure for *_, sure in replays), sum(end - start for start, end, _ in replays)


def _repeated(kernels: DeviceKernels, codes: NDArray[np.int64], decoding: NDArray[np.bool_]) -> DecodeSteps | None:
    """A sequence of kernels that repeats exactly: between two launches of a kernel that runs once in each cycle.

    Kernels of layers repeat inside of a step, but not at equal distances over the border between two steps.
    """
    if not decoding.any():
        return None
    best: NDArray[np.int64] | None = None
    for _, places in _rows_by(codes, _FEWEST_CYCLES + 1):
        if best is not None and len(places) <= len(best):
            continue
        apart = np.diff(places)
        if apart[0] >= GRAPH_KERNELS and bool((apart == apart[0]).all()):
            best = places
    if best is None:
        return None
    starts = kernels.starts[best[:-1]]
    ends = kernels.starts[best[1:]]
    if np.median(ends - starts) > MOST_NS:
        return None
    how = f"a sequence of {int(best[1] - best[0])} kernels that repeats"
    return DecodeSteps(starts, ends, (Told(None, None, None),) * len(starts), "sequence", "inferred", how)
