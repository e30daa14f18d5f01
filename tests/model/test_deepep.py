"""The exchange over DeepEP against a stand-in that asks of its caller what DeepEP asks, and computes what it does."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from importlib.util import find_spec
from threading import BrokenBarrierError

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.parallel.deepep import DeepEPExchange  # noqa: E402
from moescope.instrumented_model.parallel.exchange import as_float  # noqa: E402
from tests.model import deep_ep_stand_in as stand_in  # noqa: E402

RANKS, TOP_K = 4, 4
C = replace(size("tiny"), name="test", d=256, experts=8, top_k=TOP_K)
TOKENS = (5, 0, 9, 3)
"""Of each rank."""
WHERE = {"layer": 0, "micro_batch": 0}


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "deep_ep", stand_in)
    monkeypatch.setattr(stand_in.Buffer, "num_sms", 20)


def _on_ranks(work: Callable[[stand_in.Group], None], count: int = RANKS) -> None:
    """Do it on `count` ranks, a thread each."""
    ranks = stand_in.Ranks(count)

    def on_stream(rank: int) -> None:
        try:
            with stand_in.ComputeStream():
                work(stand_in.Group(ranks, rank))
        except BaseException:
            ranks.abort()  # the others wait for it
            raise

    with ThreadPoolExecutor(count) as pool:
        failures = [done.exception() for done in [pool.submit(on_stream, rank) for rank in range(count)]]
    for failure in sorted(filter(None, failures), key=lambda e: isinstance(e, BrokenBarrierError)):
        raise failure


@pytest.mark.parametrize("fp8", [True, False])
def test_dispatch_and_combine_bring_each_row_to_its_experts_and_their_sum_back(fp8: bool) -> None:
    """Small whole numbers, which E4M3 and BF16 hold exactly."""
    c = replace(C, fp8=fp8)
    torch.manual_seed(0)
    x, dy = ([torch.randint(-8, 9, (n, c.d)).float() for n in TOKENS] for _ in range(2))
    gates = [torch.randint(1, 9, (n, TOP_K)).float() for n in TOKENS]
    chosen = [torch.rand(n, c.experts).topk(TOP_K).indices for n in TOKENS]

    def work(group: stand_in.Group) -> None:
        me, local = group.rank(), c.experts // RANKS
        exchange = DeepEPExchange(c, group, sms=24)
        plan = exchange.plan(chosen[me], gates[me])
        arrived = exchange.dispatch(x[me], plan, phase="dispatch(F)", **WHERE).result()
        # Expert by expert, and for each in the order of ranks and tokens.
        here = [
            (source, t, k, e)
            for e in range(me * local, me * local + local)
            for source in range(RANKS)
            for t in range(TOKENS[source])
            for k in range(TOP_K)
            if chosen[source][t, k] == e
        ]
        assert arrived.counts == tuple(sum(e == me * local + i for *_, e in here) for i in range(local))
        assert torch.equal(arrived.rows, torch.stack([x[s][t] for s, t, *_ in here]))
        assert arrived.gates.tolist() == [float(gates[s][t, k]) for s, t, k, _ in here]
        factor = torch.tensor([e % 3 + 1.0 for *_, e in here])
        sums = exchange.combine(arrived.rows * factor[:, None], arrived, phase="combine(F)", **WHERE).result()
        assert torch.equal(sums, x[me] * (chosen[me] % 3 + 1).sum(1, keepdim=True))
        again = exchange.dispatch_again(dy[me], arrived, phase="combine(B)", **WHERE).result()
        assert torch.equal(as_float(again), torch.stack([dy[s][t] for s, t, *_ in here]))
        back, of_gates = exchange.combine_gradients(
            arrived.rows, arrived.gates * factor, arrived, phase="dispatch(B)", **WHERE
        ).result()
        assert torch.equal(back, TOP_K * x[me])
        assert torch.equal(of_gates, gates[me] * (chosen[me] % 3 + 1))
        exchange.close()
        exchange.close()

    _on_ranks(work)


def test_the_stand_in_notices_what_is_computed_too_late_or_read_too_early() -> None:
    def work(group: stand_in.Group) -> None:
        buffer = stand_in.Buffer(group, 1 << 30)
        slots, x = torch.tensor([[0, 1]]), torch.ones(1, 128).bfloat16()
        per_rank, per_node, per_expert, in_rank, before = buffer.get_dispatch_layout(slots, 2, async_finish=True)
        sizes = {"num_tokens_per_rank": per_rank, "num_tokens_per_expert": per_expert, "is_token_in_rank": in_rank}
        sizes |= {"num_tokens_per_rdma_rank": per_node, "topk_idx": slots, "async_finish": True}
        weights = torch.ones(1, 2)
        with pytest.raises(AssertionError, match="computed after"):
            buffer.dispatch(x * 2, topk_weights=weights, previous_event=before, **sizes)
        came, *_, event = buffer.dispatch(x * 2, topk_weights=weights, **sizes)
        assert not torch.equal(came, torch.full((2, 128), 2.0).bfloat16())
        event.current_stream_wait()
        assert torch.equal(came, torch.full((2, 128), 2.0).bfloat16())

    _on_ranks(work, 2)


@pytest.mark.parametrize(
    ("c", "ranks", "sms", "words"),
    [
        (replace(C, experts=9), 3, 20, "Unsupported number of EP ranks: 3; use another exchange"),
        (replace(C, d=136), 4, 20, "multiples of 128 between 4 ranks, not d = 136"),
        (replace(C, d=136, fp8=False, experts=16), 16, 20, "multiples of 256 between 16 ranks, not d = 136"),
        (C, 4, 21, "even number of SMs, 2 to a channel, not 21"),
        (C, 3, 20, "3 ranks do not divide 8 experts"),
    ],
)
def test_what_deep_ep_does_not_take_is_said_before_it_is_asked(c: Config, ranks: int, sms: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        DeepEPExchange(c, stand_in.Group(stand_in.Ranks(ranks), 0), sms=sms)


@pytest.mark.skipif(find_spec("deep_ep") is not None, reason="deep_ep is installed")
def test_without_deep_ep_its_exchange_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deep_ep")
    with pytest.raises(ConfigError, match="needs the package deep_ep"):
        DeepEPExchange(C, stand_in.Group(stand_in.Ranks(2), 0))
