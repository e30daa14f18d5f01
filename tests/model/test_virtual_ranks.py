"""Virtual ranks in one process compute what a plain exchange does, and what a rank alone does but for rounding."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, TypeVar, cast

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.__main__ import main  # noqa: E402
from moescope.instrumented_model.config import Config, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.numerics.quantise import Quantised  # noqa: E402
from moescope.instrumented_model.parallel.exchange import (  # noqa: E402
    Arrived,
    Exchange,
    Handle,
    Plan,
    Rows,
    finished,
)
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.parallel.virtual import VirtualExchange  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402
from moescope.instrumented_model.training.train import gradients  # noqa: E402
from tests.model.interpreted import plain  # noqa: E402

SMALL = replace(size("tiny"), name="test", d=136, d_expert=72, layers=1, sequence_length=16)


def _gradients(c: Config, exchange: Exchange) -> dict[str, torch.Tensor]:
    model = Model(c, seed=3)
    tokens, targets = data.batch(data.corpus(), step=0, rank=0, micro_batch=0, sequences=1, positions=16, seed=1)
    gradients(model, exchange, [MicroBatch(0, tokens, targets)], "serial")
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


class PlainExchange(Exchange):
    """Row by row, from the definition: copies quantised at the source, each expert's row rounded to BF16 on its way
    back, their sum in the order of the token's choices, rounded to BF16 again.
    """

    def __init__(self, c: Config) -> None:
        self.c = c

    def dispatch(self, x: torch.Tensor, plan: Plan, **_: Any) -> Handle[Arrived]:
        way = [
            (t, k)
            for expert in range(self.c.experts)
            for t, chosen in enumerate(plan.slots.tolist())
            for k, e in enumerate(chosen)
            if e == expert
        ]
        counts = [int((plan.slots == expert).sum()) for expert in range(self.c.experts)]
        gates = torch.stack([plan.gates[t, k] for t, k in way])
        return _done(Arrived(self._copies(x, way), gates, tuple(counts), way))

    def dispatch_again(self, x: torch.Tensor, arrived: Arrived, **_: Any) -> Handle[Rows]:
        return _done(self._copies(x, arrived.way))

    def _copies(self, x: torch.Tensor, way: list[tuple[int, int]]) -> Rows:
        source = [t for t, _ in way]
        if not self.c.fp8:
            return x[source].bfloat16().float()
        q, scale = plain.tiles(x, True)
        return Quantised(q[source].to(plain.E4M3), scale[source], 1)

    def combine(self, rows: torch.Tensor, arrived: Arrived, **_: Any) -> Handle[torch.Tensor]:
        row = {pair: i for i, pair in enumerate(arrived.way)}
        tokens = max(t for t, _ in row) + 1
        sums = torch.zeros(tokens, self.c.d)
        for t in range(tokens):
            for k in range(self.c.top_k):
                sums[t] += rows[row[t, k]].bfloat16().float()
        return _done(sums.bfloat16().float())

    def combine_gradients(
        self, rows: torch.Tensor, gates: torch.Tensor, arrived: Arrived, **_: Any
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        sums = self.combine(rows, arrived).result()
        of_gates = torch.zeros(len(sums), self.c.top_k)
        for i, (t, k) in enumerate(arrived.way):
            of_gates[t, k] = gates[i]
        return _done((sums, of_gates))

    def run(self, job: Callable[[], None]) -> Future[None]:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


T = TypeVar("T")


def _done(value: T) -> Handle[T]:
    return Handle(finished(value), lambda result: result)


@pytest.mark.parametrize("fp8", [True, False])
def test_four_virtual_ranks_compute_the_plain_exchange_s_gradients_to_the_bit(fp8: bool) -> None:
    c = replace(SMALL, fp8=fp8)
    want, got = _gradients(c, PlainExchange(c)), _gradients(c, VirtualExchange(c, 4))
    assert got.keys() == want.keys()
    for name, gradient in got.items():
        assert torch.equal(gradient, want[name]), name


class Rounding:
    """An exchange whose experts' rows are moved by as much as rounding to BF16 may, at random."""

    HALF_STEP = 2.0**-8  # of 8 significant bits, at most, of the value

    def __init__(self, exchange: Exchange, seed: int) -> None:
        self._exchange, self._generator = exchange, torch.Generator().manual_seed(seed)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._exchange, name)

    def _moved(self, rows: torch.Tensor) -> torch.Tensor:
        return rows * (1 + self.HALF_STEP * (2 * torch.rand(rows.shape, generator=self._generator) - 1))

    def combine(self, rows: torch.Tensor, *rest: Any, **where: Any) -> Handle[torch.Tensor]:
        return self._exchange.combine(self._moved(rows), *rest, **where)

    def combine_gradients(
        self, rows: torch.Tensor, *rest: Any, **where: Any
    ) -> Handle[tuple[torch.Tensor, torch.Tensor]]:
        return self._exchange.combine_gradients(self._moved(rows), *rest, **where)


@pytest.mark.parametrize("fp8", [True, False])
def test_virtual_ranks_differ_from_one_rank_as_much_as_rounding_each_row_does(fp8: bool) -> None:
    """A rank alone adds an expert's rows up in FP32 and rounds the sum; virtual ranks round each row as well.

    What such a rounding does to a gradient is found by doing it: E4M3 makes whole steps of it, so a bound from the
    formats alone would have to know how often a value crosses from one step to the next.
    """
    c = replace(SMALL, fp8=fp8)
    one = open_exchange(c, Ranks(0, 1), NO_LINK)
    want, got = _gradients(c, one), _gradients(c, VirtualExchange(c, 4))

    def apart(other: dict[str, torch.Tensor], name: str) -> float:
        return float((other[name] - want[name]).norm())

    rounded = [_gradients(c, cast(Exchange, Rounding(one, seed))) for seed in range(4)]
    for name in want:
        assert apart(got, name) <= 2 * max(apart(other, name) for other in rounded), name


def test_rows_between_virtual_ranks_are_the_pairs_of_their_tokens_and_experts() -> None:
    exchange = VirtualExchange(SMALL, 4)
    torch.manual_seed(0)
    x, gates = torch.randint(-8, 9, (12, SMALL.d)).float(), torch.rand(12, 2)
    chosen = torch.rand(12, SMALL.experts).topk(2).indices
    where = {"layer": 0, "micro_batch": 0}
    arrived = exchange.dispatch(x, exchange.plan(chosen, gates), phase="dispatch(F)", **where).result()
    moved = arrived.way.moved.reshape(4, 4)
    for src in range(4):
        for dst in range(4):
            theirs = chosen[3 * src : 3 * src + 3] // 2
            assert moved[src, dst] == (theirs == dst).sum()
    sums = exchange.combine(arrived.rows, arrived, phase="combine(F)", **where).result()
    assert torch.equal(sums, 2 * x)
    _, back = exchange.combine_gradients(arrived.rows, arrived.gates, arrived, phase="dispatch(B)", **where).result()
    assert torch.equal(back, gates)
    thirteen = exchange.plan(chosen[:1].repeat(13, 1), gates[:1].repeat(13, 1))
    uneven = exchange.dispatch(x[:1].repeat(13, 1), thirteen, phase="dispatch(F)", **where).result()
    assert sorted(uneven.way.moved.reshape(4, 4).sum(1).tolist()) == [6, 6, 6, 8]


TRAIN = ["train", "--steps", "1", "--set", "layers=1", "--set", "sequence_length=16", "--virtual-ranks"]


def test_a_command_says_what_copies_between_virtual_ranks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*TRAIN, "4"]) == 0
    said = capsys.readouterr().out
    assert "exchange 4 virtual ranks, copied by indexing, on the CPU" in said
    assert "loss" in said


def test_virtual_ranks_that_cannot_be_are_refused_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for count, words in (("3", "3 ranks do not divide 8 experts"), ("0", "--virtual-ranks 0 must be above 0")):
        assert main([*TRAIN, count]) == 2
        err = capsys.readouterr().err
        assert words in err
        assert err.count("\n") == 1
