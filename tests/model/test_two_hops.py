"""Four real ranks as two nodes of two: two hops lose and double nothing, and the model computes what one rank would.

Run as a program this file is one rank of the test.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel import hop  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Exchange, as_float  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks, joined, world  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402
from moescope.instrumented_model.training.train import gradients, routed, sync  # noqa: E402
from tests.model.ranks import run_ranks  # noqa: E402

NODES, GPUS = 2, 2
RANKS = NODES * GPUS
C = replace(
    size("tiny"), name="test", d=72, d_expert=40, experts=16, top_k=4, nodes_per_token=1, sequence_length=12, fp8=False
)
D = C.d


def _tokens(rank: int, limit: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Small whole numbers, which BF16 and E4M3 hold and sum exactly; experts; gates. Any rank can make any other's."""
    generator = torch.Generator().manual_seed(rank)
    tokens = 9 + rank
    x = torch.randint(-3, 4, (tokens, D), generator=generator).float()
    chosen = torch.rand(tokens, limit, generator=generator).topk(C.top_k).indices
    gates = torch.randint(1, 4, (tokens, C.top_k), generator=generator).float()
    return x, chosen, gates


def _check_rows_there_and_back(ranks: Ranks, exchange: Exchange, limit: int) -> None:
    """Expert e multiplies by e % 3 + 1: dispatch then combine is a dense masked mixture, exactly; gradients too."""
    x, chosen, gates = _tokens(ranks.rank, limit)
    where = {"layer": 0, "micro_batch": 0}
    arrived = exchange.dispatch(x, exchange.plan(chosen, gates), phase="dispatch(F)", **where).result()
    local = C.experts // RANKS
    first = ranks.rank * local
    expert = torch.arange(first, first + local).repeat_interleave(torch.tensor(arrived.counts))
    factor = (expert % 3 + 1).float()[:, None]
    out = exchange.combine(arrived.rows * factor * arrived.gates[:, None], arrived, phase="combine(F)", **where)
    want = torch.zeros_like(x)
    for e in range(C.experts):
        want += x * (e % 3 + 1) * (gates * (chosen == e)).sum(1, keepdim=True)
    assert torch.equal(out.result(), want.bfloat16().float())
    expected = sorted(
        (e, *row.tolist())
        for r in range(RANKS)
        for row, of_row in zip(*_tokens(r, limit)[:2], strict=True)
        for e in of_row.tolist()
        if first <= e < first + local
    )
    got = sorted((e, *row.tolist()) for e, row in zip(expert.tolist(), arrived.rows, strict=True))
    assert got == expected
    again = exchange.dispatch_again(2 * x, arrived, phase="combine(B)", **where).result()
    assert torch.equal(as_float(again), 2 * arrived.rows)
    back = exchange.combine_gradients(arrived.rows, arrived.gates * expert, arrived, phase="dispatch(B)", **where)
    dx, dgates = back.result()
    assert torch.equal(dx, C.top_k * x)
    assert torch.equal(dgates, gates * chosen)


def _check_bytes(ranks: Ranks, exchange: Exchange, limit: int) -> None:
    """What the hops send is one copy a node, then one a rank; what is sent is what is received, on every link."""
    moved: list[tuple[str, list[int], list[int], int]] = []
    original = hop.Hop._move

    def counted(self: hop.Hop, wire: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        moved.append((self.name, sent, received, wire.shape[1]))
        return original(self, wire, sent, received)

    hop.Hop._move = counted  # type: ignore[method-assign]
    try:
        _check_rows_there_and_back(ranks, exchange, limit)
    finally:
        hop.Hop._move = original  # type: ignore[method-assign]
    everyone: list[list[tuple[str, list[int], list[int], int]]] = [[] for _ in range(RANKS)]
    dist.all_gather_object(everyone, moved)
    assert [name for name, *_ in moved[:4]] == ["internode", "intranode", "intranode", "internode"]
    for call in range(len(moved)):
        for r, theirs in enumerate(everyone):
            name, sent, _, row_bytes = theirs[call]
            node, index = divmod(r, GPUS)
            for peer, rows in enumerate(sent):
                other = peer * GPUS + index if name == "internode" else node * GPUS + peer
                _, _, received, other_bytes = everyone[other][call]
                assert received[node if name == "internode" else index] * other_bytes == rows * row_bytes
    # From the choices alone: rows of each (source, node), then of each (forwarder, rank).
    rank_of = [_tokens(r, limit)[1] // (C.experts // RANKS) for r in range(RANKS)]
    inter = [int((rank_of[ranks.rank] // GPUS == n).any(1).sum()) for n in range(NODES)]
    came_through_me = [r for r in range(RANKS) if r % GPUS == ranks.index]
    intra = [sum(int((rank_of[r] == ranks.node * GPUS + g).any(1).sum()) for r in came_through_me) for g in range(GPUS)]
    row_bytes = 2 * D + 8 * C.top_k
    assert moved[0][1] == inter
    assert moved[1][1] == intra
    assert moved[0][3] == moved[1][3] == row_bytes
    assert moved[2][2] == intra
    assert moved[3][2] == inter
    assert moved[3][3] == 2 * D


def _micro_batch(c: Config, rank: int) -> MicroBatch:
    shape = {"sequences": c.sequences, "positions": c.sequence_length, "seed": 5}
    return MicroBatch(0, *data.batch(data.corpus(), step=0, rank=rank, micro_batch=0, **shape))


def _check_model(ranks: Ranks, exchange: Exchange) -> None:
    """Loss and gradients of a model alone on one rank, with the same node limit, on all ranks' tokens."""
    model = Model(C, rank=ranks.rank, ranks=RANKS, nodes=NODES, seed=3)
    mine = [_micro_batch(C, ranks.rank)]
    loss = gradients(model, exchange, mine, "overlapped")
    sync(model, exchange, routed(mine))
    alone = Model(C, nodes=NODES, seed=3)
    lonely = open_exchange(C, Ranks(0, 1), NO_LINK)
    theirs = [_micro_batch(C, r) for r in range(RANKS)]
    found = [gradients(alone, lonely, [mb], "serial") for mb in theirs]
    assert abs(loss - found[ranks.rank]) < 1e-3
    wanted = dict(alone.named_parameters())
    for name, parameter in model.named_parameters():
        want = wanted[name].grad
        assert want is not None, name
        assert parameter.grad is not None, name
        want = (want.chunk(RANKS)[ranks.rank] if ".experts." in name else want) / RANKS
        assert float((parameter.grad - want).norm() / want.norm().clamp_min(1e-12)) < 2e-2, name


def _rank_main() -> None:
    ranks = world(NODES)
    with joined(ranks, 60.0):
        exchange = open_exchange(C, ranks, NO_LINK)
        for limit in (C.experts, 5):  # all experts, then nearly all tokens to one rank and none to the other node
            _check_bytes(ranks, exchange, limit)
        _check_model(ranks, exchange)
        exchange.close()
        print("held", flush=True)


def test_two_hops_equal_the_dense_mixture_and_conserve_bytes_on_every_link() -> None:
    for code, out, err in run_ranks([], RANKS, "tests.model.test_two_hops"):
        assert code == 0, err
        assert out == "held\n"


def test_ranks_are_laid_out_node_by_node_and_nodes_that_do_not_divide_them_are_refused() -> None:
    places = [Ranks(r, 6, 2) for r in range(6)]
    assert [(p.node, p.index) for p in places] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    with pytest.raises(ConfigError, match=r"4 nodes do not divide 6 ranks: use one of \[1, 2, 3, 6\]"):
        Ranks(0, 6, 4)
    with pytest.raises(ConfigError, match="fewer than top_k"):
        replace(C, experts=4, top_k=3).check_nodes(2)


if __name__ == "__main__":
    _rank_main()
