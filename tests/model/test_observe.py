"""Which of the model's quantisations are counted for a profiler."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from moescope.instrumented_model import observe

CALLS = 174


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Tensors whose quantisation was counted, in order."""
    found: list[str] = []
    none: Any = SimpleNamespace(amax=0, scale_min=0, scale_max=0, saturated=0, flushed=0, nonfinite=0, elements=0)
    monkeypatch.setattr(observe, "_METER", observe._Meter())
    monkeypatch.setattr(observe, "counts", lambda *_: none)
    monkeypatch.setattr(observe, "format_name", lambda _: "e4m3 1x128")
    monkeypatch.setattr(observe.emit, "active", lambda: True)
    monkeypatch.setattr(observe.emit, "quantisation", lambda *, tensor, **_: found.append(tensor))
    return found


def step(number: int) -> None:
    anything: Any = None
    observe.sample(number)
    for call in range(CALLS):
        observe.quantised(str(call), torch.empty(0), anything)


@pytest.mark.parametrize("first", [0, 1000])
def test_all_are_counted_in_a_first_step_and_each_in_its_turn_afterwards(counted: list[str], first: int) -> None:
    step(first)
    assert counted == [str(call) for call in range(CALLS)]
    counted.clear()
    most = 0
    for number in range(first + 1, first + 1 + observe.SAMPLE_EVERY):
        before = len(counted)
        step(number)
        most = max(most, len(counted) - before)
    assert most == 1
    assert Counter(counted) == Counter(str(call) for call in range(CALLS))


def test_nothing_is_counted_where_nobody_listens(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe.emit, "active", lambda: False)
    step(0)
    assert counted == []
