"""Replicas of hot experts: placed evenly, used alike by all ranks, and nothing in the result tells of them.

Run as a program this file is one rank of the test.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
import torch.distributed as dist  # noqa: E402

from moescope.instrumented_model.config import ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers.model import Model, MoELayer  # noqa: E402
from moescope.instrumented_model.parallel.exchange import Exchange  # noqa: E402
from moescope.instrumented_model.parallel.global_plan import digest, planned, rank_loads  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange, open_planned  # noqa: E402
from moescope.instrumented_model.parallel.placement import home, placed  # noqa: E402
from moescope.instrumented_model.parallel.planned import place_experts  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks, joined, world  # noqa: E402
from moescope.instrumented_model.schedules.chain import MicroBatch, forward  # noqa: E402
from moescope.instrumented_model.schedules.order import overlapped  # noqa: E402
from moescope.instrumented_model.training import data  # noqa: E402
from moescope.instrumented_model.training.train import routed  # noqa: E402
from tests.collectors.reading import rows  # noqa: E402
from tests.conftest import Moescope  # noqa: E402
from tests.model.ranks import ROOT, fork_ranks, run_ranks  # noqa: E402

RANKS = 4
C = replace(size("tiny"), name="test", d=72, d_expert=40, experts=16, top_k=4, nodes_per_token=1, sequence_length=24)
C = replace(C, layers=1)  # rounding of another order of sums may choose other experts in a second one


@st.composite
def cases(draw: st.DrawFn) -> tuple[torch.Tensor, Ranks, int]:
    """Tokens of each rank for each expert, where the ranks stand, redundant experts a rank."""
    nodes, gpus, local = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4))
    ranks, experts = nodes * gpus, nodes * gpus * local
    redundant = draw(st.integers(0, min(3, local * (gpus - 1))))
    hot = st.one_of(st.integers(0, 3), st.integers(0, 2000))
    row = st.lists(hot, min_size=experts, max_size=experts)
    counts = torch.tensor(draw(st.lists(row, min_size=ranks, max_size=ranks)))
    return counts, Ranks(0, ranks, nodes), redundant


@settings(max_examples=60, deadline=None)
@given(cases())
def test_every_expert_stands_on_its_node_once_a_rank_at_most_and_plans_use_what_stands(
    case: tuple[torch.Tensor, Ranks, int],
) -> None:
    counts, ranks, redundant = case
    experts = counts.shape[1]
    placement = placed(counts.sum(0), ranks, redundant)
    assert placement.slots_per_rank == experts // ranks.count + redundant
    assert set(placement.expert_of) == set(range(experts))
    for r in range(ranks.count):
        mine = placement.of_rank(r)
        assert len(set(mine)) == len(mine)
        assert {e // (experts // ranks.nodes) for e in mine} == {r // ranks.gpus}
    plan = planned(counts, placement)
    assert [[placement.expert_of[s] for s in row] for row in plan.tolist()] == [list(range(experts))] * ranks.count
    loads = [0] * ranks.count
    for source, row in enumerate(counts.tolist()):
        for expert, tokens in enumerate(row):
            loads[int(plan[source, expert]) // placement.slots_per_rank] += tokens
    assert rank_loads(counts, plan, placement).tolist() == loads
    assert digest(planned(counts.clone(), placed(counts.sum(0), ranks, redundant))) == digest(plan)


def test_replicas_bring_a_skewed_load_near_balance() -> None:
    torch.manual_seed(0)
    ranks, experts = Ranks(0, 8), 64
    popularity = torch.arange(1, experts + 1).float() ** -0.8
    counts = torch.poisson(400 * popularity.expand(8, -1)).long()
    at_home = home(experts, 8)
    before = rank_loads(counts, planned(counts, at_home), at_home).double()
    placement = placed(counts.sum(0), ranks, 2)
    after = rank_loads(counts, planned(counts, placement), placement).double()
    assert float(before.max() / before.mean()) > 2
    assert float(after.max() / after.mean()) < 1.1


def test_more_replicas_than_ranks_can_hold_are_refused() -> None:
    with pytest.raises(ConfigError, match="from 0 to 2"):
        placed(torch.ones(4), Ranks(0, 2), 3)


def _logits(model: Model, exchange: Exchange, rank: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    shape = {"sequences": 1, "positions": C.sequence_length, "seed": 5}
    tokens = [data.batch(data.corpus(), step=0, rank=rank, micro_batch=m, **shape)[0] for m in range(2)]
    micro_batches = [MicroBatch(m, t) for m, t in enumerate(tokens)]
    overlapped([forward(model, exchange, mb) for mb in micro_batches])
    return [mb.result for mb in micro_batches if mb.result is not None], routed(micro_batches)


def _rank_main() -> None:
    ranks = world(2)
    with joined(ranks, 60.0):
        exchange = open_exchange(C, ranks, NO_LINK)
        model = Model(C, rank=ranks.rank, ranks=RANKS, nodes=2, seed=3)
        for n in range(C.layers):
            layer = model.layer(n)
            assert isinstance(layer, MoELayer)
            layer.bias[:2] = 0.3  # both on the first rank
        want, load = _logits(model, exchange, ranks.rank)
        exchange.close()
        dist.all_reduce(load)
        placements = {n: placed(of_layer, ranks, 2) for n, of_layer in enumerate(load)}
        place_experts(model, placements)
        planner = open_planned(C, ranks, placements, NO_LINK)
        got, same_load = _logits(model, planner, ranks.rank)
        planner.close()
        dist.all_reduce(same_load)
        assert torch.equal(load, same_load)
        for a, b in zip(got, want, strict=True):
            assert float((a - b).norm() / b.norm()) < 1e-2
        digests: list[list[str]] = [[] for _ in range(RANKS)]
        dist.all_gather_object(digests, [p.digest for p in planner.plans])
        assert len(digests[0]) == 2 * C.layers
        assert digests == [digests[0]] * RANKS
        total = 2 * RANKS * C.sequence_length * C.top_k
        for layer_number in range(C.layers):
            plans = [p for p in planner.plans if p.layer == layer_number]
            assert sum(map(sum, (p.after for p in plans))) == sum(map(sum, (p.before for p in plans))) == total
            for p in plans:  # experts stay on their node, so it is the ranks of a node that come to share alike
                assert max(p.after) < max(p.before)
                assert all(max(node) <= 1.15 * sum(node) / 2 for node in (p.after[:2], p.after[2:])), p
        print("held", flush=True)


def test_all_ranks_hash_the_same_plan_and_logits_are_those_without_replicas() -> None:
    for code, out, err in run_ranks([], RANKS, "tests.model.test_redundant_experts"):
        assert code == 0, err
        assert out == "held\n"


OPTIONS = ["--redundant-experts", "1", "--link", "none"]


@pytest.mark.parametrize(
    "command",
    [["all", "--steps", "1"], ["decode", "--requests", "3", "--max-new", "2"]],  # which has passes without a token
)
def test_a_command_says_what_replicas_did(command: list[str]) -> None:
    said, silent = fork_ranks([*command, *OPTIONS], 2)
    code, out, err = said.finish()
    assert code == 0, err
    assert "with replicas; a plan takes" in out
    assert silent.finish() == (0, "", "")


TARGET = f"""
from tests.model.ranks import spawned_ranks
(code, out, err), _ = spawned_ranks(["-m", "moescope.instrumented_model", "prefill", "--steps", "2", *{OPTIONS}])
print(out, err)
raise SystemExit(code)
"""


def test_a_recorded_run_shows_a_plan_before_every_dispatch(moescope: Moescope, tmp_path: Path) -> None:
    done = moescope("run", "-o", tmp_path / "rec", "--", sys.executable, "-c", TARGET, cwd=ROOT)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "with replicas; a plan takes" in done.stdout
    tiny, phases = size("tiny"), rows(tmp_path / "rec", "phases")
    for rank, step, layer, micro_batch in product(range(2), range(2), range(tiny.layers), range(tiny.micro_batches)):
        where = {"rank": rank, "stage": "prefill", "step": step, "layer": layer, "micro_batch": micro_batch}
        plans, dispatches = (
            [p for p in phases if p["name"] == name and where.items() <= p.items()]
            for name in ("plan(F)", "dispatch(F)")
        )
        assert [p["thread"] == "main" for p in plans].count(True) == 1  # counts are told, then a plan is made of them
        assert len(plans) == 2
        assert max(p["start_ns"] + p["dur_ns"] for p in plans) <= min(d["start_ns"] for d in dispatches)


if __name__ == "__main__":
    _rank_main()
