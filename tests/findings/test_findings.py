"""Each finding appears where the data carries it, names what it rests on, and promises no more than it can."""

from __future__ import annotations

from dataclasses import replace

import pytest

from moescope.profiler.findings.aggregates import Aggregates, compute_by_rank, straggler
from moescope.profiler.findings.rules import as_rows, findings
from moescope.profiler.live.feed import aggregates_of
from moescope.profiler.snapshot import (
    CollectiveRow,
    ExpertRow,
    Figure,
    KernelRow,
    PhaseRow,
    QuantisationRow,
    Shares,
)
from tests.live_recording import MemorySource, kernel, phase, step, window

MS = 1_000_000
NONE = Figure(None, reason="not recorded")


def _kernel_row(name: str, operator: str, kind: str, total_ns: int) -> KernelRow:
    return KernelRow(name, operator, kind, "r", 1, total_ns, 0.5, 1, 1, 0, NONE, NONE, None, "")


HEALTHY = Aggregates(
    shares=Shares(100 * MS, 80 * MS, 19 * MS, 0, 0, 1 * MS),
    step_ns=10 * MS,
    phases=(),
    kernels=(_kernel_row("aten::mm", "gemm", "compute", 99 * MS),),
    collectives=(),
    experts=(ExpertRow(0, (10, 10, 11, 9)),),
    rank_tokens=(20, 20),
    quantisation=(),
    rank_compute={0: 0.99, 1: 0.985},
    coverage=1.0,
    dropped=0,
    finished=True,
    short_kernels=0,
    worst_exposed_ns=None,
)


def _ids(seen: Aggregates) -> list[str]:
    return [finding.id for finding in findings(seen)]


def test_a_healthy_run_has_no_findings() -> None:
    assert _ids(HEALTHY) == []


def test_exposed_communication_names_its_worst_phase_and_bounds_the_gain_by_its_share() -> None:
    seen = replace(
        HEALTHY,
        shares=Shares(100 * MS, 60 * MS, 10 * MS, 25 * MS, 0, 5 * MS),
        phases=(
            PhaseRow("dispatch(F)", 4, 9 * MS, 9 * MS, 5 * MS),
            PhaseRow("combine(F)", 4, 30 * MS, 26 * MS, 20 * MS),
        ),
        worst_exposed_ns=77,
    )
    (finding,) = findings(seen)
    assert (finding.id, finding.severity, finding.start_ns) == ("exposed-communication", "high", 77)
    assert "80% of it in combine(F)" in finding.what
    assert "at most 25.0%" in finding.gain
    assert "2.5 ms a step" in finding.gain


TRAINING_ONLY = ("gradient", "backward", "data loading", "strengthen the router")


@pytest.mark.parametrize("stage", ["train", "prefill", "decode", ""])
def test_advice_fits_the_stage(stage: str) -> None:
    seen = replace(
        HEALTHY,
        shares=Shares(100 * MS, 30 * MS, 10 * MS, 30 * MS, 0, 30 * MS),
        rank_compute={0: 0.5, 1: 0.5, 2: 0.9},
        experts=(ExpertRow(0, (90, 10)),),
        stage=stage,
    )
    found = findings(seen)
    assert {finding.id for finding in found} == {"exposed-communication", "idle", "straggler", "experts-unbalanced"}
    advice = " ".join(finding.advice for finding in found)
    if stage == "train":
        assert all(word in advice for word in TRAINING_ONLY)
    elif stage:
        assert not [word for word in TRAINING_ONLY if word in advice]


def test_what_costs_more_time_is_never_less_grave() -> None:
    shares = Shares(100 * MS, 50 * MS, 0, 8 * MS, 20 * MS, 22 * MS)
    late = replace(HEALTHY, shares=shares, rank_compute={0: 0.50, 1: 0.50, 2: 0.52})
    costs = [finding for finding in findings(late) if finding.lost is not None]
    assert [finding.id for finding in costs] == ["idle", "exposed-communication", "straggler"]
    grave = [("low", "medium", "high").index(finding.severity) for finding in costs]
    assert grave == sorted(grave, reverse=True)


def test_gaps_are_found_from_a_tenth_of_the_time_on() -> None:
    shares = Shares(100 * MS, 91 * MS, 0, 0, 0, 9 * MS)
    assert _ids(replace(HEALTHY, shares=shares)) == []
    shares = Shares(100 * MS, 75 * MS, 0, 0, 0, 25 * MS)
    (finding,) = findings(replace(HEALTHY, shares=shares, short_kernels=42))
    assert (finding.id, finding.severity) == ("idle", "high")
    assert "42 kernels shorter than 5 µs" in finding.evidence


def test_unbalanced_experts_bound_the_gain_by_the_heaviest_rank() -> None:
    seen = replace(
        HEALTHY,
        experts=(ExpertRow(3, (10, 10, 10, 10)), ExpertRow(7, (70, 10, 10, 10))),
        rank_tokens=(90, 30),
        kernels=(_kernel_row("grouped", "grouped_gemm", "compute", 60 * MS),),
    )
    (finding,) = findings(seen)
    assert finding.id == "experts-unbalanced"
    assert "Expert 0 of layer 7 gets 2.8 times" in finding.what
    assert "at most 20.0%" in finding.gain  # 60 % of the time, of which the heaviest rank's third is in excess


def test_an_expert_that_gets_one_and_a_half_times_the_mean_is_no_finding() -> None:
    assert _ids(replace(HEALTHY, experts=(ExpertRow(0, (15, 5)),))) == []
    assert _ids(replace(HEALTHY, experts=(ExpertRow(0, (16, 4)),))) == ["experts-unbalanced"]


@pytest.mark.parametrize(
    ("compute", "expected"),
    [({}, None), ({0: 0.9}, None), ({0: 0.5, 1: 0.51}, None), ({0: 0.5, 1: 0.5, 2: 0.6}, 2)],
)
def test_a_straggler_needs_other_ranks_and_a_difference(compute: dict[int, float], expected: int | None) -> None:
    found = straggler(compute)
    assert (found[0] if found else None) == expected
    assert ("straggler" in _ids(replace(HEALTHY, rank_compute=compute))) == (expected is not None)


def test_calls_that_never_completed_count_only_once_the_run_is_over() -> None:
    row = CollectiveRow("all_reduce", "world", "gloo", 9, 1, 1, 1, NONE, 0, 2)
    assert _ids(replace(HEALTHY, collectives=(row,))) == ["collectives-unfinished"]
    assert _ids(replace(HEALTHY, collectives=(row,), finished=False)) == []


def test_unknown_kernels_are_named() -> None:
    rows = (_kernel_row("mystery", "unknown", "unknown", 10 * MS), *HEALTHY.kernels)
    (finding,) = findings(replace(HEALTHY, kernels=rows))
    assert finding.id == "unknown-kernels"
    assert "mystery" in finding.evidence


def test_low_coverage_and_dropped_events_are_told() -> None:
    assert _ids(replace(HEALTHY, coverage=0.05, dropped=3)) == ["events-dropped", "coverage-low"]


def test_quantisation_that_breaks_numbers_is_told() -> None:
    row = QuantisationRow("mlp.up.x", "e4m3 1x128", 1, 1.0, 1.0, 1.0, 30, 0, 2, 1000)
    assert _ids(replace(HEALTHY, quantisation=(row,))) == ["quantisation-nonfinite", "quantisation-saturated"]


def test_findings_of_a_source_are_those_of_its_whole_run_even_while_it_grows() -> None:
    second = 1_000_000_000
    source = MemorySource("live").add("windows", [window(0, 60 * second)])
    source.add("phases", [phase(1, "combine(F)", 0, 20 * second)])
    source.add("kernels", [kernel(0, 20 * second, "comm", phase_id=1), kernel(20 * second, 40 * second)])
    rows = {row["id"]: row for row in as_rows(findings(aggregates_of(source)))}
    assert "33.3%" in rows["exposed-communication"]["what"]
    assert "combine(F)" in rows["exposed-communication"]["what"]
    assert {"id", "severity", "what", "evidence", "why", "try", "gain"} <= set(rows["exposed-communication"])


def test_an_empty_source_has_no_findings() -> None:
    assert findings(aggregates_of(MemorySource())) == ()


def test_the_gain_a_step_is_that_of_the_mean_step() -> None:
    source = MemorySource().add("windows", [window(0, 200 * MS)])
    source.add("kernels", [kernel(0, 100 * MS, "comm"), kernel(100 * MS, 100 * MS)])
    source.add("steps", [step(0, 0, 100 * MS), step(1, 100 * MS, 100 * MS)])
    (finding,) = findings(aggregates_of(source))
    assert "at most 50.0% of the time, 50 ms a step" in finding.gain


def test_a_rank_that_was_seen_for_less_time_computes_no_longer_for_that() -> None:
    source = MemorySource().add("windows", [window(0, 200 * MS), window(100 * MS, 100 * MS, rank=1)])
    source.add("kernels", [kernel(0, 60 * MS), kernel(100 * MS, 60 * MS, rank=1)])
    assert "straggler" not in [finding.id for finding in findings(aggregates_of(source))]
    source.add("kernels", [kernel(100 * MS, 60 * MS, stream="second")])
    # Ranks that exchange nothing do not wait for one another.
    assert "straggler" not in [finding.id for finding in findings(aggregates_of(source))]
    source.add("kernels", [kernel(190 * MS, 100, "comm", rank=rank) for rank in (0, 1)])
    (finding,) = (finding for finding in findings(aggregates_of(source)) if finding.id == "straggler")
    assert "Rank 0 computes 40.0%" in finding.what  # 120 ms against 60 ms, over the 150 ms that ranks are seen for


def test_starting_up_is_no_loss_where_steps_are_known() -> None:
    source = MemorySource().add("windows", [window(0, 1000 * MS)])
    source.add("kernels", [kernel(900 * MS, 100 * MS)])
    assert [finding.id for finding in findings(aggregates_of(source))] == ["idle"]
    source.add("steps", [step(0, 900 * MS, 50 * MS), step(1, 950 * MS, 50 * MS)])
    assert findings(aggregates_of(source)) == ()


def test_a_hot_expert_weighs_what_the_heaviest_rank_does() -> None:
    hot = replace(HEALTHY, experts=(ExpertRow(0, (35, 5, 5, 35)),))
    (even,) = findings(replace(hot, rank_tokens=(40, 40)))
    (uneven,) = findings(replace(hot, rank_tokens=(70, 10)))
    assert (even.severity, uneven.severity) == ("low", "high")


def test_ranks_recorded_in_windows_are_compared_by_shares_wherever_their_windows_lay() -> None:
    # One rank's windows end early in the run, the other's late: both compute half of what was recorded.
    assert compute_by_rank({0: (250, 500, 520), 1: (240, 480, 5000)}, 40) == {0: 0.5, 1: 0.5}
    # Few steps' worth may be other parts of a step on each.
    assert compute_by_rank({0: (250, 500, 520), 1: (240, 480, 5000)}, 60) == {}
    assert compute_by_rank({0: (250, 500, 520), 1: (240, 480, 5000)}, None) == {}


def test_a_rank_that_was_seen_for_less_time_does_not_compute_longer_for_that() -> None:
    assert compute_by_rank({0: (500, 1000, 1000), 1: (500, 600, 600), 2: (0, 0, 0)}, None) == {0: 0.625, 1: 0.625}
