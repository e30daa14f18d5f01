"""`moescope whatif` as a user calls it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from moescope.profiler.commands.main import main
from moescope.profiler.errors import MoescopeError
from moescope.profiler.whatif.project import project
from tests.whatif.runs import gpu, source_of

DATA = Path(__file__).parents[1] / "data"
A100 = DATA / "hta_ddp_nccl_meta_a100"
B300 = DATA / "tracelens_sglang_moe_decode_b300"
Called = tuple[Any, str, str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Called]:
    def call(*args: object) -> Called:
        with pytest.raises(SystemExit) as caught:
            main([str(arg) for arg in args])
        out, err = capsys.readouterr()
        return caught.value.code, out, err

    return call


def _every_null_has_a_reason(value: Any) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            assert item is not None or value[f"{key}_reason"], key
            _every_null_has_a_reason(item)
    elif isinstance(value, list):
        for item in value:
            _every_null_has_a_reason(item)


@pytest.mark.parametrize("trace", [A100, B300])
def test_json_tells_bounds_assumptions_and_a_reason_for_every_null(run: Callable[..., Called], trace: Path) -> None:
    code, out, err = run("whatif", trace, "--json", "--comm-sms", 4, "--comm-sms", 16, "--link-factor", 3)
    assert (code, err) == (0, "")
    answer = json.loads(out)
    _every_null_has_a_reason(answer)
    assert answer["evidence"] == "modelled"
    by_id = {one["id"]: one for one in answer["scenarios"]}
    assert {"perfect-overlap", "comm-off-sms", "comm-sms-4", "comm-sms-16", "link-x3"} <= set(by_id)
    for one in by_id.values():
        if one["projected"]:
            assert one["assumed"]
            assert one["evidence"] == "modelled"
            shares = one["projected"]["gain_share"]
            assert shares["low"] <= shares["estimate"] <= shares["high"]
    assert (by_id["perfect-overlap"]["projected"] is None) == (trace == B300)


def test_text_is_plain_and_leads_on(run: Callable[..., Called]) -> None:
    code, out, err = run("whatif", A100)
    assert code == 0
    assert "\x1b" not in out
    assert "[modelled]" in out.splitlines()[0]
    assert "perfect overlap" in out
    assert "must not be added up" in out
    assert err == f"moescope: next: moescope summary {A100}\n"
    assert "nothing to hide" in run("whatif", B300)[1]


@pytest.mark.parametrize(
    "wrong", [("--comm-sms", "0"), ("--comm-sms", "many"), ("--link-factor", "0"), ("--link-factor", "nan")]
)
def test_numbers_that_make_no_sense_are_refused(run: Callable[..., Called], wrong: tuple[str, str]) -> None:
    code, out, err = run("whatif", A100, *wrong)
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert wrong[0] in err


def test_times_that_no_run_has_are_told_and_not_counted_over() -> None:
    source = source_of(gpu(0, 1), gpu(1, 2) | {"start_ns": 1 << 61})
    with pytest.raises(MoescopeError, match="36 years apart"):
        project(source)


def test_a_source_without_kernels_is_no_data(run: Callable[..., Called], tmp_path: Path) -> None:
    (tmp_path / "rec").mkdir()
    (tmp_path / "rec" / "meta.json").write_text('{"state": "finished"}')
    (tmp_path / "nothing").mkdir()
    for source in (tmp_path / "rec", tmp_path / "nothing"):
        code, out, err = run("whatif", source)
        assert (code, out) == (3, "")
        assert str(source.name) in err
