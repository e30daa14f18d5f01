"""An exchange on a stream of its own: nothing is read before it is there, nor overwritten while it is used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import size  # noqa: E402
from moescope.instrumented_model.inference.steps import decode, prefill  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Pending  # noqa: E402
from moescope.instrumented_model.parallel.lane import Aside, Lane, lane_for  # noqa: E402
from moescope.instrumented_model.parallel.virtual import VirtualExchange  # noqa: E402
from moescope.instrumented_model.schedules.order import Schedule  # noqa: E402
from moescope.instrumented_model.training.recipe import Recipe  # noqa: E402
from moescope.instrumented_model.training.train import Trainer  # noqa: E402
from tests.model.other_device import DEVICE, OtherDevice, watched  # noqa: E402
from tests.model.stream_order import Race, Streams  # noqa: E402

C = replace(
    size("tiny"), name="test", layers=2, dense_layers=0, d=96, heads=2, d_latent=32, d_query_latent=48, d_expert=40,
    mtp_depth=1, sequence_length=8, decode_sequences=3,
)  # fmt: skip


def _figures(device: torch.device | str, schedule: Schedule, lane: Lane | None) -> list[torch.Tensor]:
    """Losses and weights of training, logits of prefill and decode, on two virtual ranks."""
    exchange = VirtualExchange(C, 2, lane=lane)
    model = Model(C, seed=1).to(device)
    trainer = Trainer(model, exchange, Recipe(), schedule=schedule)
    found = [torch.tensor(trainer.run_step().loss)]
    trainer.close()
    found += [p.detach().cpu() for p in model.parameters()]
    for steps in (prefill(model, exchange, steps=1, schedule=schedule, seed=1),
                  decode(model, exchange, steps=1, schedule=schedule, seed=1)):  # fmt: skip
        found += [logits.cpu() for step in steps for logits in step.logits]
    return found


def _watched(schedule: Schedule, lane: Callable[[Streams], Lane]) -> tuple[list[torch.Tensor], int]:
    """The same figures from the other device, and how many operations ran beside the exchange."""
    streams = Streams()
    with OtherDevice(), watched(streams):
        return _figures(DEVICE, schedule, lane(streams)), streams.beside


@lru_cache
def _beside(schedule: Schedule) -> tuple[list[torch.Tensor], int]:
    return _watched(schedule, lambda streams: Aside(DEVICE, streams))


@pytest.mark.parametrize("schedule", ["serial", "overlapped", "interleaved"])
def test_beside_computation_an_exchange_gives_the_same_bits_and_all_memory_is_used_in_order(
    schedule: Schedule,
) -> None:
    want = _figures("cpu", schedule, None)
    got, _ = _beside(schedule)
    assert len(want) > 20
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_two_micro_batches_compute_beside_each_other_s_exchange_and_one_after_the_other_does_not() -> None:
    _, serial = _beside("serial")
    _, overlapped = _beside("overlapped")
    # Where each exchange is waited for at once, only what prepares it runs beside the copy of the counts before it.
    assert overlapped > 3 * serial


class _Broken(Aside):
    """Exchanges of one kind go wrong: 0 dispatch, 1 combine."""

    goes_wrong = 0

    def _wrong(self, used: tuple[Any, ...]) -> bool:
        """By what is read: rows, their scales and sources; sums and slots; of counts there is one."""
        return len(used) == 3 - self.goes_wrong


class _BeginsTooSoon(_Broken):
    """Its stream does not wait for what the exchange reads."""

    def begin(self, work: Callable[[], Any], *used: torch.Tensor | None) -> Pending[Any]:
        if not self._wrong(used):
            return super().begin(work, *used)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self._stream, "wait_stream", lambda other: None)
            return super().begin(work, *used)


class _EndsUnseen(_Broken):
    """Nobody waits for it."""

    def begin(self, work: Callable[[], Any], *used: torch.Tensor | None) -> Pending[Any]:
        pending = super().begin(work, *used)
        if self._wrong(used):
            pending.result = lambda: pending._value  # type: ignore[attr-defined,method-assign]
        return pending


class _ForgetsWhatItReads(_Broken):
    """Memory that it reads may be given to somebody else meanwhile."""

    def begin(self, work: Callable[[], Any], *used: torch.Tensor | None) -> Pending[Any]:
        return super().begin(work) if self._wrong(used) else super().begin(work, *used)


class _CountsTooSoon(Aside):
    """Counts are read before they are there."""

    def to_host(self, values: torch.Tensor) -> Callable[[], list[int]]:
        there = torch.empty(values.shape, dtype=values.dtype)
        self.begin(lambda: there.copy_(values, non_blocking=True), values)
        return lambda: there.tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("goes_wrong", [0, 1], ids=["dispatch", "combine"])
@pytest.mark.parametrize("lane", [_BeginsTooSoon, _EndsUnseen, _ForgetsWhatItReads])
def test_a_lane_that_leaves_out_a_wait_is_found_out(
    monkeypatch: pytest.MonkeyPatch, lane: type[_Broken], goes_wrong: int
) -> None:
    monkeypatch.setattr(_Broken, "goes_wrong", goes_wrong)
    with pytest.raises(Race):
        _watched("overlapped", lambda streams: lane(DEVICE, streams))


def test_what_nobody_has_waited_for_is_kept_until_somebody_does() -> None:
    """A pass that ends in the middle leaves exchanges under way: their memory is used by nobody before they end."""
    streams = Streams()
    with OtherDevice(), watched(streams):
        lane = Aside(DEVICE, streams)

        def abandoned() -> None:
            given = torch.ones(4, device=DEVICE)
            lane.begin(lambda: given + 1, given)

        abandoned()
        torch.zeros(4, device=DEVICE)  # may be given the same memory

        def fails() -> None:
            torch.ones(4, device=DEVICE)
            raise RuntimeError("out of memory")

        with pytest.raises(RuntimeError):
            lane.begin(fails)
        assert not streams.ahead("main")


def test_counts_that_are_not_waited_for_are_no_counts() -> None:
    with pytest.raises(ValueError, match="do not share out"):
        _watched("overlapped", lambda streams: _CountsTooSoon(DEVICE, streams))


def test_on_a_cpu_an_exchange_runs_in_its_turn() -> None:
    pending = lane_for(torch.device("cpu")).begin(lambda: 3)
    assert pending.done()
    assert pending.result() == 3
