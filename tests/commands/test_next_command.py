"""Every command ends with what to type next, on stderr, and never where a program reads."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moescope.collectors.calibrate import _machine, peaks_file
from moescope.collectors.doctor import Check
from moescope.profiler.classify.classifier import use_rules
from moescope.profiler.commands import doctor
from moescope.profiler.commands.following import words
from moescope.profiler.commands.main import COMMANDS, main
from moescope.profiler.errors import NoData
from moescope.profiler.summary.answer import summarise
from tests.live_recording import MemorySource, step

DATA = Path(__file__).parents[1] / "data"
TRACE = DATA / "tracelens_sglang_moe_decode_b300"
Called = tuple[Any, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def call(*args: object) -> Called:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


def _next(err: str) -> list[str]:
    start = "moescope: next: "
    last = err.splitlines()[-1]
    assert last.startswith(start)
    return shlex.split(last.removeprefix(start))


def test_what_is_read_leads_to_the_dashboard_and_what_is_imported_to_its_summary(
    run: Callable[..., Called], tmp_path: Path
) -> None:
    rules = tmp_path / "my rules.toml"
    rules.write_text('[[rule]]\nname = "r"\npattern = "q"\nkind = "comm"\noperator = "p2p"\nreason = "so"\n')
    try:
        told = _next(run("summary", TRACE, "--rules", rules)[2])
    finally:
        use_rules([])
    assert told == ["moescope", "top", str(TRACE), "--rules", str(rules)]
    code, out, err = run("import", TRACE, "-o", tmp_path / "a recording")
    assert (code, out) == (0, f"{tmp_path / 'a recording'}\n")
    assert _next(err) == ["moescope", "summary", str(tmp_path / "a recording")]
    assert run(*_next(err)[1:])[0] == 0


def test_what_is_exported_can_be_looked_at_as_told(run: Callable[..., Called], tmp_path: Path) -> None:
    _, out, err = run("export", TRACE, "--to", "csv", "-o", tmp_path / "its csv")
    assert all(Path(line).is_file() for line in out.splitlines())
    told = _next(err)
    assert told[told.index("-t") + 1] == str(tmp_path / "its csv" / "overlap.csv")


def test_json_is_for_programs_and_has_nothing_below_it(run: Callable[..., Called]) -> None:
    for args in (("summary", TRACE), ("explain", "zzz")):
        assert run(*args, "--json")[2] == ""


def test_a_kernel_that_no_rule_knows_leads_to_a_rule_and_a_known_one_to_nothing(run: Callable[..., Called]) -> None:
    assert _next(run("explain", "zzz mystery")[2])[:3] == ["moescope", "explain", "zzz mystery"]
    assert run("explain", "ncclDevKernel_AllReduce")[2] == ""


@pytest.mark.parametrize(
    ("operators", "calibrated", "told"),
    [("missing", False, "run"), ("fallback", False, "calibrate"), ("ok", True, "demo")],
)
def test_doctor_leads_to_what_this_machine_still_lacks(operators: Any, calibrated: bool, told: str) -> None:
    peaks_file().unlink(missing_ok=True)
    if calibrated:
        peaks_file().parent.mkdir(parents=True, exist_ok=True)
        peaks_file().write_text(json.dumps({"machine": _machine(), "peaks": {}}))
    try:
        assert doctor._next([Check("operators", operators, "–")]).split()[1] == told
    finally:
        peaks_file().unlink(missing_ok=True)


def test_the_next_command_comes_below_the_results_and_disturbs_no_terminal() -> None:
    code = "from moescope.profiler.commands.following import say_next; print('result'); say_next('a\\x1b[2J b')"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.stdout == "result\nmoescope: next: a·[2J b\n"
    assert shlex.split(words([Path("a b"), Path("c")], Path("d'e"))) == ["a b", "c", "--rules", "d'e"]


@pytest.mark.parametrize("form", ["parquet", "perfetto", "html"])
def test_a_format_that_is_planned_says_so_and_a_mistyped_one_names_those_that_are_there(
    run: Callable[..., Called], form: str, tmp_path: Path
) -> None:
    code, out, err = run("export", TRACE, "--to", form, "-o", tmp_path / "x")
    assert (code, out) == (2, "")
    assert f"--to {form} is not built yet" in err
    assert not (tmp_path / "x").exists()
    assert "'csv'" in run("export", TRACE, "--to", form + "x")[2]


def test_help_lists_what_there_is_and_nothing_else(run: Callable[..., Called]) -> None:
    code, out, _ = run("--help")
    assert code == 0
    listed = [name for room in COMMANDS.values() for name in room]
    assert all(f"\n  {name} " in out for name in listed)
    for planned in ("parquet", "perfetto"):
        assert planned not in out + run("export", "--help")[1]
    for name in listed:
        code, out, _ = run(name, "--help")
        assert (code, "Options:" in out) == (0, True)
        assert " TEXT " not in out


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"collect": ["phases", "units"], "steps": "", "ranks": ""}, "--collect phases,units"),
        ({"collect": ["kernels"], "steps": "90:99", "ranks": ""}, "--steps 90:99"),
        ({"collect": ["kernels"], "steps": "", "ranks": "7"}, "--ranks 7"),
        (None, "moescope doctor"),
    ],
)
def test_a_recording_without_kernels_names_the_option_that_kept_them_out(options: Any, named: str) -> None:
    source = MemorySource(meta={"options": options} if options else None).add("steps", [step(0, 0, 10)])
    with pytest.raises(NoData, match=named):
        summarise(source)
