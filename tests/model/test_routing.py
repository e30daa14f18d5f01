"""Routing: the bias steers selection and nothing else, and brings the load to balance."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import Config, ConfigError, size  # noqa: E402
from moescope.instrumented_model.layers import routing  # noqa: E402
from moescope.instrumented_model.numerics.quantise import Quantised, dequantise, quantise_tiles  # noqa: E402
from moescope.instrumented_model.parallel import wire as wires  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK, Link, parse_link  # noqa: E402


def test_the_bias_changes_who_is_chosen_but_not_the_weights_of_the_chosen() -> None:
    s = torch.tensor([[0.9, 0.8, 0.1, 0.2]])
    plain = routing.select(s, torch.zeros(4), 2)
    biased = routing.select(s, torch.tensor([0.0, 0.0, 5.0, 0.0]), 2)
    assert set(plain[0].tolist()) == {0, 1}
    assert set(biased[0].tolist()) == {2, 0}
    g = dict(zip(biased[0].tolist(), routing.gates(s, biased)[0].tolist(), strict=True))
    assert g == pytest.approx({2: 0.1, 0: 0.9})


def _best(values: dict[int, float], count: int) -> set[int]:
    return set(sorted(values, key=lambda i: -values[i])[:count])


@pytest.mark.parametrize(
    ("experts", "top_k", "nodes", "at_most"),
    [(12, 3, 1, 1), (12, 4, 4, 2), (16, 8, 4, 4), (24, 5, 6, 3), (8, 4, 4, 2), (32, 8, 8, 4), (6, 2, 3, 2)],
)
def test_selection_is_the_best_experts_on_the_best_nodes(experts: int, top_k: int, nodes: int, at_most: int) -> None:
    torch.manual_seed(experts)
    s, bias, on_node = torch.rand(40, experts), torch.randn(experts) * 0.2, experts // nodes
    chosen = routing.select(s, bias, top_k, nodes, at_most)
    for row, got in zip((s + bias).tolist(), chosen.tolist(), strict=True):
        value = dict(enumerate(row))
        groups = [list(range(n * on_node, (n + 1) * on_node)) for n in range(nodes)]
        scores = {n: sum(sorted((value[e] for e in g), reverse=True)[: top_k // at_most]) for n, g in enumerate(groups)}
        allowed = {e for n in _best(scores, at_most) for e in groups[n]}
        assert set(got) == _best({e: value[e] for e in allowed}, top_k)
        assert len({e // on_node for e in got}) <= at_most


@pytest.mark.parametrize(("nodes", "at_most"), [(1, 1), (4, 2)])
def test_bias_updates_bring_the_load_of_a_hot_expert_from_ten_times_the_mean_near_it(nodes: int, at_most: int) -> None:
    torch.manual_seed(0)
    experts, top_k = 64, 4
    u, e = torch.randn(2048, 16), torch.randn(experts, 16) * 0.3
    u += 2 * e[0] / e[0].norm()
    e[0] *= 2  # its affinity is high for all
    s, bias, ratios = routing.affinities(u, e), torch.zeros(experts), []
    for _ in range(700):
        load = torch.bincount(routing.select(s, bias, top_k, nodes, at_most).reshape(-1), minlength=experts)
        ratios.append(float(load.max() / load.float().mean()))
        bias = routing.updated_bias(bias, load, 0.001)
    assert 8 < ratios[0] < 16
    assert ratios[-1] < 1.25


def test_rows_that_travel_in_fp8_arrive_as_quantised_with_powers_of_2_and_in_bf16_as_rounded() -> None:
    x = torch.randn(7, 200)
    wire = torch.cat([*wires.pack_tokens(x, True, "x"), torch.zeros(7, 5, dtype=torch.uint8)], dim=1)
    assert wire.shape[1] == wires.token_bytes(200, True) + 5 == 200 + 2 * 4 + 5
    copies = torch.tensor([3, 0, 0, 6])
    came = wires.unpack_tokens(wire, copies, 200, True)
    sent = quantise_tiles(x, power_of_2=True)
    assert isinstance(came, Quantised)
    assert torch.equal(came.q.view(torch.uint8), sent.q.view(torch.uint8)[copies])
    assert torch.equal(came.scale, sent.scale[copies])
    values = dequantise(sent)[copies]
    assert torch.equal(dequantise(came), values)
    assert torch.equal(dequantise(quantise_tiles(values, power_of_2=True)), values)
    (wire,) = wires.pack_tokens(x, False, "x")
    rounded = wires.unpack_tokens(wire, copies, 200, False)
    assert isinstance(rounded, torch.Tensor)
    assert torch.equal(rounded, x.bfloat16().float()[copies])


def test_the_balance_loss_is_the_sum_of_frequency_times_probability_over_experts_of_each_sequence() -> None:
    torch.manual_seed(0)
    sequences, length, experts, top_k = 3, 5, 8, 2
    s = torch.rand(sequences * length, experts, dtype=torch.float64, requires_grad=True)
    want = 0.0
    for q in range(sequences):
        mine = s.tolist()[q * length : (q + 1) * length]
        for i in range(experts):
            taken = sum(i in sorted(range(experts), key=lambda j: -t[j])[:top_k] for t in mine)
            frequency = experts / (top_k * length) * taken
            probability = sum(t[i] / sum(t) for t in mine) / length
            want += frequency * probability / sequences
    assert float(routing.imbalance(s, top_k, sequences).detach()) == pytest.approx(want)
    assert torch.autograd.gradcheck(lambda s: routing.imbalance(s, top_k, sequences), s)
    even = torch.full((6, 4), 0.5)
    assert float(routing.imbalance(even, 4, 2)) == pytest.approx(1.0)


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
