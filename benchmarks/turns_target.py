"""One rank of a run that takes turns with several schedules: the same process, the same ranks, a few steps each.

turns_target.py FOLDER STAGE --schedules serial overlapped --rounds 20 --steps 4 [--accumulate 2] [--nodes 2]

Writes FOLDER/rank-<r>.json: the steps of every turn in order, how long each took and how much of it the computing
thread waited for an exchange, ns; and the largest resident size of the process, bytes.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

import torch

from moescope.collectors import emit
from moescope.instrumented_model.config import size
from moescope.instrumented_model.inference.steps import decode, prefill
from moescope.instrumented_model.layers.model import Model
from moescope.instrumented_model.parallel.exchange import Arrived, Exchange, Handle, Plan, Rows
from moescope.instrumented_model.parallel.link import DEFAULT_INTRA_LINK, DEFAULT_LINK, parse_link
from moescope.instrumented_model.parallel.open import open_exchange
from moescope.instrumented_model.parallel.ranks import joined, world
from moescope.instrumented_model.schedules.order import SCHEDULES, Schedule
from moescope.instrumented_model.training.recipe import Recipe
from moescope.instrumented_model.training.train import Trainer

T = TypeVar("T")


class Watch:
    """How long the computing thread has waited for dispatches and combines, ns."""

    def __init__(self) -> None:
        self.waited_ns = 0

    def taken(self) -> int:
        """Since the last call."""
        taken, self.waited_ns = self.waited_ns, 0
        return taken


class WatchedHandle(Handle[T]):
    def __init__(self, handle: Handle[T], watch: Watch) -> None:
        self._handle, self._watch = handle, watch

    def wait(self) -> None:
        start_ns = time.perf_counter_ns()
        self._handle.wait()
        self._watch.waited_ns += time.perf_counter_ns() - start_ns

    def done(self) -> bool:
        return self._handle.done()

    def result(self) -> T:
        self.wait()
        return self._handle.result()


class WatchedExchange(Exchange):
    """Another exchange, whose waiting is timed."""

    def __init__(self, exchange: Exchange, watch: Watch) -> None:
        self._exchange, self._watch = exchange, watch

    def dispatch(self, x: torch.Tensor, plan: Plan, **told: Any) -> Handle[Arrived]:
        return WatchedHandle(self._exchange.dispatch(x, plan, **told), self._watch)

    def dispatch_again(self, x: torch.Tensor, arrived: Arrived, **told: Any) -> Handle[Rows]:
        return WatchedHandle(self._exchange.dispatch_again(x, arrived, **told), self._watch)

    def combine(self, rows: torch.Tensor, arrived: Arrived, **told: Any) -> Handle[torch.Tensor]:
        return WatchedHandle(self._exchange.combine(rows, arrived, **told), self._watch)

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, **told: Any
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        return WatchedHandle(self._exchange.combine_gradients(rows, gates, arrived, **told), self._watch)

    def run(self, job: Callable[[], None]) -> Future[None]:
        return self._exchange.run(job)

    def close(self) -> None:
        self._exchange.close()


Turn = Callable[[Schedule, int], Iterator[int]]
"""Takes so many steps by a schedule; yields the ns of each."""


def training(model: Model, exchange: Exchange, accumulate: int) -> Turn:
    trainer = Trainer(model, exchange, Recipe(accumulate=accumulate))

    def turn(schedule: Schedule, steps: int) -> Iterator[int]:
        emit.stage("train")
        trainer.schedule = schedule
        for _ in range(steps):
            yield trainer.run_step().dur_ns

    return turn


def inference(model: Model, exchange: Exchange, stage: str) -> Turn:
    run = prefill if stage == "prefill" else decode

    def turn(schedule: Schedule, steps: int) -> Iterator[int]:
        for step in run(model, exchange, steps=steps, schedule=schedule, seed=0):
            yield step.dur_ns

    return turn


def turns(turn: Turn, watch: Watch, schedules: list[Schedule], rounds: int, steps: int) -> list[dict[str, Any]]:
    """Every schedule in every round, forward in one and backward in the next; the first round, 0, warms up."""
    found = []
    for number in range(rounds + 1):
        for schedule in schedules if number % 2 else schedules[::-1]:
            step_ns, waited_ns = [], []
            taking = turn(schedule, steps)
            for _ in range(steps):
                watch.taken()  # what decode's own prefill waited is of no step
                step_ns.append(next(taking))
                waited_ns.append(watch.taken())
            found.append({"round": number, "schedule": schedule, "step_ns": step_ns, "waited_ns": waited_ns})
    return found


def main() -> None:
    """The ranks must be started by torchrun."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("stage", choices=["train", "prefill", "decode"])
    parser.add_argument("--schedules", nargs="+", choices=list(SCHEDULES), required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--nodes", type=int, default=1)
    a = parser.parse_args()
    ranks, watch, c = world(a.nodes), Watch(), size("tiny")
    with joined(ranks, 120.0):
        links = parse_link(DEFAULT_LINK), parse_link(DEFAULT_INTRA_LINK)
        exchange = WatchedExchange(open_exchange(c, ranks, *links), watch)
        model = Model(c, rank=ranks.rank, ranks=ranks.count, nodes=ranks.nodes, seed=0)
        turn = training(model, exchange, a.accumulate) if a.stage == "train" else inference(model, exchange, a.stage)
        found = turns(turn, watch, a.schedules, a.rounds, a.steps)
        exchange.close()
        del model, turn
    peak_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    told = {"turns": found, "peak_bytes": peak_bytes}
    (a.folder / f"rank-{ranks.rank}.json").write_text(json.dumps(told))


if __name__ == "__main__":
    main()
