"""moescope in Python: the page that documents it runs as it stands, and frames hold what the tables and answers do."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import moescope
from moescope.profiler.errors import NoData, UsageProblem
from moescope.profiler.source import open_source
from moescope.profiler.summary.answer import summarise

ROOT = Path(__file__).parents[1]
DLRM = ROOT / "tests/data/param_dlrm_8rank_v100"
A100 = ROOT / "tests/data/hta_ddp_nccl_meta_a100"


@pytest.fixture(scope="module")
def run() -> Any:
    return moescope.open(A100)


def test_the_documented_example_prints_what_the_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    page = (ROOT / "docs/python-api.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == page.count("```python")
    names: dict[str, Any] = {}
    for code, expected in blocks:
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(code, "docs/python-api.md", "exec"), names)
        assert [line.rstrip() for line in out.getvalue().splitlines()] == [
            line.rstrip() for line in expected.splitlines()
        ]


def test_importing_moescope_loads_nothing_heavy() -> None:
    code = "import moescope, sys; print([m for m in ('pyarrow','numpy','pandas','torch','click') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_without_pandas_the_error_names_the_extra_and_arrow_still_works() -> None:
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'pandas': raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        f"import moescope; run = moescope.open({str(A100)!r})\n"
        "print(run.arrow('kernels').num_rows, run.summary()['schema'])\n"
        "try: run.kernels\nexcept ImportError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    rows, message = done.stdout.splitlines()
    assert rows == "3774 1"
    assert "pip install 'moescope[pandas]'" in message


def test_frames_hold_the_tables_to_the_last_digit(run: Any) -> None:
    source = open_source([A100])
    for name in ("kernels", "steps", "phases", "transfers"):
        table, frame = source.table(name), run.table(name)
        assert len(frame) == table.num_rows
        for column in ("start_ns", "dur_ns"):
            assert frame[column].tolist() == table.column(column).to_pylist()
    bytes_known = [value for value in source.table("kernels").column("bytes").to_pylist() if value is not None]
    assert run.kernels["bytes"].dropna().tolist() == bytes_known
    assert run.kernels["bytes"].isna().sum() == len(run.kernels) - len(bytes_known)


def test_kernels_bear_the_classifier_s_word(run: Any) -> None:
    assert set(run.kernels.kind) == {"compute", "comm", "memory"}
    assert run.kernels.operator.notna().all()
    assert isinstance(run.arrow("kernels"), pa.Table)


def test_answers_are_those_of_the_commands(run: Any) -> None:
    expected = summarise(open_source([A100]))
    assert run.summary() == expected
    assert run.findings().to_dict("records") == expected["findings"]
    (device,) = run.overlap().to_dict("records")
    assert device["comm_us"] == expected["ranks"][0]["comm_us"] == 46876.493
    operators = run.overlap(by="operator")
    assert operators.total_us.sum() == pytest.approx(sum(one["total_us"] for one in expected["ranks"][0]["operators"]))
    assert "Phases" in run.text()
    assert run.timeline().comm_us.sum() == pytest.approx(46876.493)


def test_what_a_run_does_not_tell_gives_empty_frames_with_their_columns(run: Any) -> None:
    assert run.traffic().columns.tolist() == ["src", "dst", "hop", "transfers", "bytes"]
    assert len(run.collectives()) == 0
    assert "wait_us" in run.collectives()
    assert len(run.stragglers()) == 0
    assert run.overlap(by="layer").columns.tolist()[:2] == ["rank", "device"]
    assert (run.ranks, run.name, run.experts.empty) == ([0], "nccl_data.json.gz", True)


def test_mistakes_are_named(run: Any, tmp_path: Path) -> None:
    with pytest.raises(AttributeError, match="kernles"):
        _ = run.kernles
    with pytest.raises(UsageProblem, match="no table 'kernles'"):
        run.arrow("kernles")
    with pytest.raises(UsageProblem, match="'layers'"):
        run.overlap(by="layers")
    with pytest.raises(UsageProblem, match="no such file"):
        moescope.open(tmp_path / "gone")
    with pytest.raises(NoData):
        moescope.open(tmp_path)
    assert "kernels" in dir(run)
    assert repr(run) == "<moescope run nccl_data.json.gz: trace, 1 traces>"


def test_collectives_of_a_frame_add_up_to_the_answer() -> None:
    run = moescope.open(DLRM)
    frame, answer = run.collectives(), run.summary()["collectives"]
    assert frame.wait_us.sum() == pytest.approx(answer["wait_us"])
    assert frame.groupby(["group", "number"]).transfer_us.first().sum() == pytest.approx(answer["transfer_us"])
    assert (frame.groupby(["group", "number"])["last"].sum() == 1).all()
    assert run.clocks().offset_us.tolist() == pytest.approx(
        [rank["offset_us"] for rank in run.summary()["clock_alignment"]["ranks"]], abs=0.001
    )
