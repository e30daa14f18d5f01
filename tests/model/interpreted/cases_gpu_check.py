"""What `make gpu-check` measures runs through, on small shapes: where there is no GPU, this is all that can be held."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import pytest
import torch

from benchmarks.gpu_sections import SECTIONS
from benchmarks.gpu_timing import Bench


@pytest.mark.parametrize("section", [name for name in SECTIONS if name not in ("stack", "recorder")])
def test_a_section_gives_figures(section: str) -> None:
    figures = list(SECTIONS[section](Bench(torch.device("cpu"))))
    assert any(figure.short for figure in figures)
    assert len({figure.name for figure in figures}) == len(figures)
    for figure in figures:
        assert json.loads(json.dumps(asdict(figure))) == asdict(figure)
        if figure.value is None:
            assert "needs a GPU" in figure.unit
        else:
            assert math.isfinite(figure.value)
