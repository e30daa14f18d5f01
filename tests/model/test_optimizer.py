"""AdamW against its formula in FP64, the learning rate's shape, clipping by the whole norm, the average on the side."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from moescope.instrumented_model.config import ConfigError, size  # noqa: E402
from moescope.instrumented_model.parallel.link import NO_LINK  # noqa: E402
from moescope.instrumented_model.parallel.open import open_exchange  # noqa: E402
from moescope.instrumented_model.parallel.ranks import Ranks  # noqa: E402
from moescope.instrumented_model.training.clip import clip, global_norm  # noqa: E402
from moescope.instrumented_model.training.ema import Ema  # noqa: E402
from moescope.instrumented_model.training.optimizer import AdamW  # noqa: E402
from moescope.instrumented_model.training.recipe import Recipe, rate  # noqa: E402

STEPS, RATE, BETA1, BETA2, EPSILON, DECAY = 12, 1e-2, 0.9, 0.95, 1e-8, 0.1


def _bf16(x: float) -> float:
    return float(torch.tensor(x, dtype=torch.float64).to(torch.bfloat16))


def test_adamw_follows_its_formula_in_fp64_with_moments_kept_in_bf16() -> None:
    torch.manual_seed(0)
    matrix, vector = torch.nn.Parameter(torch.randn(3, 5)), torch.nn.Parameter(torch.randn(7))
    gradients = [
        [torch.randn_like(p) * 10.0 ** torch.randint(-4, 2, p.shape) for p in (matrix, vector)] for _ in range(STEPS)
    ]
    want = [[(float(w), 0.0, 0.0) for w in p.detach().reshape(-1)] for p in (matrix, vector)]
    optimizer = AdamW([matrix, vector], beta1=BETA1, beta2=BETA2, epsilon=EPSILON, weight_decay=DECAY)
    for t, both in enumerate(gradients, start=1):
        matrix.grad, vector.grad = both
        optimizer.step(RATE)
        for p, gradient in enumerate(both):
            for i, g in enumerate(map(float, gradient.reshape(-1))):
                w, m, v = want[p][i]
                m, v = BETA1 * m + (1 - BETA1) * g, BETA2 * v + (1 - BETA2) * g * g
                w -= RATE * (
                    m / (1 - BETA1**t) / (math.sqrt(v / (1 - BETA2**t)) + EPSILON) + (DECAY if p == 0 else 0) * w
                )
                want[p][i] = (w, _bf16(m), _bf16(v))
    state = optimizer.state()
    assert {t.dtype for t in state["m"] + state["v"]} == {torch.bfloat16}
    for p, parameter in enumerate((matrix, vector)):
        w, m, v = (
            torch.tensor(column, dtype=torch.float64).view_as(parameter) for column in zip(*want[p], strict=True)
        )
        # An FP32 sum can round to the other BF16 neighbour, whose mark on the weight is far below a step of it.
        torch.testing.assert_close(parameter.detach().double(), w, atol=RATE * 2e-2, rtol=0)
        torch.testing.assert_close(state["m"][p].double(), m, atol=1e-6, rtol=2e-2)
        torch.testing.assert_close(state["v"][p].double(), v, atol=1e-9, rtol=2e-2)


def test_the_first_step_is_exact_in_fp32_and_a_missing_gradient_counts_as_zero() -> None:
    torch.manual_seed(1)
    given, missing = torch.nn.Parameter(torch.randn(4, 4)), torch.nn.Parameter(torch.randn(4))
    start, idle = given.detach().double(), missing.detach().clone()
    given.grad = torch.randn(4, 4)
    AdamW([given, missing], weight_decay=DECAY).step(RATE)
    g = given.grad.double()
    torch.testing.assert_close(
        given.detach().double(), start - RATE * (g / (g.abs() + EPSILON) + DECAY * start), atol=1e-6, rtol=1e-6
    )
    assert torch.equal(missing.detach(), idle)


def test_weight_decay_alone_shrinks_matrices_and_leaves_vectors() -> None:
    matrix, vector = torch.nn.Parameter(torch.ones(2, 2)), torch.nn.Parameter(torch.ones(2))
    AdamW([matrix, vector], weight_decay=0.5).step(0.1)
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 0.95))
    assert torch.equal(vector.detach(), torch.ones(2))


def test_the_rate_warms_up_in_a_line_and_falls_as_a_cosine_to_its_end() -> None:
    recipe = Recipe(learning_rate=1.0, warm_up_steps=4, decay_steps=10, final_rate=0.2)
    rates = [rate(recipe, step) for step in range(30)]
    assert rates[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert rates[9] == pytest.approx(0.6)  # half-way down
    assert rates[4:15] == sorted(rates[4:15], reverse=True)
    assert rates[14:] == pytest.approx([0.2] * 16)
    assert rate(Recipe(learning_rate=3.0), 10**9) == 3.0


def test_gradients_are_clipped_by_the_norm_over_all_parameters() -> None:
    torch.manual_seed(2)
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3, 4), (5,), (2, 2))]
    for p in parameters[:2]:
        p.grad = torch.randn(p.shape)
    before = torch.cat([p.grad.reshape(-1) for p in parameters[:2]]).double()
    exchange = open_exchange(size("tiny"), Ranks(0, 1), NO_LINK)
    try:
        norm = global_norm(parameters[:1], parameters[1:], exchange, 1)
        assert norm == pytest.approx(float(before.norm()))
        clip(parameters, norm, 2 * norm)
        assert torch.equal(torch.cat([p.grad.reshape(-1) for p in parameters[:2]]).double(), before)
        clip(parameters, norm, 0.5)
        assert global_norm(parameters, [], exchange, 1) == pytest.approx(0.5)
    finally:
        exchange.close()
    assert parameters[2].grad is None


@pytest.mark.parametrize(
    ("field", "value"),
    [("accumulate", 0), ("learning_rate", 0.0), ("learning_rate", math.nan), ("ema_decay", 1.0), ("clip_norm", -1.0)],
)
def test_a_recipe_that_cannot_work_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field.split("_")[0]):
        Recipe(**{field: value})


def test_the_average_on_the_side_is_bit_equal_to_one_on_the_spot() -> None:
    torch.manual_seed(3)
    weights, decay = [torch.randn(200_000), torch.randn(3, 7)], 0.9
    on_the_spot = [w.clone() for w in weights]
    exact = [w.double() for w in weights]
    ema = Ema(weights, decay)
    try:
        for _ in range(25):
            ema.before_update()
            for w in weights:  # in several changes: a snapshot taken meanwhile would hold some of them
                for _ in range(3):
                    w.add_(torch.randn_like(w), alpha=0.1)
            ema.after_update()
            on_the_spot = [torch.add(a * decay, w, alpha=1 - decay) for a, w in zip(on_the_spot, weights, strict=True)]
            exact = [a * decay + w.double() * (1 - decay) for a, w in zip(exact, weights, strict=True)]
        averages = ema.averages()
    finally:
        ema.close()
    for got, spot, wanted in zip(averages, on_the_spot, exact, strict=True):
        assert torch.equal(got, spot)
        torch.testing.assert_close(got.double(), wanted, atol=1e-5, rtol=1e-5)


def test_an_average_that_failed_raises_on_the_training_thread() -> None:
    ema = Ema([torch.zeros(4)], 0.5)
    try:
        ema.averages()[0].resize_(5)
        ema.after_update()
        with pytest.raises(RuntimeError):
            ema.averages()
    finally:
        ema.close()
