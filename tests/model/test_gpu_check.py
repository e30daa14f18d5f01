"""`make gpu-check` says in one line that there is no GPU, and its table leaves out nothing that failed."""

from __future__ import annotations

import re

import pytest

pytest.importorskip("torch")

from benchmarks import gpu_check
from moescope.instrumented_model.kernels import why_not


@pytest.mark.skipif(why_not() is None, reason="there is a GPU")
def test_without_a_gpu_it_says_so_and_ends_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main([]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"gpu-check: there is no GPU to check: .+; run it on a machine with a Hopper GPU\n", err)


def test_a_part_that_breaks_or_hangs_costs_its_own_figures_and_is_told() -> None:
    outcome = gpu_check.Outcome()
    figure = '{"section": "peaks", "name": "copy", "value": 2945.4, "unit": "GB/s", "short": true}'
    said = gpu_check._ran("peaks", ["-c", f"print('{figure}'); raise SystemExit('out of memory')"], 60, outcome)
    outcome.figures += gpu_check.figures_in(said + '{"section": "pe')
    gpu_check._ran("records", ["-c", ""], 1, outcome)
    outcome.tests = {"tests": 5, "failures": 1, "errors": 0, "skipped": 2}
    assert [re.split(r"\s{2,}", line) for line in gpu_check.table(outcome).splitlines()] == [
        ["tests", "passed", "2", "of 5"],
        ["peaks", "copy", "2,945", "GB/s"],
        ["FAILED peaks: exit code 1: out of memory"],
        ["FAILED records: left out: the time was up"],
    ]
