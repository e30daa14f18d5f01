"""`moescope compare` as a user and a CI job call it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from moescope.profiler.commands.main import main
from moescope.profiler.compare.differences import compare
from moescope.profiler.compare.text import render_comparison
from tests.compare.runs import summary

DATA = Path(__file__).parents[1] / "data"
DDP = DATA / "hta_ddp_nccl_meta_a100"
DECODE = DATA / "tracelens_sglang_moe_decode_b300"
Called = tuple[Any, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def call(*args: object) -> Called:
        with pytest.raises(SystemExit) as caught:
            main(["compare", *map(str, args)])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


@pytest.fixture(scope="module")
def sides(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sides")
    paths = folder / "a.json", folder / "b.json"
    for path, exposed in zip(paths, (20, 30), strict=True):
        path.write_text(json.dumps(summary([(60, exposed, 20)] * 5)))
    return paths


def test_exit_codes_tell_what_became_of_the_thresholds(run: Callable[..., Called], sides: tuple[Path, Path]) -> None:
    assert run(*sides)[0] == 0
    assert run(*sides, "--fail-if", "exposed>+60%")[0] == 0
    code, out, err = run(*sides, "--fail-if", "exposed>+1%", "--fail-if", "step>+50%")
    assert code == 4
    assert "FAILED exposed>+1%" in err
    assert "FAILED exposed>+1%" in out
    assert "passed step>+50%" in out
    assert "step>" not in err
    code, _, err = run(*sides, "--fail-if", "phase:zzz>+1%")
    assert code == 3
    assert "dispatch(F)" in err
    code, out, err = run(*sides, "--fail-if", "exposed+1%")
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1
    assert run(sides[0], "/no/such/thing")[0] == 2


def test_a_real_trace_against_itself_differs_in_nothing(run: Callable[..., Called]) -> None:
    code, out, err = run(DDP, DDP, "--json", "--fail-if", "exposed>+0%", "--fail-if", "overlap<-0pp")
    answer = json.loads(out)
    assert (code, err) == (0, "")
    rows = [*answer["figures"], *answer["phases"], *answer["operators"]]
    assert len(rows) > 20
    assert all(row["change_us"] == 0 for row in rows)


def test_every_null_has_its_reason_and_names_cannot_disturb_a_terminal(
    run: Callable[..., Called], sides: tuple[Path, Path], tmp_path: Path
) -> None:
    def check(value: Any) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert item is not None or value[f"{key}_reason"], key
                check(item)
        elif isinstance(value, list):
            for item in value:
                check(item)

    check(json.loads(run(*sides, "--json")[1]))
    check(json.loads(run(DDP, DECODE, "--json")[1]))
    hostile = json.loads(sides[0].read_text())
    hostile["source"] = "a\x1b[2J"
    hostile["steps"]["typical"]["phases"][0]["name"] = "[red]x\x1b]0;t\x07"
    (tmp_path / "h.json").write_text(json.dumps(hostile))
    code, out, _ = run(tmp_path / "h.json", sides[1])
    assert code == 0
    assert "\x1b" not in out
    assert "\x07" not in out
    assert "[red]x" in out


def test_different_devices_are_said_aloud(run: Callable[..., Called]) -> None:
    code, out, _ = run(DDP, DECODE)
    assert code == 0
    assert "WARNING: not comparable, different devices: A100 SXM 40GB and B300" in out
    assert (
        "%" not in next(line for line in out.splitlines() if line.startswith("compute ")).split("–")[0].split("ms")[1]
    )


def test_decode_steps_that_the_summary_finds_are_compared_where_none_are_told(run: Callable[..., Called]) -> None:
    code, out, _ = run(DECODE, DECODE, "--json", "--fail-if", "step>+1%", "--fail-if", "step<7ms")
    step = next(row for row in json.loads(out)["figures"] if row["name"] == "step")
    assert code == 0
    assert (round(step["a_us"], 2), step["change_us"]) == (7505.11, 0)


@pytest.mark.parametrize("width", [60, 80, 120])
def test_names_stand_whole_on_terminals_of_any_width(sides: tuple[Path, Path], width: int) -> None:
    file = io.StringIO()
    found = compare(*(json.loads(path.read_text()) for path in sides))
    render_comparison(found, [], Console(file=file, width=width, force_terminal=True, color_system=None))
    lines = file.getvalue().splitlines()
    assert all(len(line.rstrip()) <= width for line in lines)
    for name in ("dispatch(F) ", "all_to_all ", "exposed comm "):
        assert any(line.startswith(name) and "+10.0 µs" in line for line in lines)
