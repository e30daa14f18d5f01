"""What a screen shows: frozen values between the analysis and the dashboard.

The analysis fills one `Snapshot` per frame; the dashboard draws it and computes nothing. So screens are tested without
any process, and a number has one way from event to screen. Durations are ns, shares 0..1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

Evidence = Literal["measured", "derived", "inferred", "modelled"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number with its label; `value` is None where it is not known, and then `reason` says why."""

    value: float | None
    evidence: Evidence = "measured"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Shares:
    """Where a window's time goes, ns on one device or summed over several; the four parts and `other` fill the span.

    compute_only_ns: compute with no communication beside it; overlapped_ns: both; exposed_ns: communication alone;
    other_ns: memory copies and unknown kernels alone; idle_ns: no kernel at all.
    """

    span_ns: int
    compute_only_ns: int
    overlapped_ns: int
    exposed_ns: int
    other_ns: int
    idle_ns: int


@dataclass(frozen=True, slots=True)
class Units:
    """Execution units (SMs or cores): how many there are, and how many communication and compute hold."""

    kind: Literal["sm", "core"]
    total: int | None
    comm_typical: Figure
    comm_peak: Figure
    comm_time_share: Figure
    compute_typical: Figure


@dataclass(frozen=True, slots=True)
class RankRow:
    """One rank."""

    rank: int
    host: str
    pid: int | None
    device: str
    state: Literal["running", "ended", "killed", "trace"]
    shares: Shares
    overlap_fraction: Figure
    matrix_use: Figure
    units: Units
    step_ns: Figure
    kernels: int
    dropped: int
    coverage: float


@dataclass(frozen=True, slots=True)
class Engine:
    """A gauge: what is used of what there is, from where, and against which peak."""

    name: str
    used: Figure
    peak: Figure
    unit: str
    share: Figure
    source: str


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """All ranges of one name."""

    name: str
    count: int
    total_ns: int
    comm_ns: int
    exposed_ns: int


@dataclass(frozen=True, slots=True)
class KernelRow:
    """All kernels of one name."""

    name: str
    operator: str
    kind: str
    rule: str
    calls: int
    total_ns: int
    share: float
    median_ns: int
    p99_ns: int
    exposed_ns: int
    flops_per_s: Figure
    bytes_per_s: Figure
    bound: Figure | None
    bound_name: str


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One link: bytes a second over the window, against its line rate."""

    host: str
    link: str
    tx_bytes_per_s: Figure
    rx_bytes_per_s: Figure
    peak_bytes_per_s: Figure
    tx_total: int
    history: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class CollectiveRow:
    """All calls of one collective on one group."""

    op: str
    group: str
    backend: str
    calls: int
    bytes: int | None
    median_ns: int
    p99_ns: int
    bytes_per_s: Figure
    exposed_ns: int
    unfinished: int


@dataclass(frozen=True, slots=True)
class ExpertRow:
    """One layer: tokens of each expert over the window, summed over ranks."""

    layer: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class QuantisationRow:
    """All quantisations of one tensor in one format."""

    tensor: str
    format: str
    calls: int
    amax: float
    scale_min: float
    scale_max: float
    saturated: int
    flushed: int
    nonfinite: int
    elements: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A run of equal cells of a lane: `state` is drawn, `label` is written into it where it fits."""

    start: int
    length: int
    state: Literal["compute", "overlapped", "exposed", "comm", "memory", "unknown", "idle", "phase", "unrecorded"]
    label: str = ""


@dataclass(frozen=True, slots=True)
class Lane:
    """One row of the timeline."""

    rank: int
    name: str
    kind: Literal["phase", "kernels", "units"]
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class KernelDetail:
    """The kernel under the cursor, in full."""

    name: str
    operator: str
    kind: str
    rule: str
    rank: int
    stream: str
    phase: str
    start_ns: int
    dur_ns: int
    overlapped_ns: int
    exposed_ns: int
    bytes: int | None
    evidence: Evidence
    note: str = ""


@dataclass(frozen=True, slots=True)
class Timeline:
    """A window of the run in `cells` columns; times are ns since the epoch."""

    start_ns: int
    end_ns: int
    cells: int
    lanes: tuple[Lane, ...]
    selected: KernelDetail | None
    note: str = ""


Severity: TypeAlias = Literal["high", "medium", "low"]


HIGH_LOSS: Final = 0.10
MEDIUM_LOSS: Final = 0.03
"""Shares of the time from which on a loss is of high and of medium severity, whatever costs it."""


def severity_of(value: float, high: float = HIGH_LOSS, medium: float = MEDIUM_LOSS) -> Severity:
    """How grave a loss is, as a share of the time; or anything else, from the two values that it takes."""
    return "high" if value >= high else "medium" if value >= medium else "low"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a change brings at least and at most: shares of the time looked at, and ns.

    per: ns are of a step, of a rank over the whole source, or summed over all devices of the source
    """

    low_share: float
    high_share: float
    low_ns: float
    high_ns: float
    per: Literal["step", "rank", "source"]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that costs time: what, how much of the span, and what to try.

    why: what makes it cost time; lost: share of the time looked at, None where it is not time that is lost; bounds: of
    the gain, None where nothing recorded bounds it
    """

    id: str
    severity: Severity
    what: str
    evidence: str
    advice: str
    gain: str
    start_ns: int | None = None
    why: str = ""
    lost: float | None = None
    bounds: Bounds | None = None


@dataclass(frozen=True, slots=True)
class HeadlinePart:
    """A piece of the headline; `loss` is the leading loss and is drawn in its own colour."""

    text: str
    role: Literal["text", "loss", "figure"] = "text"


@dataclass(frozen=True, slots=True)
class LogRow:
    """A line of the recording's log."""

    t_ns: int
    level: str
    rank: int | None
    source: str
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that one frame shows, for the chosen ranks and window.

    peaks_note: what shares of engines are of, empty for the usual peak; time_note: which time all of it is of;
    shares_note: what the shares are of; words_of: the stage whose words and advice are used; steps_ns: the newest
    steps, the oldest of them first; step_median, step_p99: of every step of the window
    """

    target: str
    devices: str
    stage: str
    step: int | None
    state: Literal["live", "finished", "torn", "trace"]
    start_ns: int
    end_ns: int
    rank_choice: int | None
    headline: tuple[HeadlinePart, ...]
    shares: Shares
    shares_note: str
    words_of: str
    steps_ns: tuple[int, ...]
    step_median: Figure
    step_p99: Figure
    straggler: str
    ranks: tuple[RankRow, ...]
    engines: tuple[Engine, ...]
    peaks_note: str
    time_note: str
    phases: tuple[PhaseRow, ...]
    kernels: tuple[KernelRow, ...]
    links: tuple[LinkRow, ...]
    traffic: tuple[tuple[int, ...], ...]
    collectives: tuple[CollectiveRow, ...]
    experts: tuple[ExpertRow, ...]
    experts_reason: str
    expert_rank_tokens: tuple[int, ...]
    quantisation: tuple[QuantisationRow, ...]
    scrubber: tuple[float | None, ...]
    findings: tuple[Finding, ...]
    log: tuple[LogRow, ...]
    coverage: float
    dropped: int


@dataclass(frozen=True, slots=True)
class View:
    """What the dashboard asks for: ranks, window and size; the analysis answers with a `Snapshot`.

    stage: whose words and advice to use; empty for the run's own; other_peaks: a GPU's peaks from the other place, its
    maker's document or `moescope calibrate`, than was asked for at the start
    """

    rank: int | None = None
    window: tuple[int, int] | None = None
    scrubber_cells: int = 60
    stage: str = ""
    other_peaks: bool = False


@dataclass(frozen=True, slots=True)
class TimelineView:
    """What the timeline screen asks for.

    window: ns since the epoch, None for the last steps; cursor: lane index and cell, for `Timeline.selected`
    """

    rank: int | None = None
    window: tuple[int, int] | None = None
    cells: int = 80
    max_lanes: int = 20
    cursor: tuple[int, int] | None = None
    filter: str = ""
