"""What a model's own words become: ranges with stage, step, layer and micro-batch, and rows of counts."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from time import monotonic_ns
from types import TracebackType
from typing import Any

from .ring import STEP, Ring

STAGES = ("train", "prefill", "decode", "generate")

PHASE_COST_NS = 1_600
BLOB_COST_NS = 9_000
CALL_COST_NS = 25_000
STEP_COST_NS = 2_000
"""What one event is reckoned to cost the target, counted against the budget: a phase, a row, a collective (on the
thread that issues it and the one that executes it), and a look at a step that begins (0.7 us in a loop). The call's was
measured by switching calls off and on within a run of nothing but calls between two ranks: 20 to 22 us of each one's
time, 23 to 40 us of CPU on both threads. Those of phases and rows are older."""


def pack_context(stage: int, step: int) -> int:
    """One word: stage 1.., step plus one; 0 is "not told". A phase adds its layer and micro-batch (`pack_place`)."""
    return stage | (step + 1 & 0xFFFFFFFF) << 32


class _Step:
    __slots__ = ("_number", "_recorder", "_start_ns")

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder, self._number, self._start_ns = recorder, number, 0

    def __enter__(self) -> None:
        self._recorder.set_step(self._number)
        self._start_ns = monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._recorder.ring.record(STEP, "emit", self._start_ns, monotonic_ns() - self._start_ns)


class Recorder:
    """The live side of `moescope.collectors.emit`; one a process."""

    def __init__(self, ring: Ring) -> None:
        self.ring = ring
        self.events_cost_ns = 0
        """Of rows; the ring counts phases and calls."""
        self._calls_before = ring.calls()
        self._packed = ring.rows
        self.steps_from = ""
        self.on_step: Callable[[int], None] | None = None
        """Called on the thread that names a step, before it begins."""
        self._stage = 0
        self._step = -1
        self.phase = ring.phase

    @property
    def step_number(self) -> int:
        """The step that is running, -1 where none was named."""
        return self._step

    def set_step(self, number: int, source: str = "emit") -> None:
        self.steps_from = source
        self._step = number
        self._tell_context()
        if self.on_step is not None:
            self.on_step(number)

    def stage(self, stage: str | None) -> None:
        self._stage = STAGES.index(stage) + 1 if stage in STAGES else 0
        self._tell_context()

    def _tell_context(self) -> None:
        self.ring.context(pack_context(self._stage, self._step))

    def cost_ns(self) -> int:
        """What phases, rows and calls are reckoned to have cost up to now."""
        calls = self.ring.calls() - self._calls_before
        return self.events_cost_ns + self.ring.phases() * PHASE_COST_NS + calls * CALL_COST_NS

    def step(self, step: int) -> AbstractContextManager[None]:
        return _Step(self, step)

    def emit(self, kind: str, row: dict[str, Any]) -> None:
        self.events_cost_ns += BLOB_COST_NS
        packed = self._packed.get(kind)
        if packed is not None and packed(row):
            return
        try:
            self.ring.blob(kind, row)
        except Exception as error:  # noqa: BLE001  fail open: a row that cannot be told is not the model's problem
            if kind != "log":
                self.log("error", "emit", f"a row of {kind} was not recorded: {error!r}")

    def log(self, level: str, source: str, message: str) -> None:
        """A line for the recording's log."""
        self.emit("log", {"level": level, "source": source, "message": message})
