"""Answers the dashboard's questions about a source, live or finished, from what was taken in piece by piece."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from moescope.profiler.findings.aggregates import Aggregates, compute_by_rank, straggler
from moescope.profiler.findings.rules import findings
from moescope.profiler.growing.columns import NULL
from moescope.profiler.growing.track import EVER, Times
from moescope.profiler.live import timeline
from moescope.profiler.live.engines import engine_rows, matrix_use, peaks_note
from moescope.profiler.live.figures import (
    kernel_counts,
    kernel_rows,
    overlap_fraction,
    per_step,
    phase_rows,
    rank_shares,
    scrubber,
    share_errors,
    total_shares,
)
from moescope.profiler.live.headline import NO_ERRORS, headline, memory_figure
from moescope.profiler.live.rows import (
    STEPS_SHOWN,
    collective_rows,
    expert_rows,
    latest_step,
    link_rows,
    log_rows,
    quantisation_rows,
    rank_tokens,
    traffic,
)
from moescope.profiler.live.state import LiveState
from moescope.profiler.live.units import all_units, rank_units
from moescope.profiler.snapshot import Figure, RankRow, Shares, Snapshot, Timeline, TimelineView, View
from moescope.profiler.steps.durations import Steps, quantile_step, steps_in

if TYPE_CHECKING:
    from moescope.profiler.source import Source

RECENT_NS: Final = 10_000_000_000
RECENT_KERNELS: Final = 200_000
"""While a run goes on, figures are of its last ten seconds, or this many kernels, unless a window is chosen."""

_EMPTY: Final = Shares(0, 0, 0, 0, 0, 0)
_CACHED: Final = 8


class LiveFeed:
    """A `Feed` over one source: `poll` takes in what is new, the queries read what is known.

    Not thread-safe: one thread polls and asks.
    """

    def __init__(self, source: Source, *, rank: int | None = None) -> None:
        """rank: the rank to answer for where a view asks for all of them; None for all"""
        self.source = source
        self._rank = rank
        self._state = LiveState(source)
        self._answers: dict[tuple[int, View | TimelineView], Snapshot | Timeline] = {}

    def poll(self) -> bool:
        """Take in what is new since the last call; True where anything was."""
        return self._state.poll()

    def span(self) -> tuple[int, int]:
        """First and last time of the run so far, ns since the epoch."""
        return self._state.span()

    def steps_span(self) -> tuple[int, int] | None:
        """From the first step's start to the last one's end, over all ranks, of the stage that takes most of the time.

        None where no step is known.
        """
        span = steps_in(self._state.tables["steps"], self._state.names).span_ns
        return None if span is None else _within(span, self.span())

    def snapshot(self, view: View) -> Snapshot:
        """Everything but the timeline."""
        view = view if view.rank is not None else replace(view, rank=self._rank)
        key = (self._state.version, view)
        held = self._answers.get(key)
        if not isinstance(held, Snapshot):
            held = _snapshot(self._state, view)
            self._keep(key, held)
        return held

    def timeline(self, view: TimelineView) -> Timeline:
        """A window of the run, binned into cells."""
        view = view if view.rank is not None else replace(view, rank=self._rank)
        key = (self._state.version, view)
        held = self._answers.get(key)
        if not isinstance(held, Timeline):
            held = timeline.build(self._state, view)
            self._keep(key, held)
        return held

    def next_exposed(self, after_ns: int, rank: int | None, *, backward: bool = False) -> tuple[int, int] | None:
        """The next stretch of exposed communication of at least 50 µs, as start and end in ns since the epoch."""
        rank = self._rank if rank is None else rank
        return timeline.next_exposed(self._state, after_ns, rank, backward=backward)

    def aggregates(self, view: View) -> Aggregates:
        """What the findings of `view` are drawn from."""
        return _Window(self._state, view).aggregates()

    def _keep(self, key: tuple[int, View | TimelineView], answer: Snapshot | Timeline) -> None:
        while len(self._answers) >= _CACHED:
            del self._answers[next(iter(self._answers))]
        self._answers[key] = answer


def aggregates_of(source: Source) -> Aggregates:
    """Aggregates of a source over its steps, so that starting up is no loss; over its whole run where it has none."""
    feed = LiveFeed(source)
    feed.poll()
    return feed.aggregates(View(window=feed.steps_span() or feed.span()))


class _Window:
    """The chosen ranks and time of one view, and the figures that several parts of a snapshot share."""

    def __init__(self, state: LiveState, view: View) -> None:
        self.state = state
        state.other_peaks = view.other_peaks
        self.everyone = state.rank_numbers()
        self.ranks = self.everyone if view.rank is None else [view.rank]
        self.filter = None if view.rank is None else self.ranks
        self.span = state.span()
        self.window, self.period, run = _window(state, view, self.span)
        self.by_rank = {
            rank: rank_shares(state.ranks[rank], self.window) if rank in state.ranks else _EMPTY
            for rank in self.everyone
        }
        self.shares = total_shares([self.by_rank[rank] for rank in self.ranks if rank in self.by_rank])
        self.steps = steps_in(state.tables["steps"], state.names, self.filter, self.window)
        self.step_ns = self.steps.mean_ns if not self.steps.others else None
        self.step, self.run_stage = self.steps.latest, self.steps.stage
        if not self.steps.durations_ns:
            self.step, self.run_stage = latest_step(state.tables["steps"], state.names, self.window)
        self.stage = view.stage or self.run_stage
        # What the run's other stages did is left out of a finished run's figures: they say of which stage they are.
        self.which = f"{self.run_stage or 'unnamed'} " if run.others else ""
        self.time_note = self.period or f"all {self.which}steps" + run.without
        self.coverage = self._coverage(self.ranks)
        self.kernels, self.short_kernels = kernel_rows(state, self.ranks, self.window)
        self.phases = phase_rows(state, self.ranks, self.window)
        self.experts, self.expert_steps = expert_rows(state.tables["experts"], self.filter, self.window)
        self.rank_tokens = rank_tokens(self.experts, len(self.everyone))
        self.collectives = collective_rows(
            state.tables["collectives"], _exposed_in_calls(state, self.window), state.names, self.filter, self.window
        )
        self.quantisation = quantisation_rows(state.tables["quantisation"], state.names, self.filter, self.window)
        self.dropped = _dropped(state, self.filter)

    def _coverage(self, ranks: Sequence[int]) -> float:
        """Share recorded of the time between each rank's first and last window, as `sweep.coverage` has it."""
        recorded, whole = self._recorded(ranks)
        return recorded / whole if whole else 0.0

    def _recorded(self, ranks: Sequence[int]) -> tuple[int, int]:
        """Recorded time, and the time between each rank's first and last window, summed over ranks, ns."""
        recorded = whole = 0
        for rank in ranks:
            track = self.state.ranks[rank].recorded if rank in self.state.ranks else None
            if track is not None and len(track):
                recorded += track.length(*self.window)
                whole += self._extent(rank)
        return recorded, whole

    def rank_compute(self) -> dict[int, float]:
        """How long each rank computes, for all ranks."""
        return compute_by_rank(
            {
                rank: (shares.compute_only_ns + shares.overlapped_ns, shares.span_ns, self._extent(rank))
                for rank, shares in self.by_rank.items()
                if shares.span_ns
            },
            self.steps.mean_ns,
        )

    def _extent(self, rank: int) -> int:
        """Time between the first and the last of a rank's recorded windows, ns."""
        track = self.state.ranks[rank].recorded
        low, high = max(self.window[0], int(track.starts[0])), min(self.window[1], int(track.ends[-1]))
        return max(high - low, 0)

    def aggregates(self) -> Aggregates:
        recorded_ns, extent_ns = self._recorded(self.ranks)
        return Aggregates(
            shares=self.shares,
            step_ns=self.step_ns,
            phases=self.phases,
            kernels=self.kernels,
            collectives=self.collectives,
            experts=self.experts,
            rank_tokens=self.rank_tokens,
            quantisation=self.quantisation,
            rank_compute=self.rank_compute(),
            coverage=self.coverage,
            dropped=self.dropped,
            finished=self.state.source.state != "live",
            short_kernels=self.short_kernels,
            worst_exposed_ns=_longest_exposed(self.state, self.ranks, self.window),
            stage=self.stage,
            steps=self.steps,
            recorded_ns=recorded_ns,
            extent_ns=extent_ns,
        )

    def shares_note(self) -> str:
        """What the shares are of."""
        who = "all ranks" if self.filter is None else f"rank {self.ranks[0]}"
        if self.filter is None and len(self.everyone) == 1:
            who = f"rank {self.everyone[0]}"
        count = len(self.steps.durations_ns)
        if self.steps.others:
            stages = dict([(self.run_stage, count), *self.steps.others])
            parts = [
                f"sum over {sum(stages.values())} steps of {', '.join(stage or 'no stage' for stage in stages)}",
                who,
            ]
        elif count:
            parts = [f"mean of {count} {self.which}step{'s' if count != 1 else ''}", who]
        else:
            parts = ["sum over the window", who]
        if self.period:
            parts.append(self.period)
        if not self.shares.span_ns:
            parts.append("nothing recorded")
        elif self.coverage < 0.995:
            parts.append(f"{self.coverage:.0%} recorded")
        return " · ".join(parts)

    def rank_row(self, rank: int) -> RankRow:
        state = self.state
        held = state.ranks.get(rank)
        shares = self.by_rank[rank]
        info = _rank_info(state.source.meta, rank)
        steps = steps_in(state.tables["steps"], state.names, [rank], self.window)
        devices = sorted(state.names.text(device) for device in held.devices) if held is not None else []
        pid = info.get("pid")
        return RankRow(
            rank=rank,
            host=str(info.get("host", state.source.meta.get("host", ""))),
            pid=pid if isinstance(pid, int) else None,
            device=", ".join(devices),
            state=_rank_state(state.source.state, info),
            shares=shares,
            overlap_fraction=overlap_fraction(shares),
            matrix_use=matrix_use(state, [rank], self.window).share,
            units=rank_units(state, rank, self.window),
            step_ns=_quantile(steps, 0.5),
            kernels=kernel_counts(state, [rank], self.window)[rank],
            dropped=_dropped(state, [rank]),
            coverage=self._coverage([rank]),
        )


def _snapshot(state: LiveState, view: View) -> Snapshot:
    seen = _Window(state, view)
    meta = state.source.meta
    ranks = tuple(seen.rank_row(rank) for rank in seen.everyone)
    units = all_units([row.units for row in ranks if row.rank in seen.ranks])
    matrix = matrix_use(state, seen.ranks, seen.window)
    links = link_rows(state.tables["link_samples"], state.names, seen.window)
    engines = engine_rows(state, matrix, units, links, seen.window)
    slowest = straggler(seen.rank_compute())
    shares = per_step(seen.shares, seen.step_ns) if seen.step_ns is not None else seen.shares
    return Snapshot(
        target=_target(meta, state.source.name),
        devices=_devices(state, meta),
        stage=seen.run_stage,
        step=seen.step,
        state=state.source.state,
        start_ns=seen.span[0],
        end_ns=seen.span[1],
        rank_choice=view.rank,
        headline=headline(
            seen.shares,
            seen.stage,
            units,
            matrix.share,
            memory_figure(engines),
            slowest if view.rank is None else None,
            seen.step_ns is not None,
            share_errors(state, seen.ranks, seen.window, seen.coverage) if seen.step_ns is not None else NO_ERRORS,
        ),
        shares=shares,
        shares_note=seen.shares_note(),
        words_of=seen.stage,
        steps_ns=seen.steps.durations_ns[-STEPS_SHOWN:],
        step_median=_quantile(seen.steps, 0.5),
        step_p99=_quantile(seen.steps, 0.99),
        straggler=f"rank {slowest[0]} computes +{slowest[1]:.1%} of the time" if slowest else "",
        ranks=ranks,
        engines=engines,
        peaks_note=peaks_note(state),
        time_note=seen.time_note,
        phases=seen.phases,
        kernels=seen.kernels,
        links=links,
        traffic=traffic(state.tables["transfers"], seen.window, len(seen.everyone)),
        collectives=seen.collectives,
        experts=seen.experts,
        experts_reason="" if seen.experts else _experts_reason(state),
        expert_rank_tokens=seen.rank_tokens,
        quantisation=seen.quantisation,
        scrubber=scrubber(state, seen.ranks, view.scrubber_cells),
        findings=findings(seen.aggregates()),
        log=log_rows(state.tables["log"], state.names),
        coverage=seen.coverage,
        dropped=seen.dropped,
    )


def _window(state: LiveState, view: View, span: tuple[int, int]) -> tuple[tuple[int, int], str, Steps]:
    """The time that figures are of, how to name it, and the run's steps where they are all of them.

    As chosen, the recent past of a live run, or the steps of the stage that takes most of the time.
    """
    if view.window is not None:
        start, end = view.window
        return (start, max(start, end)), f"window of {(max(start, end) - start) / 1e6:.4g} ms", Steps()
    start, end = span
    if state.source.state == "live":
        recent = max(start, end - RECENT_NS, _enough_kernels(state))
        steps = steps_in(state.tables["steps"], state.names)
        if steps.warm_up_ns and steps.span_ns is not None:
            recent = max(recent, min(steps.span_ns[0], end))
        return (recent, end), f"last {(end - recent) / 1e9:.3g} s", Steps()
    steps = steps_in(state.tables["steps"], state.names)
    if steps.span_ns is None:
        return (start, end), "whole run", steps
    return _within(steps.span_ns, span), "", steps


def _within(window: tuple[int, int], span: tuple[int, int]) -> tuple[int, int]:
    return max(window[0], span[0]), min(window[1], span[1])


def _quantile(steps: Steps, share: float) -> Figure:
    """A typical or late step."""
    found = quantile_step(steps.durations_ns, share)
    return Figure(None, "derived", "no step is known") if found is None else Figure(float(found), "derived")


def _enough_kernels(state: LiveState) -> int:
    """When the newest kernels begin that suffice for live figures, so that a frame's cost stays within bounds."""
    each = RECENT_KERNELS // max(len(state.ranks), 1)
    starts = [int(held.kernels["start"][-each]) for held in state.ranks.values() if each and held.kernels.size > each]
    return max(starts, default=EVER)


def _exposed_in_calls(state: LiveState, window: tuple[int, int]) -> Times:
    """Exposed time inside the execution of each collective call: [calls], ns."""
    calls = state.tables["collectives"]
    exposed = np.zeros(calls.size, np.int64)
    inside = (calls["issue_ns"] >= window[0]) & (calls["issue_ns"] < window[1]) & (calls["dur_ns"] != NULL)
    for rank, held in state.ranks.items():
        own = np.flatnonzero(inside & (calls["rank"] == rank))
        starts = calls["start_ns"][own]
        ends = starts + np.maximum(calls["dur_ns"][own], 0)
        for sweep in held.devices.values():
            exposed[own] += sweep.tracks["exposed"].within(starts, ends)
    return exposed


def _longest_exposed(state: LiveState, ranks: Sequence[int], window: tuple[int, int]) -> int | None:
    longest: tuple[int, int] | None = None
    for rank in ranks:
        held = state.ranks.get(rank)
        for sweep in held.devices.values() if held is not None else ():
            starts, ends = sweep.tracks["exposed"].between(*window)
            if len(starts):
                at = int(np.argmax(ends - starts))
                stretch = (int(ends[at] - starts[at]), int(starts[at]))
                longest = stretch if longest is None else max(longest, stretch)
    return longest[1] if longest is not None else None


def _dropped(state: LiveState, ranks: Sequence[int] | None) -> int:
    log = state.tables["log"]
    lost = np.maximum(log["dropped"], 0)
    return int(lost.sum() if ranks is None else lost[np.isin(log["rank"], ranks)].sum())


def _experts_reason(state: LiveState) -> str:
    if state.tables["experts"].size:
        return "no tokens were counted in this window"
    return "no model emitted tokens per expert: see moescope.collectors.emit.experts"


def _target(meta: Mapping[str, Any], name: str) -> str:
    named = meta.get("target")
    if isinstance(named, str) and named:
        return named
    command = meta.get("command")
    if isinstance(command, str) and command:
        return command
    if isinstance(command, Sequence) and command:
        return " ".join(str(word) for word in command)
    return name


def _devices(state: LiveState, meta: Mapping[str, Any]) -> str:
    hardware = meta.get("hardware")
    named = hardware.get("name") if isinstance(hardware, Mapping) else None
    devices = [
        (rank, state.names.text(device)) for rank, held in state.ranks.items() for device in sorted(held.devices)
    ]
    count = max(len(devices), len(state.rank_numbers()))
    kind = str(named) if named else ("CPU" if state.unit_kind == "core" else "GPU")
    return f"{count}×{kind}" if count > 1 else kind


def _rank_info(meta: Mapping[str, Any], rank: int) -> Mapping[str, Any]:
    """What `meta["ranks"]` says of a rank: a list of tables with `rank`, or tables by rank."""
    listed = meta.get("ranks")
    if isinstance(listed, Mapping):
        found = listed.get(str(rank), listed.get(rank))
        return found if isinstance(found, Mapping) else {}
    if isinstance(listed, Sequence) and not isinstance(listed, str):
        for entry in listed:
            if isinstance(entry, Mapping) and entry.get("rank") == rank:
                return entry
    return {}


def _rank_state(source: str, info: Mapping[str, Any]) -> Literal["running", "ended", "killed", "trace"]:
    if source == "trace":
        return "trace"
    said = info.get("state")
    if said == "ended":
        return "ended"
    if said == "killed":
        return "killed"
    if said == "running" and source == "live":
        return "running"
    code = info.get("exit_code")
    if isinstance(code, int):
        return "killed" if code < 0 or code > 128 else "ended"
    return "running" if source == "live" else "ended"
