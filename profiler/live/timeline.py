"""A window of the run as lanes of cells: phases, streams painted by what hides them, cores held by communication."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from moescope.profiler.growing.columns import NULL, Columns, Names
from moescope.profiler.growing.kernels import Lane as LaneTracks
from moescope.profiler.growing.kernels import lane_sets
from moescope.profiler.growing.track import EVER, Times, Track
from moescope.profiler.live.state import LiveState, RankState
from moescope.profiler.snapshot import Cell, KernelDetail, Lane, Timeline, TimelineView

State: TypeAlias = Literal[
    "compute", "overlapped", "exposed", "comm", "memory", "unknown", "idle", "phase", "unrecorded"
]
STATES: Final[tuple[State, ...]] = ("compute", "overlapped", "exposed", "memory", "unknown")
"""What a lane can be busy with, as tracks of a lane."""

EXPOSED_NS: Final = 50_000
"""A stretch of exposed communication this long is worth a jump."""

DEFAULT_STEPS: Final = 3
DEFAULT_RECORDED_NS: Final = 200_000_000
WHOLE: Final = 0.95
"""Share of a step from which on it was recorded whole, where a window is to be shown."""
FRESH_NS: Final = 30_000_000_000
"""How long ago the last whole step may have ended, where a window is to be shown."""
_LOOKED_AT: Final = 256
"""Steps, and ranks, among which it is looked for: with every frame."""


def build(state: LiveState, view: TimelineView) -> Timeline:
    """The lanes of `view`; without a window of its own, the last steps or the last 200 ms that were recorded."""
    ranks = [view.rank] if view.rank is not None else state.rank_numbers()
    start, end = view.window or default_window(state, ranks)
    cells = max(view.cells, 1)
    end = max(end, start + cells)
    edges = cell_edges(start, end, cells)
    lanes: list[Lane] = []
    sources: list[tuple[int, int, int] | None] = []
    hidden = 0
    each = max(2, view.max_lanes // max(len(ranks), 1))
    for rank in ranks:
        found = _rank_lanes(state, rank, edges, view.filter)
        room = min(each, view.max_lanes - len(lanes))
        shown = _busiest(found, max(room, 0))
        hidden += len(found) - len(shown)
        lanes += [lane for lane, _, _ in shown]
        sources += [source for _, source, _ in shown]
    selected = _selected(state, view, sources, edges) if view.cursor is not None else None
    return Timeline(start, end, cells, tuple(lanes), selected, _note(state, ranks, hidden, start, end, view.filter))


def cell_edges(start_ns: int, end_ns: int, cells: int) -> Times:
    """Borders of equal cells: [cells + 1], ns."""
    return start_ns + (end_ns - start_ns) * np.arange(cells + 1, dtype=np.int64) // cells


def default_window(state: LiveState, ranks: list[int]) -> tuple[int, int]:
    """The last steps of these ranks, three at most, that operators were recorded in throughout.

    Else the last three that they were recorded in at all, or the very last where that is in none; without steps the
    stretch that holds the last 200 ms inside windows.
    """
    steps = state.tables["steps"]
    pick = np.isin(steps["rank"], ranks) & (steps["dur_ns"] > 0)
    tracks = [state.ranks[rank].recorded for rank in ranks if rank in state.ranks and len(state.ranks[rank].recorded)]
    whole = _whole_steps(steps, tracks, ranks)
    if whole is not None:
        return whole
    recorded = pick & (steps["start_ns"] < max((int(track.ends[-1]) for track in tracks), default=EVER))
    pick = recorded if recorded.any() else pick
    if pick.any():
        starts, ends = steps["start_ns"][pick], (steps["start_ns"] + steps["dur_ns"])[pick]
        per_rank = [np.sort(starts[steps["rank"][pick] == rank])[-DEFAULT_STEPS:] for rank in ranks]
        return int(min(line[0] for line in per_rank if len(line))), int(ends.max())
    spans = [_last_recorded(state.ranks[rank]) for rank in ranks if rank in state.ranks]
    known = [span for span in spans if span is not None]
    if not known:
        return state.span()
    return min(start for start, _ in known), max(end for _, end in known)


def _whole_steps(steps: Columns, tracks: list[Track], ranks: list[int]) -> tuple[int, int] | None:
    """The last steps in a row that were recorded whole, by the first rank that has any; None where that is long ago."""
    ended = np.isin(steps["rank"], ranks) & (steps["dur_ns"] > 0)
    if not tracks or not ended.any():
        return None
    own = ended & (steps["rank"] == steps["rank"][ended].min())
    order = np.argsort(steps["start_ns"][own], kind="stable")[-_LOOKED_AT:]
    starts, lasts = steps["start_ns"][own][order], steps["dur_ns"][own][order]
    whole = starts + lasts > max(int(track.ends[-1]) for track in tracks) - FRESH_NS
    for track in tracks[:_LOOKED_AT]:
        whole &= track.within(starts, starts + lasts) >= WHOLE * lasts
    if not whole.any():
        return None
    last = int(np.flatnonzero(whole)[-1])
    first = last
    while first > max(0, last - DEFAULT_STEPS + 1) and whole[first - 1]:
        first -= 1
    return int(starts[first]), int(starts[last] + lasts[last])


def _last_recorded(rank: RankState) -> tuple[int, int] | None:
    recorded = rank.recorded
    if not len(recorded):
        return None
    lengths = np.cumsum((recorded.ends - recorded.starts)[::-1])
    back = min(int(np.searchsorted(lengths, DEFAULT_RECORDED_NS)), len(lengths) - 1)
    spare = max(int(lengths[back]) - DEFAULT_RECORDED_NS, 0)
    return int(recorded.starts[len(lengths) - 1 - back]) + spare, int(recorded.ends[-1])


def dominant(
    busy: NDArray[np.int64], any_busy: NDArray[np.int64], recorded: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The state of each cell: [cells] index into STATES, or len(STATES) for idle, len(STATES) + 1 for unrecorded.

    The largest share wins, but something busy wins over idle and unrecorded from an eighth of the cell on.

    busy: [states, cells] ns; any_busy, recorded: [cells] ns covered by any kernel and by recording; lengths: [cells] ns
    """
    best = np.argmax(busy, axis=0)
    most = np.take_along_axis(busy, best[None], axis=0)[0]
    idle, unrecorded = recorded - any_busy, lengths - recorded
    shown = (most > 0) & ((most >= np.maximum(idle, unrecorded)) | (8 * most >= lengths))
    quiet = np.where(unrecorded > idle, len(STATES) + 1, len(STATES))
    return np.where(shown, best, quiet).astype(np.int64)


def runs(states: list[State], labels: list[str] | None = None) -> tuple[Cell, ...]:
    """Equal neighbours as one cell each."""
    cells: list[Cell] = []
    begin = 0
    for at in range(1, len(states) + 1):
        same = at < len(states) and states[at] == states[begin]
        if same and labels is not None:
            same = labels[at] == labels[begin]
        if not same:
            cells.append(Cell(begin, at - begin, states[begin], labels[begin] if labels else ""))
            begin = at
    return tuple(cells)


Found: TypeAlias = "tuple[Lane, tuple[int, int, int] | None, int]"
"""A lane, the rank, device and stream it shows, and how busy it is, ns."""


def _rank_lanes(state: LiveState, rank: int, edges: Times, wanted: str) -> list[Found]:
    held = state.ranks.get(rank)
    lengths = np.diff(edges)
    found: list[Found] = []
    phases = _phase_lane(state, rank, edges)
    if phases is not None:
        found.append((phases, None, int(np.iinfo(np.int64).max)))
    if held is None:
        return found
    recorded = np.diff(held.recorded.covered(edges))
    lanes: list[Found] = []
    for device, sweep in held.devices.items():
        for stream, tracks in sweep.lanes.items():
            shown = tracks if not wanted else _filtered(state, held, device, stream, wanted, edges)
            busy = np.stack([np.diff(shown.tracks[name].covered(edges)) for name in STATES])
            any_busy = np.diff(shown.tracks["busy"].covered(edges))
            picked = dominant(busy, any_busy, recorded, lengths)
            painted = [_ALL_STATES[index] for index in picked.tolist()]
            name = state.names.text(stream, "stream –")
            if len(held.devices) > 1:
                name = f"{state.names.text(device)} {name}"
            lanes.append((Lane(rank, name, "kernels", runs(painted)), (rank, device, stream), int(any_busy.sum())))
    units = _unit_lane(state, rank, edges)
    lanes.sort(key=lambda lane: (_first_kind(held, lane[1]), lane[0].name))
    found += lanes
    if units is not None:
        found.append((units, None, int(np.iinfo(np.int64).max) - 1))
    return found


_ALL_STATES: Final[tuple[State, ...]] = (*STATES, "idle", "unrecorded")


def _first_kind(held: RankState, source: tuple[int, int, int] | None) -> int:
    """Lanes that mostly compute stand above those that mostly communicate."""
    if source is None:
        return 0
    tracks = held.devices[source[1]].lanes[source[2]].tracks
    totals = {name: int((tracks[name].ends - tracks[name].starts).sum()) for name in STATES}
    return 0 if totals["compute"] >= totals["overlapped"] + totals["exposed"] else 1


def _busiest(found: list[Found], room: int) -> list[Found]:
    """At most `room` lanes in their order, those that hold least in this window left out."""
    if len(found) <= room:
        return found
    kept = sorted(range(len(found)), key=lambda at: -found[at][2])[:room]
    return [found[at] for at in sorted(kept)]


def _filtered(state: LiveState, held: RankState, device: int, stream: int, wanted: str, edges: Times) -> LaneTracks:
    kernels = held.kernels
    rows = kernels.span(int(edges[0]), int(edges[-1]))
    matching = state.matching(wanted)
    pick = (kernels["device"][rows] == device) & (kernels["stream"][rows] == stream)
    pick &= matching[kernels["code"][rows]]
    starts = np.maximum(kernels["start"][rows][pick], edges[0])
    ends = np.minimum(kernels["end"][rows][pick], edges[-1])
    kinds = state.kind_of()[kernels["code"][rows][pick]]
    compute = held.devices[device].tracks["compute"].between(int(edges[0]), int(edges[-1]))
    recorded = held.recorded.between(int(edges[0]), int(edges[-1]))
    lane = LaneTracks()
    for name, (from_ns, to_ns) in lane_sets(starts, ends, kinds, compute, recorded, int(edges[0])).items():
        lane.tracks[name].replace_from(int(edges[0]), from_ns, to_ns)
    return lane


def phase_depths(ids: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many known phases enclose each phase. ids, parents: [phases]; parent NULL at the top"""
    order = np.argsort(ids, kind="stable")
    at = np.searchsorted(ids[order], parents)
    at = np.minimum(at, max(len(ids) - 1, 0))
    parent = np.where(ids[order][at] == parents, order[at], -1) if len(ids) else np.empty(0, np.int64)
    depth = np.zeros(len(ids), np.int64)
    upward = parent.copy()
    for _ in range(32):
        inside = upward >= 0
        if not inside.any():
            break
        depth += inside
        upward = np.where(inside, parent[upward], -1)
    return depth


def _phase_lane(state: LiveState, rank: int, edges: Times) -> Lane | None:
    phases, steps = state.tables["phases"], state.tables["steps"]
    start, end = int(edges[0]), int(edges[-1])
    cells = len(edges) - 1
    middle = (edges[:-1] + edges[1:]) // 2
    labels = [""] * cells
    painted = False
    for table, names in ((steps, None), (phases, state.names)):
        own = table["rank"] == rank
        starts, ends = table["start_ns"], table["start_ns"] + np.maximum(table["dur_ns"], 0)
        painted = painted or bool(own.any())
        fits = np.flatnonzero(own & (ends > start) & (starts < end) & ((ends - starts) * cells >= end - start))
        if not len(fits):
            continue
        texts = _texts(table, fits, names)
        # An enclosing phase is longer, so whatever fits has its enclosing phases among those that fit.
        depth = (
            np.zeros(len(fits), np.int64) if names is None else phase_depths(table["id"][fits], table["parent"][fits])
        )
        low = np.searchsorted(middle, starts[fits], side="left")
        high = np.searchsorted(middle, ends[fits], side="left")
        for at in np.lexsort((starts[fits], depth)).tolist():
            labels[low[at] : high[at]] = [texts[at]] * int(max(high[at] - low[at], 0))
    if not painted:
        return None
    return Lane(rank, "phase", "phase", runs(["phase" if label else "idle" for label in labels], labels))


def _texts(table: Columns, rows: NDArray[np.int64], names: Names | None) -> list[str]:
    if names is None:
        return [f"step {number}" for number in table["step"][rows].tolist()]
    return [names.text(code, "phase –") for code in table["name"][rows].tolist()]


def _unit_lane(state: LiveState, rank: int, edges: Times) -> Lane | None:
    table = state.tables["unit_intervals"]
    own = (table["rank"] == rank) & ((table["device"] < 0) == (state.unit_kind == "core"))
    if not own.any():
        return None
    lengths = np.diff(edges)
    held = {
        role: _held(table, own & (table["role"] == state.names.code(role)), edges) / lengths
        for role in ("comm", "compute")
    }
    states: list[State] = []
    labels: list[str] = []
    for comm, compute in zip(held["comm"].tolist(), held["compute"].tolist(), strict=True):
        states.append("comm" if comm >= 1 / 8 else "compute" if compute >= 1 / 8 else "idle")
        labels.append(f"{comm:.0f}" if comm >= 1 / 8 else "")
    return Lane(rank, f"{state.unit_kind}s comm", "units", runs(states, labels))


def _held(table: Columns, pick: NDArray[np.bool_], edges: Times) -> NDArray[np.int64]:
    """Unit time held in each cell: [cells], ns."""
    start, end = int(edges[0]), int(edges[-1])
    pick &= (table["end_ns"] > start) & (table["start_ns"] < end)
    starts = np.sort(np.maximum(table["start_ns"][pick], start)) - start
    ends = np.sort(np.minimum(table["end_ns"][pick], end)) - start
    at = edges - start
    return np.diff(_elapsed(starts, at) - _elapsed(ends, at))


def _elapsed(times: Times, at: Times) -> NDArray[np.int64]:
    """Sum over `times` of how long before each of `at` they lie. times: [n] sorted; at: [m]"""
    total = np.concatenate((np.zeros(1, np.int64), np.cumsum(times)))
    count = np.searchsorted(times, at, side="right")
    return cast("NDArray[np.int64]", count * at - total[count])


def _selected(
    state: LiveState, view: TimelineView, sources: list[tuple[int, int, int] | None], edges: Times
) -> KernelDetail | None:
    lane, cell = view.cursor or (0, 0)
    if not (0 <= lane < len(sources) and 0 <= cell < len(edges) - 1):
        return None
    source = sources[lane]
    if source is None:
        return None
    rank, device, stream = source
    kernels = state.ranks[rank].kernels
    begin, end = int(edges[cell]), int(edges[cell + 1])
    rows = kernels.span(begin, end)
    pick = (kernels["device"][rows] == device) & (kernels["stream"][rows] == stream)
    if view.filter:
        pick &= state.matching(view.filter)[kernels["code"][rows]]
    inside = np.minimum(kernels["end"][rows], end) - np.maximum(kernels["start"][rows], begin)
    inside = np.where(pick, inside, -1)
    if not len(inside) or inside.max() < 0:
        return None
    return kernel_detail(state, rank, rows.start + int(np.argmax(inside)), (int(edges[0]), int(edges[-1])))


def kernel_detail(state: LiveState, rank: int, row: int, window: tuple[int, int]) -> KernelDetail:
    """One kernel in full, with how long its like take in the window."""
    held = state.ranks[rank]
    kernels = held.kernels
    start, end = int(kernels["start"][row]), int(kernels["end"][row])
    known = state.classes[int(kernels["code"][row])]
    communicates = known.kind in ("comm", "fused")
    tracks = held.devices[int(kernels["device"][row])].tracks
    overlapped = tracks["compute"].length(start, end) if communicates else 0
    exposed = tracks["exposed"].length(start, end) if communicates else 0
    alike = kernels.span(*window)
    durations = (kernels["end"] - kernels["start"])[alike][kernels["code"][alike] == kernels["code"][row]]
    notes = []
    if len(durations):
        low, high = np.quantile(durations, (0.5, 0.99))
        calls = f"{len(durations)} call{'s' if len(durations) > 1 else ''}"
        notes.append(f"median {low / 1e6:.3f} ms, p99 {high / 1e6:.3f} ms of {calls} in view")
    inside = held.recorded.length(start, end)
    if communicates and inside < end - start:
        notes.append(f"{(end - start - inside) / 1e6:.3f} ms of it lie outside the recorded windows")
    moved = int(kernels["bytes"][row])
    return KernelDetail(
        name=known.name,
        operator=known.operator,
        kind=known.kind,
        rule=known.rule,
        rank=rank,
        stream=state.names.text(int(kernels["stream"][row]), "–"),
        phase=state.phase_name(rank, int(kernels["phase"][row])),
        start_ns=start,
        dur_ns=end - start,
        overlapped_ns=overlapped,
        exposed_ns=exposed,
        bytes=None if moved == NULL else moved,
        evidence=state.evidence(int(kernels["evidence"][row])),
        note=" · ".join(notes),
    )


def _note(state: LiveState, ranks: list[int], hidden: int, start: int, end: int, wanted: str) -> str:
    parts = []
    recorded = sum(state.ranks[rank].recorded.length(start, end) for rank in ranks if rank in state.ranks)
    whole = (end - start) * max(len(ranks), 1)
    if not recorded:
        parts.append("nothing was recorded in this window")
    elif recorded < 0.995 * whole:
        parts.append(f"{recorded / whole:.0%} of the window recorded")
    if wanted:
        parts.append(f"only kernels with “{wanted}”")
    if hidden:
        parts.append(f"{hidden} quieter lanes not shown")
    return " · ".join(parts)


def next_exposed(
    state: LiveState, after_ns: int, rank: int | None, *, backward: bool = False
) -> tuple[int, int] | None:
    """The next stretch of at least 50 µs that starts after `after_ns`, or the last one that starts before it."""
    ranks = [rank] if rank is not None else state.rank_numbers()
    found: list[tuple[int, int]] = []
    for number in ranks:
        held = state.ranks.get(number)
        for sweep in held.devices.values() if held is not None else ():
            track = sweep.tracks["exposed"]
            starts, ends = track.starts, track.ends
            after = int(np.searchsorted(starts, after_ns, side="left" if backward else "right"))
            part = slice(0, after) if backward else slice(after, None)
            worth = np.flatnonzero(ends[part] - starts[part] >= EXPOSED_NS)
            if len(worth):
                at = (0 if backward else after) + int(worth[-1 if backward else 0])
                found.append((int(starts[at]), int(ends[at])))
    if not found:
        return None
    return max(found) if backward else min(found)
