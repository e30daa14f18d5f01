"""A feed of made-up values, to see what screens do with them: no process, no time passing, no randomness."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from moescope.profiler.snapshot import (
    Cell,
    CollectiveRow,
    Engine,
    ExpertRow,
    Figure,
    Finding,
    HeadlinePart,
    KernelDetail,
    KernelRow,
    Lane,
    LinkRow,
    LogRow,
    PhaseRow,
    QuantisationRow,
    RankRow,
    Shares,
    Snapshot,
    Timeline,
    TimelineView,
    Units,
    View,
)

START = 1_700_000_000_000_000_000
MS = 1_000_000
HOSTILE = "void \x1b[31mevil\x07<日本語, \u202ertl\u0301>::kernel" + "x" * 300
UNKNOWN = Figure(None, reason="no counter here")


def shares(compute: int, overlapped: int, exposed: int, other: int, idle: int) -> Shares:
    return Shares(compute + overlapped + exposed + other + idle, compute, overlapped, exposed, other, idle)


def rank(number: int, exposed: int, **more: Any) -> RankRow:
    units = Units(
        "sm",
        132,
        Figure(20.0, "inferred"),
        Figure(24.0, "inferred"),
        Figure(0.152, "inferred"),
        Figure(112.0, "inferred"),
    )
    row = RankRow(
        rank=number,
        host=f"node{number // 4}",
        pid=4000 + number,
        device="H100 SXM",
        state="running",
        shares=shares(2300 * MS, 650 * MS, exposed * MS, 10 * MS, 180 * MS),
        overlap_fraction=Figure(650 / (650 + exposed), "derived"),
        matrix_use=Figure(0.38 + number / 100, "derived"),
        units=units,
        step_ns=Figure((3400.0 + number) * MS),
        kernels=9000 + number,
        dropped=0,
        coverage=1.0,
    )
    return replace(row, **more)


def engine(name: str, used: float, peak: float, unit: str, source: str) -> Engine:
    return Engine(name, Figure(used), Figure(peak), unit, Figure(used / peak, "derived"), source)


def kernel(name: str, operator: str, kind: str, total_ms: float, calls: int, **more: Any) -> KernelRow:
    row = KernelRow(
        name=name,
        operator=operator,
        kind=kind,
        rule="by-name",
        calls=calls,
        total_ns=int(total_ms * MS),
        share=total_ms / 3400,
        median_ns=int(total_ms * MS / calls),
        p99_ns=int(total_ms * MS / calls * 2),
        exposed_ns=0,
        flops_per_s=Figure(1.2e15, "derived"),
        bytes_per_s=Figure(None, reason="its bytes are not recorded"),
        bound=Figure(0.61, "derived"),
        bound_name="tensor",
    )
    return replace(row, **more)


def snapshot(**more: Any) -> Snapshot:
    """A training run of eight ranks with something on every screen."""
    exposed = {5: 410, 2: 280, 7: 260, 0: 235, 1: 220, 3: 210, 6: 200, 4: 185}
    ranks = tuple(rank(n, exposed[n]) for n in range(8))
    base = Snapshot(
        target="train.py",
        devices="8×H100 SXM",
        stage="train",
        step=1284,
        state="live",
        start_ns=START,
        end_ns=START + 761_000 * MS,
        rank_choice=None,
        headline=(
            HeadlinePart("Exposed communication "),
            HeadlinePart("7.3% of step", "loss"),
            HeadlinePart(" · comm SMs "),
            HeadlinePart("20/132", "figure"),
        ),
        shares=shares(2324 * MS, 655 * MS, 249 * MS, 30 * MS, 154 * MS),
        shares_note="mean of 32 steps · all ranks",
        words_of="train",
        steps_ns=tuple((3380 + 7 * (i * 5 % 11)) * MS for i in range(32)),
        step_median=Figure(3415.0 * MS, "derived"),
        step_p99=Figure(3450.0 * MS, "derived"),
        straggler="rank 5 +2.1%",
        ranks=ranks,
        engines=(
            engine("Tensor FP8", 812e12, 1979e12, "FLOP/s", "FLOPs the model emits"),
            engine("HBM", 1.74e12, 3.35e12, "B/s", "counter"),
            engine("mlx5_0 tx", 39e9, 50e9, "B/s", "link counter"),
            Engine("Power", UNKNOWN, UNKNOWN, "W", UNKNOWN, "NVML"),
        ),
        peaks_note="",
        time_note="last 10 s",
        phases=(
            PhaseRow("combine(F)", 1856, 3100 * MS, 318 * MS, 118 * MS),
            PhaseRow("dispatch(F)", 1856, 2100 * MS, 201 * MS, 61 * MS),
            PhaseRow("attn(F)", 1856, 9100 * MS, 0, 0),
        ),
        kernels=(
            kernel("deep_gemm::fp8_grouped_nt_masked", "grouped_gemm", "compute", 1212.4, 1856),
            kernel("deep_ep::intranode::combine<bf16, 8>", "combine", "comm", 318.2, 1856, exposed_ns=118 * MS),
            kernel(HOSTILE, "unknown", "unknown", 18.2, 4121, bound=None, rule=""),
        ),
        links=(
            LinkRow("node0", "mlx5_0", Figure(39e9), Figure(38e9), Figure(50e9), 10**12, (0.2, 0.5, 0.9, 0.78)),
            LinkRow(
                "node0", "lo", Figure(2e6), Figure(2e6), Figure(None, reason="loopback has no rate"), 10**9, (0.1,)
            ),
        ),
        traffic=tuple(tuple(0 if i == j else (i + 2 * j + 1) * 10**9 for j in range(8)) for i in range(8)),
        collectives=(
            CollectiveRow("all_to_all", "ep8", "nccl", 3712, 412 << 20, 6 * MS, 12 * MS, Figure(36e9), 118 * MS, 0),
            CollectiveRow("all_reduce", "dp2", "nccl", 32, None, 9 * MS, 10 * MS, UNKNOWN, 0, 1),
        ),
        experts=tuple(
            ExpertRow(layer, tuple(100 + 40 * ((layer * 7 + e * 3) % 11) for e in range(64))) for layer in range(3, 15)
        ),
        experts_reason="",
        expert_rank_tokens=(97, 99, 102, 96, 95, 131, 101, 98),
        quantisation=(QuantisationRow("mlp.up.x", "e4m3 1x128", 64, 41.5, 0.0025, 0.2, 3, 1200, 0, 10**7),),
        scrubber=tuple(None if i % 17 == 16 else (i % 9) / 20 for i in range(86)),
        findings=(
            Finding(
                "exposed-combine",
                "high",
                "combine is exposed on rank 5",
                "118 ms of 318 ms have no compute beside them [derived]",
                "launch it before the shared expert",
                "at most 3.1% of the time, 106 ms a step, if all of it is hidden",
                START + 9_000 * MS,
            ),
            Finding("launch-gaps", "low", "gaps of 5.4%", "9 214 short kernels", "capture a graph", ""),
        ),
        log=(
            LogRow(START + 5 * MS, "info", 0, "kernels", "source itt"),
            LogRow(START + 9 * MS, "error", 1, "links", "no counter: \x1b[2J"),
        ),
        coverage=0.4,
        dropped=12,
    )
    return replace(base, **more)


def empty() -> Snapshot:
    """What a run shows before anything is known of it."""
    nothing = Shares(0, 0, 0, 0, 0, 0)
    return snapshot(
        headline=(HeadlinePart("Nothing recorded in this window yet"),),
        stage="",
        step=None,
        end_ns=START,
        shares=nothing,
        shares_note="nothing recorded",
        steps_ns=(),
        step_median=UNKNOWN,
        step_p99=UNKNOWN,
        straggler="",
        ranks=(),
        engines=(),
        phases=(),
        kernels=(),
        links=(),
        traffic=(),
        collectives=(),
        experts=(),
        experts_reason="no model emitted tokens per expert",
        expert_rank_tokens=(),
        quantisation=(),
        scrubber=(None,) * 20,
        findings=(),
        log=(),
        coverage=0.0,
        dropped=0,
    )


class SyntheticFeed:
    """Answers every view with one snapshot, and notes what it was asked."""

    def __init__(self, base: Snapshot | None = None) -> None:
        self.base = base or snapshot()
        self.polls = 0
        self.views: list[View] = []
        self.timelines: list[TimelineView] = []
        self.jumps: list[tuple[int, bool]] = []
        self.breaks = False

    def poll(self) -> bool:
        self.polls += 1
        if self.breaks:
            raise OSError("the disk is gone")
        return self.polls == 1

    def snapshot(self, view: View) -> Snapshot:
        self.views.append(view)
        scrubber = (self.base.scrubber * view.scrubber_cells)[: view.scrubber_cells]
        words_of = view.stage or self.base.stage
        return replace(self.base, rank_choice=view.rank, scrubber=scrubber, words_of=words_of)

    def timeline(self, view: TimelineView) -> Timeline:
        self.timelines.append(view)
        start, end = view.window or (START + 1200 * MS, START + 1300 * MS)
        if not self.base.ranks:
            return Timeline(start, end, view.cells, (), None, "nothing was recorded in this window")
        lanes = []
        for number in [view.rank] if view.rank is not None else [0, 1]:
            lanes += [
                Lane(number, "phase", "phase", _cells(view.cells, ("phase", "attn(F)"), ("phase", "dispatch(F)"))),
                Lane(number, "stream 7", "kernels", _cells(view.cells, ("compute", ""), ("idle", ""))),
                Lane(number, "stream 21 日本", "kernels", _cells(view.cells, ("overlapped", ""), ("exposed", ""))),
                Lane(number, "SMs comm", "units", _cells(view.cells, ("comm", "20"), ("compute", ""))),
            ]
        detail = None
        if view.cursor is not None and lanes[min(view.cursor[0], len(lanes) - 1)].kind == "kernels":
            detail = KernelDetail(
                name="deep_ep::intranode::combine<bf16, 8>",
                operator="combine",
                kind="comm",
                rule="deepep",
                rank=0,
                stream="stream 21",
                phase="combine(F)",
                start_ns=start + 51 * MS,
                dur_ns=12 * MS,
                overlapped_ns=4 * MS,
                exposed_ns=8 * MS,
                bytes=412 << 20,
                evidence="measured",
                note="median 6.1 ms, p99 12.4 ms of 58 calls in view",
            )
        return Timeline(start, end, view.cells, tuple(lanes), detail, "40% of the window recorded")

    def next_exposed(self, after_ns: int, rank: int | None, *, backward: bool = False) -> tuple[int, int] | None:
        self.jumps.append((after_ns, backward))
        return None if backward else (after_ns + 5 * MS, after_ns + 6 * MS)


def _cells(total: int, *kinds: tuple[Any, str]) -> tuple[Cell, ...]:
    each = max(total // 6, 1)
    cells = []
    for i, start in enumerate(range(0, total, each)):
        state, label = kinds[i % len(kinds)]
        cells.append(Cell(start, min(each, total - start), state, label))
    return tuple(cells)
