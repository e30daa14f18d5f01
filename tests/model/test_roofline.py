"""Roofline terms: the report's figures, and the operations that a decode step really does."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model import observe  # noqa: E402
from moescope.instrumented_model.config import ConfigError, size  # noqa: E402
from moescope.instrumented_model.inference.roofline import (  # noqa: E402
    PUBLISHED,
    Part,
    expert_parameters,
    parse_peaks,
    parts,
    ridge_tokens,
    roofline,
)
from moescope.instrumented_model.inference.steps import infer, new_cache, opened  # noqa: E402
from moescope.instrumented_model.layers.model import Model  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402

V3 = size("v3")


def test_an_expert_of_v3_is_44_megabytes_and_the_ridge_206_tokens_on_h200_and_295_on_h800() -> None:
    assert expert_parameters(V3) * PUBLISHED["h200"].weight_bytes / 1e6 == pytest.approx(44.04, abs=0.005)
    assert round(ridge_tokens(PUBLISHED["h200"])) == 206
    assert round(ridge_tokens(PUBLISHED["h800"])) == 295
    assert parse_peaks("1979TFLOPS:4.8TB/s").flops_per_s == PUBLISHED["h200"].flops_per_s


def test_an_expert_is_bound_by_memory_just_below_the_ridge_and_by_operations_just_above() -> None:
    h200 = PUBLISHED["h200"]
    for tokens, memory in ((206, True), (207, False)):
        part = Part("expert", 2 * tokens * expert_parameters(V3), expert_parameters(V3) * 1.0)
        read_s = part.weight_bytes / h200.bytes_per_s
        assert (part.time_s(h200) == read_s) is memory


def test_the_cache_of_v3_is_1152_bytes_a_position_and_layer() -> None:
    found = {p.name: p for p in parts(V3, PUBLISHED["h200"], [1000, 24], [[1]] * 58)}
    assert found["attention core"].cache_bytes == 61 * 1024 * (512 + 64) * 2
    assert found["attention core"].flops == 61 * 1024 * 128 * 2 * (512 + 64 + 512)


def test_only_experts_that_got_tokens_are_read_and_each_micro_batch_reads_anew() -> None:
    c = replace(size("tiny"), experts=4, layers=1)
    h200 = PUBLISHED["h200"]
    one = ([3, 5], [[2, 0, 1, 0]])
    r = roofline(c, h200, [one, one])
    assert r.expert_weight_bytes == 2 * 2 * expert_parameters(c)
    assert r.tokens_per_expert == 1.5
    served_only = roofline(c, h200, [([], [[0, 4, 0, 0]])])
    assert (served_only.expert_weight_bytes, served_only.other_weight_bytes) == (expert_parameters(c), 0)
    assert served_only.flops == 2 * 4 * expert_parameters(c)
    assert roofline(c, h200, [([], [[0] * 4])]).time_s == 0


@pytest.mark.parametrize("changes", [{}, {"d_query_latent": 0, "shared_experts": 2, "dense_layers": 1}])
def test_the_formula_counts_the_operations_that_a_step_does(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, int]
) -> None:
    c = replace(size("tiny"), **changes)
    counted: Counter[str] = Counter()
    original = observe.product

    def product(m: int, n: int, k: int, *, dtype: str, batch: int = 1) -> None:
        counted[dtype] += batch * 2 * m * n * k
        original(m, n, k, dtype=dtype, batch=batch)

    exchange = open_exchange(c, Ranks(0, 1), NO_LINK)
    try:
        model = Model(c)
        cache, sequences = new_cache(c, 3, 20, "paged")
        tokens = [torch.randint(256, (3, n)) for n in (5, 9)]
        infer(model, exchange, tokens, opened(cache, sequences, tokens), "overlapped", 0)
        monkeypatch.setattr(observe, "product", product)
        tokens = [torch.randint(256, (3, 1)) for _ in range(2)]
        step = infer(model, exchange, tokens, opened(cache, sequences, tokens), "overlapped", 1)
    finally:
        exchange.close()
    assert step.ends == ((6,) * 3, (10,) * 3)
    by_dtype: Counter[str] = Counter()
    for ends, served in zip(step.ends, step.served, strict=True):
        for part in parts(c, PUBLISHED["h200"], ends, served):
            by_dtype[part.dtype] += part.flops
    assert by_dtype == counted
    assert roofline(c, PUBLISHED["h200"], zip(step.ends, step.served, strict=True)).flops == counted.total()


@pytest.mark.parametrize("bad", ["fast", "0TFLOPS:1TB/s", "1TFLOPS", "1TFLOPS:1", ""])
def test_peaks_that_are_not_understood_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match="write here, h100, h200, h800"):
        parse_peaks(bad)
