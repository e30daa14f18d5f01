"""The summary as text: what stands in it fits the terminal and can be read without colour."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from moescope.profiler.report.text import _and_more, _table, render_text
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, kernel, step, window

DATA = Path(__file__).parents[1] / "data"
FINDINGS = [
    {
        "id": "exposed-communication",
        "severity": "high",
        "what": "Communication is exposed for 20.0% of the recorded time",
        "evidence": "1.03 s exposed of 1.55 s communication, within 5.16 s recorded over all devices [derived]",
        "try": "issue it earlier or on its own stream so that compute runs beside it: shared experts during dispatch",
        "gain": "at most 20.0% of the time, if all of it is hidden",
    },
    {"id": "low", "severity": "low", "what": "Only 3% was recorded", "evidence": "", "try": "record more", "gain": ""},
]


@pytest.fixture(scope="module")
def summary() -> dict[str, Any]:
    found = summarise(open_source([DATA / "param_dlrm_8rank_v100"]))
    return found | {"findings": FINDINGS}


def text(summary: dict[str, Any], width: int, *, terminal: bool, colour: bool = False) -> str:
    file = io.StringIO()
    console = Console(
        file=file,
        width=width,
        force_terminal=terminal,
        color_system="truecolor" if colour else None,
        no_color=not colour,
        highlight=False,
    )
    render_text(summary, console)
    return file.getvalue()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_line_is_wider_than_the_terminal_and_no_cell_is_cut(summary: dict[str, Any], width: int) -> None:
    lines = text(summary, width, terminal=True).replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
    assert [line for line in lines.splitlines() if cell_len(line) > width] == []
    header = next(line for line in lines.splitlines() if line.startswith("rank "))
    assert {"exposed", "hidden", "idle"} <= set(header.split())
    assert ("busy" in header.split()) == (width >= 120)
    assert all(f"{rank['exposed_comm_us'] / 1e3:.2f} ms" in lines for rank in summary["ranks"])


def test_a_finding_has_its_parts_on_lines_of_their_own_and_a_gain_only_where_known(summary: dict[str, Any]) -> None:
    lines = text(summary, 80, terminal=False).split("Findings\n")[1].splitlines()
    high, low = FINDINGS
    assert lines == [
        f"▲ high    {high['what']}.",
        f"          {high['evidence']}",
        f"          try:  {high['try']}",
        f"          gain: {high['gain']}",
        "",
        f"· low     {low['what']}.",
        f"          try:  {low['try']}",
    ]


def test_colour_repeats_what_glyphs_say(summary: dict[str, Any]) -> None:
    import re

    plain = text(summary, 100, terminal=True)
    coloured = text(summary, 100, terminal=True, colour=True)
    strip = re.compile(r"\x1b\[[0-9;]*m")
    assert "\x1b[38;2;" in coloured
    assert "\x1b[38;2;" not in plain
    assert strip.sub("", coloured) == strip.sub("", plain)


def test_no_string_of_others_reaches_the_terminal_as_it_is(summary: dict[str, Any]) -> None:
    evil = "a\x1b[2J[bold]b\u202e"

    def poisoned(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: poisoned(item) if key != "severity" else item for key, item in value.items()}
        if isinstance(value, list):
            return [poisoned(item) for item in value]
        return evil + value if isinstance(value, str) else value

    log = {"warnings": 1, "lines": [{"level": "error", "rank": 0, "source": evil, "message": evil}]}
    whole = text(poisoned(summary | {"torn": [evil], "log": log}), 300, terminal=True)
    lines = whole.replace("\x1b[1m", "").replace("\x1b[0m", "").replace("\x1b[2m", "")
    assert "\x1b" not in lines
    assert "\u202e" not in lines
    assert lines.count("a·[2J[bold]b·") > 50


@pytest.mark.parametrize(("state", "said"), [("live", "still goes on"), ("torn", "cut short"), ("finished", "")])
def test_what_is_not_whole_says_so(summary: dict[str, Any], state: str, said: str) -> None:
    lines = text(summary | {"state": state}, 100, terminal=False)
    assert said in lines
    assert (("still goes on" in lines), ("cut short" in lines)) == (state == "live", state == "torn")


def test_a_table_says_how_many_rows_it_leaves_out() -> None:
    assert _and_more(_table("phase", "count"), 12).row_count == 0
    table = _and_more(_table("phase", "count"), 15)
    assert [str(cell) for column in table.columns for cell in column.cells] == ["… 3 more: see --json", ""]


@pytest.mark.parametrize(("every", "scatter", "told"), [(1, 300, 0), (4, 300, 2), (4, 30, 1), (4, 0, 0)])
def test_what_narrows_an_error_is_said_where_it_is_wide(every: int, scatter: int, told: int) -> None:
    """Of 40 steps one in `every` is recorded; told: 1 where the error is, 2 where what narrows it is as well."""
    source = MemorySource()
    source.add("windows", [window(1000 * at, 1000) for at in range(0, 40, every)])
    source.add("steps", [step(at, 1000 * at, 1000, 0, "train") for at in range(40)])
    source.add("kernels", [kernel(1000 * at, 100 + scatter * (at * at % 11) // 5, "comm") for at in range(40)])
    source.add("kernels", [kernel(1000 * at + 800, 100) for at in range(40)])
    lines = " ".join(text(summarise(source), 200, terminal=False).split())
    assert ("± by how recorded steps scatter" in lines, "narrower with more" in lines) == (told > 0, told == 2)
