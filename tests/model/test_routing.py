"""Routing: the bias steers selection and nothing else, and brings the load to balance."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers import routing  # noqa: E402
from moescope.instrumented_model.parallel import exchange as dispatch  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK, Link, parse_link  # noqa: E402


def test_the_bias_changes_who_is_chosen_but_not_the_weights_of_the_chosen() -> None:
    s = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    plain = routing.select(s, torch.zeros(4), 2)
    biased = routing.select(s, torch.tensor([0.0, 0.0, 5.0, 0.0]), 2)
    assert set(plain[0].tolist()) == {0, 1}
    assert set(biased[0].tolist()) == {2, 0}
    g = dict(zip(biased[0].tolist(), routing.gates(s, biased)[0].tolist(), strict=True))
    assert g == pytest.approx({2: 0.1, 0: 0.9})


def test_bias_updates_bring_a_skewed_load_near_balance() -> None:
    torch.manual_seed(0)
    u, e = torch.randn(2048, 16), torch.randn(32, 16) * 0.3
    u += 2 * e[0] / e[0].norm()
    s, bias, ratios = routing.affinities(u, e), torch.zeros(32), []
    for _ in range(600):
        load = torch.bincount(routing.select(s, bias, 4).reshape(-1), minlength=32)
        ratios.append(float(load.max() / load.float().mean()))
        bias = routing.updated_bias(bias, load, 0.001)
    assert ratios[0] > 3
    assert ratios[-1] < 1.2


def test_a_plan_sends_each_assignment_once_to_the_rank_of_its_expert() -> None:
    torch.manual_seed(0)
    chosen = torch.rand(50, 8).topk(3).indices
    p = dispatch.plan(chosen, 8, 4)
    assert sorted(p.order.tolist()) == list(range(150))
    experts = chosen.reshape(-1)[p.order]
    assert experts.tolist() == sorted(experts.tolist())
    for rank in range(4):
        for local in range(2):
            assert p.sent[rank, local] == (chosen == 2 * rank + local).sum()


def test_rows_that_travel_in_fp8_arrive_as_quantised_and_in_bf16_as_rounded() -> None:
    from moescope.instrumented_model.numerics.quantise import dequantise, quantise_tiles

    x = torch.randn(7, 200)
    assert torch.equal(dispatch.unpack(dispatch.pack(x, True), 200, True), dequantise(quantise_tiles(x)))
    assert torch.equal(dispatch.unpack(dispatch.pack(x, False), 200, False), x.bfloat16().float())


def test_links_are_parsed_and_what_is_no_link_is_refused() -> None:
    assert parse_link("1GB/s:50us") == Link(1e9, 50_000)
    assert parse_link("2.5MB/s:1ms") == Link(2.5e6, 1_000_000)
    assert parse_link("none") == NO_LINK
    assert Link(1e9, 50_000).wire_ns(1000, 2000) == 52_000
    assert Link(1e9, 50_000).wire_ns(0, 0) == 0
    for bad in ("fast", "0GB/s", "1GB", "1GB/s:5", ""):
        with pytest.raises(ConfigError, match="link"):
            parse_link(bad)


def test_sizes_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigError, match="3 ranks do not divide 8 experts"):
        size("tiny").local_experts(3)
    with pytest.raises(ConfigError, match="choose one of"):
        size("huge")
    with pytest.raises(ConfigError, match="top_k"):
        Config("x", experts=2, top_k=3)
