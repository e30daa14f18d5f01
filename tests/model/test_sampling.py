"""Sampling: the distribution that temperature, top-k and top-p leave, and the same draws for the same seed."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import ConfigError  # noqa: E402
from moescope.instrumented_model.inference.sampling import Sampling, probabilities, sample  # noqa: E402


def reference(logits: list[float], s: Sampling) -> list[float]:
    """In plain Python, token by token."""
    weights = [math.exp((x - max(logits)) / s.temperature) for x in logits]
    by_weight = sorted(range(len(logits)), key=lambda i: -weights[i])
    kept = by_weight[: s.top_k] if s.top_k else by_weight
    total, reached, chosen = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if reached / total >= s.top_p:
            break
        chosen.append(i)
        reached += weights[i]
    return [weights[i] / reached if i in chosen else 0.0 for i in range(len(logits))]


@settings(max_examples=40, deadline=None)
@given(
    logits=st.lists(st.integers(-40, 40), min_size=1, max_size=9, unique=True),
    temperature=st.floats(0.3, 3.0),
    top_k=st.integers(0, 10),
    top_p=st.sampled_from([0.05, 0.31, 0.61, 0.93, 1.0]),
)
def test_probabilities_are_those_of_the_definition(
    logits: list[int], temperature: float, top_k: int, top_p: float
) -> None:
    s, values = Sampling(temperature, top_k, top_p), [x / 10 for x in logits]
    got = probabilities(torch.tensor([values]), s)[0]
    torch.testing.assert_close(got, torch.tensor(reference(values, s)), atol=1e-5, rtol=1e-4)


def test_a_temperature_near_0_is_greedy_and_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 9.9e3], [0.0, 1e-3, -1.0]])
    got = probabilities(logits, Sampling(1e-6))
    assert got.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert torch.equal(probabilities(logits, Sampling()), got)
    assert sample(logits, Sampling(), []) == [0, 1]


def test_draws_follow_the_distribution_and_the_seed_alone() -> None:
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    s = Sampling(1.0, top_k=3)

    def draws(seed: int) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        return [sample(logits, s, [generator])[0] for _ in range(4000)]

    first = draws(1)
    assert first == draws(1)
    assert first != draws(2)
    share = torch.bincount(torch.tensor(first), minlength=4) / len(first)
    torch.testing.assert_close(share, probabilities(logits, s)[0], atol=0.03, rtol=0)
    together = sample(logits.repeat(3, 1), s, [torch.Generator().manual_seed(seed) for seed in (5, 1, 7)])
    assert together[1] == first[0]


@pytest.mark.parametrize("bad", [{"temperature": -1.0}, {"temperature": math.nan}, {"top_k": -1}, {"top_p": 0.0}])
def test_what_cannot_be_sampled_with_is_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(bad))):
        Sampling(**bad)
