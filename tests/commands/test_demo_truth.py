"""The demo's summary is true: the same raw events, counted by brute force, give the same figures."""

from __future__ import annotations

import csv
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

SCHEDULES = ("serial", "overlapped")
Interval = tuple[int, int]


def seconds_by_state(kinds: dict[str, list[Interval]], windows: list[Interval]) -> dict[str, int]:
    """ns of each combination of what runs, by walking over every edge of every interval: no unions, no arrays."""
    edges: list[tuple[int, str, int]] = []
    for kind, intervals in (*kinds.items(), ("window", windows)):
        for start, end in intervals:
            edges += [(start, kind, 1), (end, kind, -1)]
    edges.sort(key=lambda edge: edge[0])
    open_now: dict[str, int] = defaultdict(int)
    total: dict[str, int] = defaultdict(int)
    last = 0
    for t, kind, change in edges:
        if open_now["window"]:
            compute, comm, memory = (open_now[k] > 0 for k in ("compute", "comm", "memory"))
            total["span"] += t - last
            total["compute"] += (t - last) * compute
            total["comm"] += (t - last) * comm
            total["memory"] += (t - last) * memory
            total["overlapped"] += (t - last) * (compute and comm)
            total["idle"] += (t - last) * (not any(v for k, v in open_now.items() if k != "window"))
        open_now[kind] += change
        last = t
    return total


def table(folder: Path, name: str) -> list[dict[str, str]]:
    with open(folder / f"{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def by_brute_force(folder: Path, rank: int) -> dict[str, int]:
    kinds: dict[str, list[Interval]] = defaultdict(list)
    for row in table(folder, "kernels"):
        if int(row["rank"]) == rank and row["kind"] != "host":
            start = int(row["start_ns"])
            kinds[row["kind"]].append((start, start + int(row["dur_ns"])))
    windows = [
        (int(row["start_ns"]), int(row["start_ns"]) + int(row["dur_ns"]))
        for row in table(folder, "windows")
        if int(row["rank"]) == rank
    ]
    return seconds_by_state(kinds, windows)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A serial and an overlapped run of the demo's training, recorded whole; tables beside them in `<name>-csv`."""
    import os
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("demo")
    env = os.environ | {"OMP_NUM_THREADS": "1", "XDG_CACHE_HOME": str(folder / "cache")}
    from moescope.profiler.commands.demo import target_command

    for schedule in SCHEDULES:
        target = target_command("train", 2, 10, schedule)
        command = [sys.executable, "-m", "moescope", "run", "--budget", "full", "-o", schedule, "--", *target]
        subprocess.run(command, cwd=folder, env=env, check=True, capture_output=True, timeout=150)
        export = [sys.executable, "-m", "moescope", "export", schedule, "--to", "csv", "-o", f"{schedule}-csv"]
        subprocess.run(export, cwd=folder, env=env, check=True, capture_output=True, timeout=150)
    return {schedule: folder / schedule for schedule in SCHEDULES}


@pytest.fixture(scope="module")
def summaries(recordings: dict[str, Path]) -> dict[str, Any]:
    """What `summary --json` says of each."""
    import subprocess
    import sys

    command = [sys.executable, "-m", "moescope", "summary", "--json"]
    return {
        schedule: json.loads(subprocess.run([*command, path], capture_output=True, check=True, timeout=60).stdout)
        for schedule, path in recordings.items()
    }


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_summary_equals_a_count_by_brute_force(
    recordings: dict[str, Path], summaries: dict[str, Any], schedule: str
) -> None:
    tables, summary = recordings[schedule].with_name(f"{schedule}-csv"), summaries[schedule]
    assert [rank["rank"] for rank in summary["ranks"]] == [0, 1]
    for rank in summary["ranks"]:
        truth = by_brute_force(tables, rank["rank"])
        found = {key: rank[f"{key}_us"] for key in ("span", "compute", "comm", "memory", "overlapped", "idle")}
        assert found == {key: pytest.approx(truth[key] / 1000, abs=0.01) for key in found}
        assert rank["exposed_comm_us"] == pytest.approx((truth["comm"] - truth["overlapped"]) / 1000, abs=0.01)
        assert rank["overlap_fraction"] == pytest.approx(truth["overlapped"] / truth["comm"], abs=1e-9)


def test_serial_communication_is_exposed_and_overlapped_communication_is_not(summaries: dict[str, Any]) -> None:
    total: dict[str, dict[str, Any]] = {schedule: summary["total"] for schedule, summary in summaries.items()}
    assert total["serial"]["overlap_fraction"] < 0.05
    # How much more depends on the cores that other programs leave.
    assert total["overlapped"]["overlap_fraction"] > 0.05


def test_every_rank_shows_the_phases_experts_and_quantisation_of_the_stack(recordings: dict[str, Path]) -> None:
    tables = recordings["overlapped"].with_name("overlapped-csv")
    expected = {f"{part}({way})" for part in ("attn", "dispatch", "mlp", "combine") for way in "FB"} | {"mlp(W)"}
    for rank in ("0", "1"):
        names = {row["name"] for row in table(tables, "phases") if row["rank"] == rank}
        assert expected <= names
        for name in ("experts", "quantisation", "transfers", "collectives", "units"):
            assert any(row["rank"] == rank for row in table(tables, name)), name
