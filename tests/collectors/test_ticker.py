"""When the recorder wakes up: at its time, at once where a file tells, and not for one that tells nothing any more."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from moescope.collectors.sidecar.run import _Ticker

LONG_S = 30.0


class Ticks:
    """A keeper that says when it is due, and counts."""

    def __init__(self, due: tuple[float, list[int]]) -> None:
        self.due, self.count = due, 0

    def call(self, action: Any, otherwise: Any) -> Any:
        return action(self)

    def warm_up(self) -> None: ...

    def next_tick(self) -> tuple[float, list[int]]:
        return self.due

    def tick(self) -> None:
        self.count += 1


@pytest.fixture
def pipe() -> Iterator[list[int]]:
    ends = list(os.pipe())
    yield ends
    for end in ends:
        os.close(end)


def ticks(keeper: Ticks, during: Any = lambda: None) -> int:
    """How often it ticks in a moment."""
    recording: Any = keeper
    with _Ticker(recording, yields=False):
        during()
        time.sleep(0.3)
    return keeper.count


def test_it_sleeps_until_something_is_due_and_ends_at_once() -> None:
    before = time.monotonic()
    assert ticks(Ticks((LONG_S, []))) == 0
    assert time.monotonic() - before < LONG_S / 2
    assert ticks(Ticks((0.02, []))) >= 2


def test_a_file_wakes_it(pipe: list[int]) -> None:
    keeper = Ticks((LONG_S, pipe[:1]))

    def tell() -> None:
        os.write(pipe[1], b".")

    def tick() -> None:
        keeper.count += 1
        os.read(pipe[0], 1)

    keeper.tick = tick  # type: ignore[method-assign]
    assert ticks(keeper, tell) == 1


def test_a_file_that_has_ended_wakes_it_once(pipe: list[int]) -> None:
    keeper = Ticks((LONG_S, pipe[:1]))
    os.close(pipe.pop())  # nobody can write any more
    assert ticks(keeper) == 1
